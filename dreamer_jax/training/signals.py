"""Ctrl-C and SIGTERM: finish the cycle, save, leave."""

from __future__ import annotations

import contextlib
import signal
import sys


class StopRequest:
    """While open, the first signal only sets `requested`; a second Ctrl-C interrupts at once.

    `code` is the exit status by the shell's convention: 128 + signal.
    """

    def __init__(self) -> None:
        self.requested = False
        self.code = 0

    def __enter__(self) -> StopRequest:
        self._old = {
            number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: object) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested, self.code = True, 128 + number
        with contextlib.suppress(OSError, RuntimeError, ValueError):  # Ctrl-C ended `tee` too
            print(
                "\nstopping: what is under way is finished and saved first "
                "(Ctrl-C again leaves at once)",
                file=sys.stderr,
                flush=True,
            )
