"""Arrays in pickle-free .npz files: written whole or not at all, read with one kind of error."""

from __future__ import annotations

import os
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

_UNREADABLE = (OSError, EOFError, ValueError, AttributeError, TypeError)
_UNREADABLE += (RuntimeError, zipfile.BadZipFile, zlib.error)  # RuntimeError: encrypted


class NpzError(ValueError):
    """A file that cannot be read as .npz; the message says why, not which file."""


def write(path: Path, **arrays: Any) -> None:
    """Write compressed arrays; `path` has its old content or all of the new one."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            np.savez_compressed(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read(path: Path) -> dict[str, np.ndarray]:
    """All arrays by name. Raises FileNotFoundError, and NpzError for what is no such file."""
    try:
        with Path(path).open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise
    except _UNREADABLE as error:
        raise NpzError(f"cannot be read as .npz without pickles ({error})") from error
    if not all(isinstance(array, np.ndarray) for array in arrays.values()):
        raise NpzError("is an archive of something else than arrays")
    return arrays
