"""Compiled programs are kept between processes, so that a second start need not compile again."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import sys
import tempfile
import zlib
from pathlib import Path

import jax

from envs.cores import own_cores

LEAST_SECONDS = 0.3  # every program of a run takes longer; below are dozens of tiny ones
MOST_BYTES = 2**30  # one run keeps a few MiB


def enable_cache() -> Path | None:
    """Turn on JAX's cache of compiled programs; call it before anything large is compiled.

    They lie in ($XDG_CACHE_HOME or ~/.cache)/dreamer-jax/xla, in a folder of its own for each kind
    of processor and number of cores; those not used for longest are deleted once all are more than
    `MOST_BYTES`. If JAX was given a folder (JAX_COMPILATION_CACHE_DIR) or its cache was turned off,
    its settings stay as they are. DREAMER_JAX_NO_CACHE=1 stops ours. A place that cannot be
    written is said in one line on stderr, and the program goes on without.

    Returns:
      the folder in use, None without one.
    """
    if not jax.config.jax_enable_compilation_cache:
        return None
    if jax.config.jax_compilation_cache_dir:
        return Path(jax.config.jax_compilation_cache_dir)
    if os.environ.get("DREAMER_JAX_NO_CACHE", "0") not in ("", "0"):
        return None
    try:
        folder = _prepared(_cache_home() / "dreamer-jax" / "xla")
    except (OSError, RuntimeError) as error:  # RuntimeError: this user has no home
        print(
            f"warning: compiled programs are not kept ({error}): set XDG_CACHE_HOME to a folder "
            "that can be written, or DREAMER_JAX_NO_CACHE=1",
            file=sys.stderr,
        )
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", LEAST_SECONDS)
    return folder


def _cache_home() -> Path:
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return given if given.is_absolute() else Path.home() / ".cache"


def _prepared(root: Path) -> Path:
    """The folder in `root` for this machine: writable, without damaged entries, not too large."""
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder = root / _processor()
    folder.mkdir(exist_ok=True, mode=0o700)  # whoever writes here runs programs as this user
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"x")
    _drop_damaged(folder)
    _prune(root, MOST_BYTES)
    return folder


def _processor() -> str:
    """Names what programs are compiled for; JAX's own key knows nothing of the number of cores.

    One compiled on a single core would use a single core wherever it is loaded.
    """
    cores = len(own_cores()) or os.cpu_count()
    text = [os.environ.get(name, "") for name in ("NPROC", "PJRT_NPROC")]  # XLA heeds them
    text += [platform.machine(), platform.processor()]
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        text += sorted({x for x in file if x.startswith(("model name", "flags", "Features"))})
    return f"{cores}-cores-{hashlib.sha256('|'.join(text).encode()).hexdigest()[:8]}"


def _drop_damaged(folder: Path) -> None:
    """Delete what a killed process or a full disk left half written: JAX never replaces it.

    Reads only what was written since the last call. With zstandard installed entries are of
    another format; JAX's warning is then all there is.
    """
    marker = folder / ".checked"
    since = marker.stat().st_mtime_ns if marker.exists() else 0
    marker.touch()  # first: what is being written now is for the next call
    for entry in folder.glob("*-cache"):
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            if entry.stat().st_mtime_ns >= since and not _is_whole(entry.read_bytes()):
                entry.unlink()


def _is_whole(data: bytes) -> bool:
    if data[:1] not in (b"", b"\x78"):  # not zlib
        return True
    stream = zlib.decompressobj()
    try:
        stream.decompress(data)
    except zlib.error:
        return False
    return stream.eof


def _prune(root: Path, most: int) -> None:
    """Delete the files used least recently until those left hold `most` bytes or fewer.

    JAX's own limit needs the package filelock and a second file an entry.
    """
    files = []
    for path in root.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            if path.is_file():
                stat = path.stat()
                files.append((max(stat.st_atime, stat.st_mtime), stat.st_size, path))
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files, key=lambda file: file[0]):
        if total <= most:
            return
        path.unlink(missing_ok=True)
        total -= size
