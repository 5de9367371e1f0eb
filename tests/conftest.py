"""For all tests. This file's presence also makes the helpers beside it importable everywhere."""

import os
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "envs"))  # the counting environment, likewise

# The tests compile much and compute little. Run with XLA_FLAGS= (empty) for the usual programs.
FLAGS = ["--xla_backend_optimization_level=0"]
# Without this the next flag makes the last bits of a process differ from another's.
FLAGS += ["--xla_cpu_multi_thread_eigen=false"]
if version("jaxlib").startswith("0.10."):  # another version may not know it, and stop
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ.setdefault("XLA_FLAGS", " ".join(FLAGS))  # before jax is imported
# XLA cuts its work by its number of threads: that of devices or, if larger, of cores, which this
# names. With two, one device and two give the same bits on a machine of one core too.
os.environ.setdefault("NPROC", "2")
os.environ.setdefault("DREAMER_JAX_NO_CACHE", "1")  # tests leave no files in the user's folders


@pytest.fixture(scope="session")
def compiled_folder(tmp_path_factory):
    """Where whole runs, those of other test processes included, find what was compiled before."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "compiled"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def compiled_once(compiled_folder):
    """All runs of a file, other processes included, share their compiled programs."""
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    settings = {
        "jax_compilation_cache_dir": str(compiled_folder),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name.upper(), str(value))
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
