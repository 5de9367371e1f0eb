"""A comparison in words and numbers: table.csv and comparison.md, the same for the same runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dreamer_jax.training.comparison import (
    SPEED,
    WINDOW,
    Bound,
    Comparison,
    Difference,
    Group,
    Interval,
    Pair,
    Reach,
    median_bound,
)
from dreamer_jax.training.comparison_csv import write_csv
from dreamer_jax.training.comparison_data import differing
from dreamer_jax.training.statistics import with_interval

TABLE_COLUMNS = ("score", "statistic", "group", "against", "seeds", "value", "low", "high")
NONE = "–"
FEW = 10  # seeds below which percentile intervals are known to be too narrow


def write_table(path: Path, comparison: Comparison) -> None:
    """One figure a line: of each seed, of each group, of each pair of groups.

    Columns: score, statistic, group, against (pairs only), seeds (`7` names a seed, `n=3` counts
    them, `n=3/4` in pairs, in the order of the columns), value, low, high (95% interval; empty
    where there is none). A value of `>N` is known only to be greater.
    """
    rows: list[Sequence[Any]] = []
    for name, group in comparison.groups.items():
        rows += _seed_rows(name, group)
        rows += _group_rows(name, group)
    for pair in comparison.pairs:
        head = (pair.second, pair.first, f"n={pair.seeds[1]}/{pair.seeds[0]}")
        for statistic in ("mean", "iqm", "probability"):
            found: Difference | None = getattr(pair, statistic)
            if found is not None:
                kind = statistic if statistic == "probability" else f"difference of {statistic}s"
                rows.append((pair.score, kind, *head, found.value, *(found.interval or ("", ""))))
    write_csv(path, TABLE_COLUMNS, rows)


def _seed_rows(name: str, group: Group) -> list[Sequence[Any]]:
    rows = [
        (score, "seed", name, "", seed, value, "", "")
        for score, values in group.scores.items()
        for seed, value in values.items()
    ]
    for run, reach in zip(group.runs, group.reaches, strict=True):
        episodes, frames = reach_cells(reach)
        rows.append(("episodes_to_threshold", "seed", name, "", run.seed, episodes, "", ""))
        rows.append((SPEED, "seed", name, "", run.seed, frames, "", ""))
    return rows


def _group_rows(name: str, group: Group) -> list[Sequence[Any]]:
    rows: list[Sequence[Any]] = []
    for score, s in group.summaries.items():
        head = (name, "", f"n={s.seeds}")
        rows.append((score, "mean", *head, s.mean, *(s.mean_interval or ("", ""))))
        rows.append((score, "iqm", *head, s.iqm, *(s.iqm_interval or ("", ""))))
    head = (name, "", f"n={len(group.runs)}")
    reached, episodes, frames = _reach_summary(group)
    rows.append((SPEED, "share reached", *head, reached / len(group.runs), "", ""))
    rows.append(("episodes_to_threshold", "median", *head, bound_cell(episodes), "", ""))
    return [*rows, (SPEED, "median", *head, bound_cell(frames), "", "")]


def markdown(
    comparison: Comparison, commands: Sequence[str], warnings: Sequence[str], picture: str
) -> str:
    """The report. `commands`: lines that repeat it; `picture`: where the figure lies."""
    groups = comparison.groups
    parts = [
        f"# Comparison: {', '.join(groups)}",
        *(f"**Warning:** {warning}." for warning in warnings),
        f"![return against environment frames]({picture})",
        _table(_group_headings(comparison.threshold), map(_group_cells, groups, groups.values())),
    ]
    if comparison.pairs:
        parts += ["## Pairs", *_pairs(comparison.pairs)]
    parts += [
        "## Seeds",
        _table(_seed_headings(comparison.threshold), _seed_cells(comparison)),
        "## What the figures are",
        _definitions(comparison),
        _settings(comparison),
        "## Commands",
        "```\n" + "\n".join(commands) + "\n```",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def reach_cells(reach: Reach) -> tuple[str, str]:
    """Episodes and frames to the threshold; `>N` for a run of N that never got there."""
    more = "" if reach.reached else ">"
    return f"{more}{reach.episodes}", f"{more}{reach.frames}"


def bound_cell(bound: Bound) -> str:
    """A median, or `>N` where it is only known to be greater."""
    return ("" if bound.exact else ">") + f"{bound.value:.10g}"


def _reach_summary(group: Group) -> tuple[int, Bound, Bound]:
    reached = [reach.reached for reach in group.reaches]
    episodes = median_bound([reach.episodes for reach in group.reaches], reached)
    return sum(reached), episodes, median_bound([r.frames for r in group.reaches], reached)


# ---------------------------------------------------------------- tables


def _group_headings(threshold: float) -> list[str]:
    return [
        "group",
        "seeds",
        "final score",
        "mean along the curve",
        f"reached {threshold:g}",
        "episodes to it (median)",
        "frames to it (median)",
        "held-out episodes",
    ]


def _group_cells(name: str, group: Group) -> list[str]:
    reached, episodes, frames = _reach_summary(group)
    scores = {
        score: _with_interval(s.iqm, s.iqm_interval, ".1f") for score, s in group.summaries.items()
    }
    return [
        name,
        str(len(group.runs)),
        scores["final"],
        scores["area"],
        f"{reached} of {len(group.runs)}",
        bound_cell(episodes),
        bound_cell(frames),
        scores.get("held_out", NONE),
    ]


def _pairs(pairs: Sequence[Pair]) -> list[str]:
    names = {
        "final": "final score",
        "area": "mean along the curve",
        "held_out": "held-out episodes",
        SPEED: "frames to the threshold",
    }
    headings = ["pair", "score", "seeds", "difference of means", "difference of IQMs"]
    rows = [
        [
            f"{pair.second} against {pair.first}",
            names[pair.score],
            f"{pair.seeds[1]} and {pair.seeds[0]}, {'paired' if pair.paired else 'unpaired'}",
            _difference(pair.mean, "+.1f"),
            _difference(pair.iqm, "+.1f"),
            _difference(pair.probability, ".2f"),
        ]
        for pair in pairs
    ]
    table = _table([*headings, "probability to beat it"], rows)
    return [table, "\n".join(f"- {_sentence(pair, names[pair.score])}" for pair in pairs)]


def _sentence(pair: Pair, score: str) -> str:
    chance = pair.probability
    text = (
        f"{score}: a random seed of {pair.second} beats a random seed of {pair.first} with "
        f"probability {_difference(chance, '.2f')}"
    )
    if chance.interval is None:
        return f"{text}. One seed in a group: no interval, nothing can be concluded from it."
    low, high = chance.interval
    if low <= 0.5 <= high:
        return f"{text}. The interval holds 0.5: these seeds do not tell which is better."
    better, other = (pair.second, pair.first) if low > 0.5 else (pair.first, pair.second)
    if low == high:
        return (
            f"{text}. Every seed of {better} beat every seed of {other}; the bootstrap has no "
            "width then, and only the number of seeds says how much that means."
        )
    return f"{text}. The interval lies on the side of {better}."


def _seed_headings(threshold: float) -> list[str]:
    return [
        "group",
        "seed",
        "training episodes",
        "frames",
        "final score",
        "mean along the curve",
        f"episodes to {threshold:g}",
        f"frames to {threshold:g}",
        "held-out episodes",
    ]


def _seed_cells(comparison: Comparison) -> Iterable[list[str]]:
    for name, group in comparison.groups.items():
        for run, reach in zip(group.runs, group.reaches, strict=True):
            held_out = group.scores["held_out"].get(run.seed)
            yield [
                name,
                str(run.seed),
                str(len(run.returns)),
                str(run.frames[-1]),
                f"{group.scores['final'][run.seed]:.1f}",
                f"{group.scores['area'][run.seed]:.1f}",
                *reach_cells(reach),
                NONE if held_out is None else f"{held_out:.1f}",
            ]


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _with_interval(value: float, interval: Interval | None, form: str) -> str:
    return with_interval(value, *(interval or (None, None)), form)


def _difference(found: Difference | None, form: str) -> str:
    return NONE if found is None else _with_interval(found.value, found.interval, form)


# ---------------------------------------------------------------- words


def _definitions(comparison: Comparison) -> str:
    start, end = int(comparison.grid[0]), int(comparison.grid[-1])
    lines = [
        f"Curve of a seed: mean return of its last {WINDOW} training episodes, as a step function "
        f"of environment frames, from {start} to {end} frames (where the shortest run ends). The "
        "episodes of the exploration driver before training are part of it.",
        "Final score: the curve's last value. Mean along the curve: the area under it over its "
        "width.",
        f"Threshold: the first mean of {WINDOW} whole episodes of {comparison.threshold:g} or "
        "more, looked for in the whole of each run. `>N`: not reached within N.",
        "Group figures are interquartile means over seeds (fewer than 4 seeds: plain means) with "
        "95% percentile bootstrap intervals over seeds (Agarwal et al. 2021). Paired: both groups "
        "have the same seeds, and these are drawn together. The probability counts ties half "
        "(Mann-Whitney U / nm); in frames to the threshold a run that never got there ties with "
        "those not known to be faster or slower.",
        _tracks(comparison),
    ]
    sizes = [len(group.runs) for group in comparison.groups.values()]
    if min(sizes) < FEW:
        lines.append(
            f"With fewer than about {FEW} seeds such intervals are too narrow: the real "
            "doubt is larger."
        )
    if len(comparison.groups) > 2:
        lines.append("Several pairs are compared; their intervals are not widened for that.")
    return "\n".join(f"- {line}" for line in lines if line)


def _tracks(comparison: Comparison) -> str:
    runs = [run for group in comparison.groups.values() for run in group.runs]
    tracks = [run.tracks for run in runs if run.tracks is not None]
    if not tracks:
        return "Held-out episodes: none played (evaluate.py writes evaluation.json)."
    every = np.unique(np.concatenate(tracks))
    return (
        f"Held-out episodes: seeds {every[0]} to {every[-1]}, {len(tracks[0])} per run, which "
        "training never sees; no exploration noise. A seed's score is its mean over them."
    )


def _settings(comparison: Comparison) -> str:
    groups = {name: group.runs for name, group in comparison.groups.items()}
    everyone = [run for runs in groups.values() for run in runs]
    between = {
        setting: [
            {str(r.settings[setting]) for r in runs if setting in (r.settings or {})}
            for runs in groups.values()
        ]
        for setting in differing(everyone)
    }
    if not between:
        return ""
    rows = [[k, *(" or ".join(sorted(v)) or NONE for v in values)] for k, values in between.items()]
    return "Settings that are not the same everywhere:\n\n" + _table(["setting", *groups], rows)
