"""Will the replay fit?"""

from __future__ import annotations

import math
import os
from pathlib import Path, PurePosixPath

from dreamer_jax.errors import UserError

GIB = 2**30
LIMIT = "DREAMER_JAX_MEMORY"  # variable: of the machine's memory this process takes no more bytes
SHARE = 0.8  # of what is free; activations need the rest
MOST_OF_GPU = 0.9  # of its memory; the driver and CUDA's context need some too
GROUPS, OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
# Of a control group: its limit, what it uses, and what of that the system takes back at need.
VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
VERSION_2 = ("memory.max", "memory.current", "inactive_file")


def free_bytes() -> int:
    """Free memory where the replay will lie: the accelerator's, or the machine's on a CPU.

    Of the machine's no more than a container or a batch system leaves to this process.
    """
    return free_memory()[0]


def free_memory() -> tuple[int, str]:
    """`free_bytes`, and what bounds them as a message puts it.

    Raises:
      UserError: LIMIT is not a number of bytes.
    """
    if stats := _of_device():
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0), "free"
    return _of_machine()


def _of_machine() -> tuple[int, str]:
    bounds = (
        (machine_bytes(), "free"),
        (container_bytes(GROUPS, OWN_GROUPS), "free below this container's limit (cgroup)"),
        (_told(), f"this process's share ({LIMIT})"),
    )
    room, bound = min(bounds, key=lambda pair: pair[0])
    return int(room), bound


def _of_device() -> dict[str, int]:
    """What an accelerator says of its own memory; nothing where learners lie in the machine's."""
    import jax  # here: a comparison needs the machine's memory alone, and no second for JAX

    stats = jax.local_devices()[0].memory_stats() or {}
    return stats if "bytes_limit" in stats else {}


def share(processes: int) -> int:
    """Of the machine's memory that is free now, bytes for each of so many processes.

    Raises:
      UserError: as `free_memory`.
    """
    return _of_machine()[0] // processes


def part_of_accelerator(part: float) -> dict[str, str]:
    """Variables by which a process that starts takes no more than this part of an accelerator's
    memory, however much is free when it asks. (JAX's own bound is three quarters for each.)
    """
    return {"XLA_PYTHON_CLIENT_MEM_FRACTION": f"{MOST_OF_GPU * part:.2f}"}


def _told() -> float:
    told = os.environ.get(LIMIT, "")
    if told and not told.isdecimal():
        raise UserError(f"{LIMIT}={told} is not a number of bytes; give one, or unset it")
    return int(told) if told else math.inf


def machine_bytes() -> int:
    """Free memory of the whole machine; all it has where the system does not say."""
    try:
        with open("/proc/meminfo") as file:
            fields = dict(line.split(":", 1) for line in file)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def container_bytes(groups: Path, own: Path) -> float:
    """Free memory below the limits on this process's control groups; inf: there are none.

    Args: `groups` is where they are mounted; `own` lists those of this process, a line each:
    number:controllers:path, version 2 without controllers.
    """
    try:
        lines = own.read_text().splitlines()
    except OSError:  # not on Linux
        return math.inf
    rooms = [math.inf]
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root, names = (groups / "memory", VERSION_1) if controllers else (groups, VERSION_2)
        parts = PurePosixPath(path).parts[1:]
        # A limit holds for all groups within. In a container the path may be the host's, and then
        # is not there: the container's own group is the root.
        rooms += [_room(root.joinpath(*parts[:n]), *names) for n in range(len(parts) + 1)]
    return min(rooms)


def _room(group: Path, limit: str, used: str, cache: str) -> float:
    try:
        most, taken = (int((group / name).read_text()) for name in (limit, used))
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return most - taken + int(stat.get(cache, 0))
    except (OSError, ValueError):  # no such group, or the word "max" for a limit
        return math.inf


def plan(learners: int, ring: int, state: int, devices: int = 1) -> str:
    """What `learners` learners with a replay of `ring` and a state of `state` bytes each will take,
    so many on each of `devices` devices, which on a CPU have one memory.

    Whatever writes a checkpoint, or goes on from one, holds the replay twice for a while.

    Raises:
      UserError: they do not fit; names the largest number of learners or the replay that does.
    """
    (free, bound), each = free_memory(), 2 * ring + state
    room = int(SHARE * free // each)
    if devices > 1 and not _of_device():
        learners, devices = learners * devices, 1
    where = f" on each of {devices} devices" if devices > 1 else ""
    sizes = (
        f"{learners} learner{'s' * (learners > 1)}{where} of {each / GIB:.2f} GiB (replay "
        f"{ring / GIB:.2f} and once more for checkpoints, parameters and optimisers "
        f"{state / GIB:.2f}); {free / GIB:.1f} GiB are {bound}, a fifth of which is for the rest"
    )
    if learners <= room:
        return f"memory:     {sizes}; up to {devices * room} would fit"
    if room >= 1:
        most = f"{room} or fewer" if devices == 1 else f"{devices} or up to {room} times as many"
        raise UserError(
            f"{sizes}: use {most} with --seeds (times the values of --sweep), or lower --replay; "
            "in sweep.py --group, or raise its --cpus"
        )
    part = (SHARE * free - state) / (2 * ring)
    if part <= 0:
        raise UserError(f"{sizes}: the networks alone do not fit")
    if (percent := math.floor(100 * part)) < 1:
        raise UserError(f"{sizes}: lower --replay to less than a hundredth of its value")
    raise UserError(f"{sizes}: lower --replay to {percent}% of its value, or less")
