"""Memory in pages of 2 MiB, where Linux gives them only to programs that ask.

An update's working memory comes fresh from the system with each dispatch; in pages of 4 KiB the
first touch of 190 MiB costs more than a third of an update on a CPU. glibc asks for large pages
when told so before the process starts, hence the restart.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

MODE = Path("/sys/kernel/mm/transparent_hugepage/enabled")
NAME, TUNABLE = "GLIBC_TUNABLES", "glibc.malloc.hugetlb"


def restart_with_huge_pages() -> None:
    """Start this process anew, same arguments and process number, if that brings large pages.

    Call it first thing. Nothing happens where large pages are given to all or to none, where the
    user has set the tunable (`glibc.malloc.hugetlb=0` keeps small ones), or without Linux.
    """
    environment = wanted(os.environ, MODE)
    if environment is not None:
        sys.stdout.flush()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def wanted(environment: Mapping[str, str], mode: Path) -> dict[str, str] | None:
    """The environment to start anew with; None: stay."""
    tunables = environment.get(NAME, "")
    if sys.platform != "linux" or TUNABLE in tunables:
        return None
    try:
        if "[madvise]" not in mode.read_text():
            return None
    except OSError:
        return None
    return {**environment, NAME: ":".join(filter(None, [tunables, f"{TUNABLE}=1"]))}
