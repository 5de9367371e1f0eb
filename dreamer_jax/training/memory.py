"""Will the replay fit?"""

from __future__ import annotations

import os

import jax

from dreamer_jax.errors import UserError

GIB = 2**30
SHARE = 0.8  # of what is free; activations need the rest


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


def plan(learners: int, ring: int, state: int) -> str:
    """What `learners` learners with a replay of `ring` and a state of `state` bytes each will take.

    Whatever writes a checkpoint, or goes on from one, holds the replay twice for a while.

    Raises:
      UserError: they do not fit; names the largest number of learners or the replay that does.
    """
    free, each = free_bytes(), 2 * ring + state
    room = int(SHARE * free // each)
    sizes = (
        f"{learners} learner{'s' * (learners > 1)} of {each / GIB:.2f} GiB (replay "
        f"{ring / GIB:.2f} and once more for checkpoints, parameters and optimisers "
        f"{state / GIB:.2f}); {free / GIB:.1f} GiB are free, a fifth of which is for the rest"
    )
    if learners <= room:
        return f"memory:     {sizes}; up to {room} would fit"
    if room >= 1:
        raise UserError(f"{sizes}: use {room} or fewer with --seeds, or lower --replay")
    share = (SHARE * free - state) / (2 * ring)
    if share <= 0:
        raise UserError(f"{sizes}: the networks alone do not fit")
    raise UserError(f"{sizes}: lower --replay to {share:.0%} of its value, or less")
