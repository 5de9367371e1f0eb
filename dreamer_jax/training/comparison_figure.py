"""The picture of a comparison: learning curves with bands, and held-out returns beside them."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dreamer_jax.training.comparison import WINDOW, Comparison, Group

# Okabe and Ito: told apart by colour-blind readers too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def comparison_figure(path: Path, comparison: Comparison, task: str = "CarRacing-v3") -> None:
    """Write a PNG: return over environment frames on the left, held-out returns on the right.

    Left: one thin line per seed, the interquartile mean over seeds as a thick one, its 95%
    bootstrap interval as a band, a finite threshold as a dashed line. Right: one point per seed,
    the interquartile mean with its interval beside them. A group of one seed has no interval.
    """
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 1.2))
    _curves(left, comparison)
    _held_out(right, comparison)
    counts = ", ".join(f"{name} {seeds(g)}" for name, g in comparison.groups.items())
    figure.suptitle(f"{task}: {counts}", wrap=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", dpi=130)


def seeds(group: Group) -> str:
    """How many seeds a group has, in words."""
    return "1 seed" if len(group.runs) == 1 else f"{len(group.runs)} seeds"


def _curves(axes: Axes, comparison: Comparison) -> None:
    for (name, group), colour in _coloured(comparison):
        for curve in group.curves:
            axes.plot(comparison.grid, curve, color=colour, linewidth=0.7, alpha=0.45)
        if group.band is not None:
            axes.fill_between(comparison.grid, *group.band, color=colour, alpha=0.18, linewidth=0)
        label = f"{name} (n = {seeds(group)})" + ("" if group.band else ", no interval")
        axes.plot(comparison.grid, group.curve, color=colour, linewidth=2.2, label=label)
    _threshold(axes, comparison.threshold)
    axes.set(
        xlabel="environment frames",
        ylabel=f"return (reward sum), mean of {WINDOW} episodes",
        title="training: interquartile mean over seeds, 95% bootstrap band",
    )
    axes.title.set_size("medium")
    axes.margins(x=0.01)
    axes.grid(alpha=0.3)
    axes.legend(loc="best", fontsize="small")


def _threshold(axes: Axes, value: float) -> None:
    if math.isfinite(value):
        axes.axhline(value, color="0.35", linewidth=1, linestyle="--", label=f"threshold {value:g}")


def _held_out(axes: Axes, comparison: Comparison) -> None:
    for at, ((_, group), colour) in enumerate(_coloured(comparison)):
        points = np.array(list(group.scores["held_out"].values()))
        if not points.size:
            axes.text(at, 0.5, "none", ha="center", transform=axes.get_xaxis_transform())
            continue
        # Side by side, so that equal seeds do not hide each other.
        places = at - 0.15 + 0.12 * np.linspace(-1, 1, len(points)) * (len(points) > 1)
        axes.plot(places, points, "o", color=colour, alpha=0.55, markersize=5, linewidth=0)
        summary = group.summaries["held_out"]
        low, high = summary.iqm_interval or (summary.iqm, summary.iqm)
        error = [[summary.iqm - low], [high - summary.iqm]] if summary.iqm_interval else None
        axes.errorbar(
            [at + 0.2], [summary.iqm], error, fmt="D", color=colour, capsize=4, markersize=6
        )
    _threshold(axes, comparison.threshold)
    names = [
        textwrap.fill(name, max(8, 32 // len(comparison.groups))) for name in comparison.groups
    ]
    axes.set_xticks(range(len(names)), names, **({"rotation": 90} if len(names) > 4 else {}))
    axes.set(
        xlim=(-0.5, len(names) - 0.5),
        xlabel="points: seeds; diamond: interquartile mean",
        title=_held_out_title(comparison),
    )
    axes.title.set_size("medium")
    axes.xaxis.label.set_size("small")
    axes.grid(alpha=0.3, axis="y")
    axes.tick_params(labelleft=True)


def _held_out_title(comparison: Comparison) -> str:
    runs = [run for group in comparison.groups.values() for run in group.runs]
    counts = sorted({len(run.held_out) for run in runs if run.held_out is not None})
    if not counts:
        return "no held-out evaluation"
    return f"after training: {' or '.join(map(str, counts))} held-out episodes"


def _coloured(comparison: Comparison):
    groups = comparison.groups.items()
    return zip(groups, (COLOURS[i % len(COLOURS)] for i in range(len(groups))), strict=True)
