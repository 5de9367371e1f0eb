"""Progress bars that outlive whoever reads them."""

from __future__ import annotations

import contextlib
import sys
from typing import Any, TextIO

from tqdm import tqdm


class Terminal:
    """A stream that may be closed at its other end, as Ctrl-C does to `| tee log`: what can no
    longer be written is dropped, and the training goes on to its checkpoint."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """See `TextIO.write`."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """See `TextIO.flush`."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __eq__(self, other: object) -> bool:  # by which tqdm clears its bar for a line above
        return self._stream == getattr(other, "_stream", other)

    __hash__ = object.__hash__


def progress_bar(**options: Any) -> tqdm:
    """On stderr; the options are tqdm's."""
    return tqdm(file=Terminal(sys.stderr), **options)


def say_above(bar: tqdm, text: str) -> None:
    """A line on stdout, above the bar."""
    bar.write(text, file=Terminal(sys.stdout))
