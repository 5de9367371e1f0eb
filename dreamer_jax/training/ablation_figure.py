"""The picture of an ablation: what each learner made without each part."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dreamer_jax.training.comparison_figure import COLOURS


def ablation_figure(path: Path, returns: Mapping[str, np.ndarray], least: float | None) -> None:
    """Write a PNG: a row a part that was left out, the whole agent first.

    returns: [n seeds, m tracks] by part. Points are seeds, diamonds their means; the band reaches
    as far from the whole agent's as a mean of so many seeds must lie to differ (None: no band).
    """
    figure = Figure(figsize=(8, 1.2 + 0.32 * len(returns)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    means = [own.mean(axis=1) for own in returns.values()]
    whole = means[0].mean()
    axes.axvline(whole, color="0.35", linewidth=1, linestyle="--")
    if least is not None:
        label = "no difference that these seeds could show"
        axes.axvspan(whole - least, whole + least, color="0.5", alpha=0.15, lw=0, label=label)
    for row, seeds in enumerate(means):
        colour = COLOURS[0] if row == 0 else COLOURS[1]
        axes.plot(seeds, np.full(len(seeds), row), "o", color=colour, alpha=0.5, markersize=5)
        axes.plot(seeds.mean(), row, "D", color=colour, markersize=8, markerfacecolor="none")
    axes.set_yticks(range(len(returns)), list(returns))
    axes.invert_yaxis()
    tracks = len(next(iter(returns.values()))[0])
    axes.set(
        xlabel=f"return over {tracks} held-out episodes; points: seeds, diamond: their mean",
        ylabel="left out",
    )
    axes.grid(alpha=0.3, axis="x")
    if least is not None:
        axes.legend(loc="best", fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", dpi=130)
