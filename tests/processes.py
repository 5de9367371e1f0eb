"""Processes of the tests with another number of devices."""

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent


def python(*arguments, devices=8):
    """A Python process that sees so many CPU devices; it can import what these tests can."""
    paths = [str(TESTS.parent), str(TESTS), os.environ.get("PYTHONPATH", "")]
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        env=os.environ | {"JAX_NUM_CPU_DEVICES": str(devices), "PYTHONPATH": ":".join(paths)},
        capture_output=True,
        text=True,
    )
