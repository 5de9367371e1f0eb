"""For all tests. This file's presence also makes the helpers beside it importable everywhere."""

import os
import sys
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "envs"))  # the counting environment, likewise

# The tests compile much and compute little. Run with XLA_FLAGS= (empty) for the usual programs.
FLAGS = ["--xla_backend_optimization_level=0"]
# Without this the next flag makes the last bits of a process differ from another's.
FLAGS += ["--xla_cpu_multi_thread_eigen=false"]
if version("jaxlib").startswith("0.10."):  # another version may not know it, and stop
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ.setdefault("XLA_FLAGS", " ".join(FLAGS))
os.environ.setdefault("DREAMER_JAX_NO_CACHE", "1")  # tests leave no files in the user's folders
