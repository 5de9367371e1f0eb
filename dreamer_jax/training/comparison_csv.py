"""Episodes of a comparison as CSV files, to keep results where run folders are too large.

curves.csv     group,seed,episode,frames,return    one line per training episode
held_out.csv   group,seed,track,return             one line per held-out episode
"""

from __future__ import annotations

import csv
import io
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dreamer_jax.errors import UserError
from dreamer_jax.training.comparison import SeedRun
from dreamer_jax.training.run_folder import write_atomic

CURVE_COLUMNS = ("group", "seed", "episode", "frames", "return")
HELD_OUT_COLUMNS = ("group", "seed", "track", "return")

Episodes = dict[int, tuple[np.ndarray, np.ndarray]]  # seed -> (int [n], returns [n])


def write_curves(path: Path, groups: Mapping[str, Sequence[SeedRun]]) -> None:
    """Every training episode; `read_csv` gives it back to the last bit."""
    rows = [
        (name, run.seed, number, int(frames), float(value))
        for name, runs in groups.items()
        for run in runs
        for number, (frames, value) in enumerate(zip(run.frames, run.returns, strict=True), 1)
    ]
    write_csv(path, CURVE_COLUMNS, rows)


def write_held_out(path: Path, groups: Mapping[str, Sequence[SeedRun]]) -> None:
    """Every held-out episode; an earlier file goes where there is none."""
    rows = [
        (name, run.seed, int(track), float(value))
        for name, runs in groups.items()
        for run in runs
        if run.held_out is not None
        for track, value in zip(run.tracks, run.held_out, strict=True)
    ]
    if rows:
        write_csv(path, HELD_OUT_COLUMNS, rows)
    else:
        path.unlink(missing_ok=True)


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Comma-separated, one header line; None becomes an empty cell. An earlier file is replaced
    whole or not at all: it may be all that is left of its runs."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    write_atomic(path, text.getvalue())


def read_csv(path: Path, group: str) -> tuple[bool, Episodes]:
    """Whether the file is of held-out episodes, and those of `group`.

    The integers are tracks if so, else frames, ascending. Where the file has one group only, that
    is taken whatever its name.

    Raises:
      UserError: not such a file, no such group, or a damaged line.
    """
    columns, rows = _rows(path)
    names = _names(rows)
    if group not in names and len(names) != 1:
        raise UserError(
            f"{path} holds no group {group} but {', '.join(names) or 'nothing'}; use such a name"
        )
    wanted = group if group in names else names[0]
    key = "track" if "track" in columns else "frames"
    episodes = defaultdict(list)
    for line, row in rows:
        if row["group"] == wanted:
            seed, at = (_whole(path, line, column, row[column]) for column in ("seed", key))
            episodes[seed].append((at, _number(path, line, "return", row["return"])))
    for pairs in episodes.values():
        pairs.sort(key=lambda pair: pair[0])  # stable: episodes that end side by side stay so
    return key == "track", {
        seed: (np.array([at for at, _ in pairs]), np.array([value for _, value in pairs]))
        for seed, pairs in sorted(episodes.items())
    }


def group_names(path: Path) -> list[str]:
    """Of such a file, in its order. Raises UserError as `read_csv`."""
    return _names(_rows(path)[1])


def _names(rows: Iterable[tuple[int, dict[str, Any]]]) -> list[str]:
    return list(dict.fromkeys(row["group"] for _, row in rows))


def _rows(path: Path) -> tuple[tuple[str, ...], list[tuple[int, dict[str, Any]]]]:
    """The columns, and each line with its number."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            columns, rows = tuple(reader.fieldnames or ()), list(enumerate(reader, 2))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path} ({error}); give a curves.csv of compare.py") from error
    if columns not in (CURVE_COLUMNS, HELD_OUT_COLUMNS):
        raise UserError(
            f"{path} was not written by compare.py: its columns are {', '.join(columns)}, not "
            f"{', '.join(CURVE_COLUMNS)}"
        )
    return columns, rows


def _number(path: Path, line: int, column: str, text: str | None) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{path} line {line}: {column} is '{text}', no number; restore the file")
    return value


def _whole(path: Path, line: int, column: str, text: str | None) -> int:
    value = _number(path, line, column, text)
    if not value.is_integer() or value < 0:
        raise UserError(f"{path} line {line}: {column} is '{text}'; use 0, 1, 2, ...")
    return int(value)
