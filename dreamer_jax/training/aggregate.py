"""The run over all seeds: interquartile mean and band of what the learners log one by one."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dreamer_jax.errors import UserError
from dreamer_jax.training.comparison import THRESHOLD, WINDOW, SeedRun, compare_groups
from dreamer_jax.training.comparison_figure import comparison_figure
from dreamer_jax.training.figures import read_episode_curve, task_name
from dreamer_jax.training.logging import METRICS_NAME, RunLogger
from dreamer_jax.training.members import Member
from dreamer_jax.training.statistics import bootstrap_interval, interquartile_mean
from envs import RACE

AGGREGATE_NAME = "aggregate"


def aggregates(
    folder: Path,
    members: Sequence[Member],
    folders: Sequence[Path],
    resume_frames: Sequence[int] | None,
) -> list[Aggregate]:
    """One for each swept setting; `folders` and `resume_frames` are those of the members."""
    made = []
    for setting in dict.fromkeys(member.setting for member in members):
        own = [i for i, member in enumerate(members) if member.setting == setting]
        made.append(
            Aggregate(
                folder / setting / AGGREGATE_NAME,
                setting,
                {i: folders[i] for i in own},
                [members[i].seed for i in own],
                None if resume_frames is None else int(np.mean([resume_frames[i] for i in own])),
            )
        )
    return made


class Aggregate:
    """Logs the learners of one setting into `folder`; `members` are their numbers and folders.

    Steps are the mean of the learners' environment frames.
    """

    def __init__(
        self,
        folder: Path,
        setting: str,
        members: Mapping[int, Path],
        seeds: Sequence[int],
        resume: int | None,
    ) -> None:
        self.setting, self.members, self.seeds = setting, members, seeds
        self.logger = RunLogger(folder, resume)
        self.recent = {i: deque(_last_returns(path), maxlen=WINDOW) for i, path in members.items()}

    def episode(self, learner: int, reward: float) -> None:
        """A finished episode of a learner, of this setting or another."""
        if learner in self.recent:
            self.recent[learner].append(reward)

    def cycle(self, frames: np.ndarray, healthy: np.ndarray) -> None:
        """Figures over the healthy learners that have finished an episode; frames, healthy [S]."""
        means = [np.mean(r) for i, r in self.recent.items() if r and healthy[i]]
        figures = {"learners/healthy": float(np.sum(healthy[list(self.members)]))}
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
        self.logger.scalars(self._step(frames), figures)

    def evaluation(self, frames: np.ndarray, returns: np.ndarray, healthy: np.ndarray) -> None:
        """Held-out returns [S, n] of the healthy [S]."""
        means = [returns[i].mean() for i in self.members if healthy[i]]
        if not means:
            return
        figures = {"eval/return_iqm": interquartile_mean(means)}
        if len(means) > 1:
            low, high = bootstrap_interval(means, interquartile_mean, resamples=2000)
            figures |= {"eval/return_iqm_low": low, "eval/return_iqm_high": high}
        self.logger.scalars(self._step(frames), figures)

    def _step(self, frames: np.ndarray) -> int:
        return int(frames[list(self.members)].mean())

    def runs(self, healthy: np.ndarray) -> list[SeedRun]:
        """The curves of its healthy learners, as far as they have any; healthy [S]."""
        own = [
            (seed, path)
            for seed, (i, path) in zip(self.seeds, self.members.items(), strict=True)
            if healthy[i]
        ]
        runs = [
            SeedRun(seed, *read_episode_curve(path / METRICS_NAME), source=str(path))
            for seed, path in own
        ]
        return [run for run in runs if len(run.frames)]


def draw_all(
    folder: Path,
    parts: Sequence[Aggregate],
    name: str,
    task: str,
    healthy: np.ndarray,
) -> None:
    """<run>/return.png: a line per healthy [S] learner, interquartile mean and band of each
    setting."""
    groups = {part.setting or name: part.runs(healthy) for part in parts}
    groups = {setting: runs for setting, runs in groups.items() if runs}
    if not groups:
        print("no figure over all learners: none of them has finished an episode")
        return
    threshold = THRESHOLD if task == task_name(RACE) else math.inf  # of other returns none is known
    try:
        comparison_figure(folder / "return.png", compare_groups(groups, threshold), task)
    except (UserError, ValueError) as error:
        print(f"no figure over all learners: {error}")


def _last_returns(folder: Path) -> np.ndarray:
    path = folder / METRICS_NAME
    return read_episode_curve(path)[1][-WINDOW:] if path.exists() else np.zeros(0)
