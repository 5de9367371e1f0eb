"""What a disk that is full, or that may not be written, means to the user."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from dreamer_jax.errors import UserError

FULL = (errno.ENOSPC, errno.EDQUOT)
REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)


def is_full(error: Exception) -> bool:
    """Whether nothing more fits on the disk; TensorStore says so by its text alone."""
    number = error.errno if isinstance(error, OSError) else None
    return number in FULL or any(os.strerror(code) in str(error) for code in FULL)


def is_refused(error: Exception) -> bool:
    """Whether the system does not let this user at the file."""
    return isinstance(error, OSError) and error.errno in REFUSED


def remedy(error: OSError, go_on: str = "begin again") -> str | None:
    """One line for the user; None for what is no matter of the disk.

    go_on: what to do once the disk is in order.
    """
    if is_full(error):
        return (
            f"the disk is full ({error}); what was saved before is intact: free some space, "
            f"then {go_on}"
        )
    if is_refused(error):
        return (
            f"no access ({error}); give this user the right to it or choose another folder, "
            f"then {go_on}"
        )
    return None


@contextmanager
def explained(go_on: str) -> Iterator[None]:
    """Errors within that are a matter of the disk become a UserError with `remedy`'s line."""
    try:
        yield
    except OSError as error:
        if (line := remedy(error, go_on)) is None:
            raise
        raise UserError(line) from error
