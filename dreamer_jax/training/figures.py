"""Pictures of a run: return curves and comparisons of true and predicted frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from dreamer_jax.training.logging import read_metrics
from envs import RACE

CONTEXT_COLOUR = (0, 170, 0)
OPEN_LOOP_COLOUR = (210, 0, 0)
BORDER = 2  # pixels around each tile


def task_name(env_id: str) -> str:
    """What figures call a Gymnasium id: the race by the name of the environment it equals."""
    return "CarRacing-v3" if env_id == RACE else env_id


def read_episode_curve(metrics_jsonl: Path) -> tuple[np.ndarray, np.ndarray]:
    """(frames [n] int, returns [n] float) of the episode lines of a metrics.jsonl.

    An episode line has both `episode/frames_total` (environment frames so far) and
    `episode/return`.
    """
    lines = [
        (line["episode/frames_total"], line["episode/return"])
        for line in read_metrics(metrics_jsonl)
        if "episode/return" in line and "episode/frames_total" in line
    ]
    table = np.asarray(lines, dtype=np.float64).reshape(-1, 2)
    return table[:, 0].astype(np.int64), table[:, 1]


def running_mean(x: ArrayLike, window: int) -> np.ndarray:
    """[n] -> [n]: mean of the last `window` values, of fewer at the start."""
    sums = np.concatenate([[0.0], np.cumsum(np.asarray(x, dtype=np.float64))])
    ends = np.arange(1, sums.size)
    starts = np.maximum(ends - window, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)


def return_curve(
    path: Path, frames: ArrayLike, returns: ArrayLike, title: str, window: int = 10
) -> None:
    """Write a PNG of episode returns [n] over environment frames [n]: dots and running mean."""
    frames, returns = np.asarray(frames), np.asarray(returns, dtype=np.float64)
    order = np.argsort(frames, kind="stable")
    frames, returns = frames[order], returns[order]
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot(frames, returns, ".", color="tab:blue", alpha=0.4, label="episode")
    axes.plot(
        frames,
        running_mean(returns, window),
        color="tab:orange",
        linewidth=2,
        label=f"mean of {window} episodes",
    )
    axes.set(xlabel="environment frames", ylabel="episode return (reward sum)", title=title)
    axes.grid(alpha=0.3)
    axes.legend(loc="best")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", dpi=130)


def strip(truth: ArrayLike, recon: ArrayLike) -> np.ndarray:
    """uint8 [3H, T*W, 3]: rows of truth, reconstruction and absolute error, one column per frame.

    truth, recon: [T, H, W, 3], uint8 or float in [0, 1]. Raises ValueError on unequal shapes.
    """
    rows = _rows(truth, recon, ndim=4)  # [3, T, H, W, 3]
    kinds, steps, height, width, colours = rows.shape
    return rows.transpose(0, 2, 1, 3, 4).reshape(kinds * height, steps * width, colours)


def open_loop_video(truth: ArrayLike, prediction: ArrayLike, context: int) -> np.ndarray:
    """uint8 [T, 3(H+4), N(W+4), 3]: rows of truth, prediction and absolute error, N columns.

    truth, prediction: [N, T, H, W, 3], uint8 or float in [0, 1]. Borders are green in the first
    `context` frames, where the model sees the truth, and red in open loop. Raises ValueError on
    unequal shapes.
    """
    rows = _rows(truth, prediction, ndim=5)  # [3, N, T, H, W, 3]
    edge = (BORDER, BORDER)
    rows = np.pad(rows, ((0, 0), (0, 0), (0, 0), edge, edge, (0, 0)))
    kinds, columns, steps, height, width, colours = rows.shape
    border = np.ones((height, width), bool)
    border[BORDER:-BORDER, BORDER:-BORDER] = False
    rows[:, :, :context, border] = CONTEXT_COLOUR
    rows[:, :, context:, border] = OPEN_LOOP_COLOUR
    video = rows.transpose(2, 0, 3, 1, 4, 5)
    return video.reshape(steps, kinds * height, columns * width, colours)


def grid(rows: ArrayLike) -> np.ndarray:
    """Pictures [R, C, H, W, 3], uint8 or float in [0, 1], as one: uint8 [R*H, C*W, 3]."""
    rows = _as_bytes(rows)
    count, columns, height, width, colours = rows.shape
    return rows.transpose(0, 2, 1, 3, 4).reshape(count * height, columns * width, colours)


def side_by_side(above: ArrayLike, below: ArrayLike) -> np.ndarray:
    """Two rows of N videos [N, T, H, W, 3] as one: uint8 [T, 2*H, N*W, 3]."""
    both = np.stack([_as_bytes(above), _as_bytes(below)])
    return np.stack([grid(both[:, :, t]) for t in range(both.shape[2])])


def _rows(truth: ArrayLike, other: ArrayLike, ndim: int) -> np.ndarray:
    """Truth, the other and their absolute error as uint8, stacked in front."""
    truth, other = _as_bytes(truth), _as_bytes(other)
    if truth.shape != other.shape or truth.ndim != ndim or truth.shape[-1] != 3:
        raise ValueError(f"expected equal image shapes, got {truth.shape} and {other.shape}")
    error = np.abs(truth.astype(np.int16) - other.astype(np.int16)).astype(np.uint8)
    return np.stack([truth, other, error])


def _as_bytes(image: ArrayLike) -> np.ndarray:
    image = np.asarray(image)
    if image.dtype == np.uint8:
        return image
    return np.round(np.clip(image.astype(np.float32), 0.0, 1.0) * 255.0).astype(np.uint8)
