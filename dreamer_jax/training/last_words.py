"""What a program that failed said last, as one line."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

MOST = 300  # characters of it


def last_line(log: Path) -> str:
    """The last line that says something: of a progress bar its last state, of a frame with a title
    its first paragraph."""
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    # A progress bar writes many states into one line.
    lines = [line.rsplit("\r", 1)[-1].strip() for line in lines if line.strip()]
    if lines and lines[-1].startswith("╰"):
        top = next((i for i in reversed(range(len(lines))) if lines[i].startswith("╭")), 0)
        return unframed("\n".join(lines[top:]))[:MOST]
    return lines[-1][:MOST] if lines else ""


def unframed(text: str) -> str:
    """The first paragraph, as one line, of what tyro puts into a frame with a title."""
    lines = [line.strip("│ ") for line in text.splitlines()[1:]]
    paragraphs = itertools.groupby(lines, lambda line: bool(re.fullmatch("[─╰╯-]{9,}", line)))
    return " ".join(next((part for rule, part in paragraphs if not rule), ()))
