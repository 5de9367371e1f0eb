"""Will the replay fit?"""

from __future__ import annotations

import os

import jax

from dreamer_jax.errors import UserError

GIB = 2**30
SHARE = 0.8  # of what is free; parameters, activations and a checkpoint's copy need the rest


def free_bytes() -> int:
    """Free memory where the replay will lie: the accelerator's, or the machine's on a CPU."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    try:
        with open("/proc/meminfo") as file:
            fields = dict(line.split(":", 1) for line in file)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def check(needed: int) -> None:
    """Raises UserError when a replay of `needed` bytes would not leave room for the rest."""
    free = free_bytes()
    if needed > SHARE * free:
        raise UserError(
            f"the replay needs {needed / GIB:.1f} GiB and only {free / GIB:.1f} GiB are free "
            f"(a fifth of which is for the rest): lower --replay to {SHARE * free / needed:.0%} "
            "of its value, or less"
        )
