"""The processors that are this process's to use."""

import os


def own_cores() -> list[int]:
    """The processors that this process may run on; empty where the system does not say (macOS)."""
    affinity = getattr(os, "sched_getaffinity", None)
    return sorted(affinity(0)) if affinity else []


def worker_count(environments: int) -> int:
    """How many processes should play so many environments.

    One each, but no more than there are processors of this process's own, or than NPROC says: a
    sweep on CPUs gives that to its groups, and XLA heeds it too.
    """
    cores = len(own_cores()) or os.cpu_count() or 1
    told = os.environ.get("NPROC", "")
    if told.isdecimal():
        cores = min(cores, max(1, int(told)))
    return min(environments, cores)
