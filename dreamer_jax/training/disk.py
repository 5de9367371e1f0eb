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


@contextmanager
def explained(go_on: str) -> Iterator[None]:
    """Errors within that are a matter of the disk become a UserError of one line.

    go_on: what to do once the disk is in order.
    """
    try:
        yield
    except OSError as error:
        if is_full(error):
            remedy = f"the disk is full ({error}); what was saved before is intact: free some space"
        elif is_refused(error):
            remedy = f"no access ({error}); give this user the right to it or choose another folder"
        else:
            raise
        raise UserError(f"{remedy}, then {go_on}") from error
