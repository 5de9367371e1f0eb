"""The run over all seeds: interquartile mean and band of what the learners log one by one."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dreamer_jax.errors import UserError
from dreamer_jax.training.comparison import SeedRun, compare_groups
from dreamer_jax.training.comparison_figure import comparison_figure
from dreamer_jax.training.figures import read_episode_curve
from dreamer_jax.training.logging import METRICS_NAME, RunLogger
from dreamer_jax.training.statistics import bootstrap_interval, interquartile_mean

WINDOW = 10  # episodes behind each learner's figure
AGGREGATE_NAME = "aggregate"


class Aggregate:
    """Logs into <run>/aggregate. Steps are the mean of the learners' environment frames."""

    def __init__(
        self, folder: Path, folders: Sequence[Path], seeds: Sequence[int], resume: int | None
    ) -> None:
        self.folder, self.folders, self.seeds = folder, folders, seeds
        self.logger = RunLogger(folder / AGGREGATE_NAME, resume)
        self.recent = [deque(_last_returns(path), maxlen=WINDOW) for path in folders]

    def episode(self, learner: int, reward: float) -> None:
        """A finished episode of a learner."""
        self.recent[learner].append(reward)

    def cycle(self, frames: np.ndarray, healthy: np.ndarray) -> None:
        """Figures over the healthy learners that have finished an episode; frames, healthy [S]."""
        means = [np.mean(r) for r, ok in zip(self.recent, healthy, strict=True) if r and ok]
        figures = {"learners/healthy": float(np.sum(healthy))}
        if means:
            figures |= {
                "episode/return_iqm": interquartile_mean(means),
                "episode/return_mean": float(np.mean(means)),
                "episode/return_min": float(np.min(means)),
                "episode/return_max": float(np.max(means)),
            }
        if len(means) > 1:
            low, high = bootstrap_interval(means, interquartile_mean, resamples=2000)
            figures |= {"episode/return_iqm_low": low, "episode/return_iqm_high": high}
        self.logger.scalars(int(frames.mean()), figures)

    def evaluation(self, frames: np.ndarray, returns: np.ndarray) -> None:
        """Held-out returns [S, n]."""
        means = returns.mean(axis=1)
        low, high = bootstrap_interval(means, interquartile_mean, resamples=2000)
        figures = {"eval/return_iqm": interquartile_mean(means)}
        figures |= {"eval/return_iqm_low": low, "eval/return_iqm_high": high}
        self.logger.scalars(int(frames.mean()), figures)

    def finish(self, name: str, threshold: float = 500.0) -> None:
        """<run>/return.png: one line per seed, interquartile mean and band."""
        runs = []
        for seed, path in zip(self.seeds, self.folders, strict=True):
            frames, returns = read_episode_curve(path / METRICS_NAME)
            if len(frames):
                runs.append(SeedRun(seed, frames, returns, source=str(path)))
        try:
            comparison_figure(self.folder / "return.png", compare_groups({name: runs}, threshold))
        except (UserError, ValueError) as error:
            print(f"no figure over all seeds: {error}")


def _last_returns(folder: Path) -> np.ndarray:
    path = folder / METRICS_NAME
    return read_episode_curve(path)[1][-WINDOW:] if path.exists() else np.zeros(0)
