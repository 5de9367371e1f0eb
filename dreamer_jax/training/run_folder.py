"""One folder per run: its configuration, a lock against a second writer, and everything logged.

<run>/config.json   the settings the run was started with
<run>/lock          holds the process id of the writer while it lives
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from dreamer_jax.errors import UserError

CONFIG_NAME = "config.json"
LOCK_NAME = "lock"
_STEP = re.compile(r"\d{8,}")
RUN_MARKS = (CONFIG_NAME, "metrics.jsonl", "checkpoints")


class InUse(UserError):
    """Another process holds the folder's lock."""


class HoldsRun(UserError):
    """A folder for a new run that holds one already."""


_held_locks: set[TextIO] = set()


def _drop_locks_in_child() -> None:
    # A forked worker shares the lock and would hold it beyond the death of the run.
    for file in _held_locks:
        file.close()
    _held_locks.clear()


os.register_at_fork(after_in_child=_drop_locks_in_child)


def saved_steps(checkpoints: Path) -> list[int]:
    """Steps of the finished checkpoints in this folder, ascending; damaged ones are included."""
    if not checkpoints.is_dir():
        return []
    names = (entry.name for entry in checkpoints.iterdir() if entry.is_dir())
    return sorted(int(name) for name in names if _STEP.fullmatch(name))


def sync_folder(folder: Path) -> None:
    """Make the names inside `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path, text: str) -> None:
    """Replace `path` by `text` (UTF-8): a reader sees the old or the new content, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def full_names(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings as config.json holds them -> by names as env.id."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= full_names(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


class RunFolder:
    """A run's folder, locked for this process until `close()` or the end of the process.

    Use `RunFolder.create` for a new run and `RunFolder.open` to resume; both return a context
    manager. `path` is the folder, absolute.
    """

    def __init__(self, path: Path, exclusive: bool = True) -> None:
        """Take the folder `path`, which must exist; `exclusive=False` only reads, with no lock.

        Raises InUse when another process holds the lock.
        """
        self.path = Path(path).resolve()
        self._lock = _acquire(self.path) if exclusive else None

    @classmethod
    def create(cls, out: Path | None, default_name: str) -> RunFolder:
        """Make a new run's folder: `out`, or `runs/<default_name>-<timestamp>` when it is None.

        Raises UserError when `out` already holds a run (HoldsRun), is in use (InUse), or cannot be
        written.
        """
        try:
            path = _fresh_default(default_name) if out is None else Path(out)
            path.mkdir(parents=True, exist_ok=True)
            # Looked at before the lock too, so that a refused folder is left as it was.
            _refuse_used(path)
            folder = cls(path)
        except OSError as error:
            where = "runs/" if out is None else out
            raise UserError(
                f"cannot write the run folder {where} ({error.strerror or error}); "
                "choose a writable folder with --out"
            ) from error
        try:
            _refuse_used(path)
        except UserError:
            folder.close()
            raise
        return folder

    @classmethod
    def open(cls, path: Path, exclusive: bool = True) -> RunFolder:
        """Take the folder of an existing run, to resume it (or read it: `exclusive=False`).

        Raises UserError when it is missing, holds no run, or is in use by another process.
        """
        path = Path(path)
        if not path.is_dir():
            raise UserError(f"no run folder at {path}; give the folder that an earlier --out made")
        if not (path / CONFIG_NAME).is_file():
            raise UserError(f"{path} holds no run ({CONFIG_NAME} is missing); give a run's folder")
        try:
            return cls(path, exclusive)
        except OSError as error:
            raise UserError(
                f"cannot write the run folder {path} ({error.strerror or error}); "
                "make it writable, or copy the run to a writable folder and resume there"
            ) from error

    def save_config(self, config: dict[str, Any]) -> None:
        """Write config.json atomically; values that JSON lacks (paths) are written as strings."""
        text = json.dumps(config, indent=2, default=str) + "\n"
        write_atomic(self.path / CONFIG_NAME, text)

    def load_config(self) -> dict[str, Any]:
        """Read config.json. Raises UserError when it is missing or damaged."""
        path = self.path / CONFIG_NAME
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(
                f"cannot read {path} ({error}); restore it from a copy or start a new run "
                "with another --out"
            ) from error
        if not isinstance(config, dict):
            raise UserError(f"{path} is no JSON object; restore it from a copy")
        return config

    def close(self) -> None:
        """Give the lock back; the folder and its files stay."""
        if self._lock is not None:
            _held_locks.discard(self._lock)
            self._lock.close()
            self._lock = None

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _fresh_default(name: str) -> Path:
    """Make `runs/<name>-<timestamp>`, numbered when two runs start in the same second."""
    stem = f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    number = 1
    while True:
        path = Path("runs") / (stem if number == 1 else f"{stem}-{number}")
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:
            number += 1


def _refuse_used(path: Path) -> None:
    if any((path / mark).exists() for mark in RUN_MARKS):
        raise HoldsRun(
            f"{path} already holds a run; choose another folder with --out, "
            f"or continue that run with --resume {path}"
        )


def _acquire(path: Path) -> TextIO:
    """Lock `path`/lock and write this process id into it. Raises InUse when it is held."""
    file = (path / LOCK_NAME).open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        holder = file.read().strip() or "unknown"
        file.close()
        raise InUse(
            f"{path} is in use by process {holder}; wait for it, stop it, "
            "or choose another folder with --out"
        ) from error
    except OSError:
        file.close()
        raise
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    _held_locks.add(file)
    return file
