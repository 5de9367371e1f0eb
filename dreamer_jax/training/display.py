"""What the user sees: progress bar, TensorBoard, metrics.jsonl, videos, the curve at the end."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dreamer_jax.agents.pictures import CONTEXT
from dreamer_jax.training import figures as draw
from dreamer_jax.training.aggregate import aggregates, draw_all
from dreamer_jax.training.collect import Collected, Episode
from dreamer_jax.training.evaluate import Played
from dreamer_jax.training.logging import METRICS_NAME, RunLogger, mp4
from dreamer_jax.training.members import Member
from dreamer_jax.training.terminal import progress_bar, say_above


class Display:
    """Logs of S learners. Steps on every axis are environment frames of that learner."""

    def __init__(
        self,
        folder: Path,
        members: Sequence[Member],
        cycles: int,
        start: int = 0,
        resume_frames: Sequence[int] | None = None,
        quiet: bool = False,
        fps: float = 12.5,
    ) -> None:
        """`fps`: of videos, decisions per second of game time."""
        self.fps = fps
        self.folder, self.members = folder, members
        self.folders = [folder / member.logs(len(members)) for member in members]
        many = self.folders != [folder]
        resumed = [None] * len(members) if resume_frames is None else resume_frames
        self.loggers = [
            RunLogger(path, None if r is None else int(r))
            for path, r in zip(self.folders, resumed, strict=True)
        ]
        self.aggregates = aggregates(folder, members, self.folders, resume_frames) if many else []
        self.bar = progress_bar(
            total=cycles, initial=start, unit="cycle", disable=quiet, smoothing=0.1
        )
        self.counts = [
            sum(1 for _ in _curve(path)) if resume_frames is not None else 0
            for path in self.folders
        ]
        self.latest: dict[str, str] = {}

    def episodes(self, episodes: list[Episode], healthy: np.ndarray | None = None) -> None:
        """One line per finished episode; nothing of learners that are not `healthy` [S]."""
        for episode in episodes:
            if healthy is not None and not healthy[episode.learner]:
                continue
            for aggregate in self.aggregates:
                aggregate.episode(episode.learner, episode.reward)
            self.counts[episode.learner] += 1
            self.loggers[episode.learner].scalars(
                episode.frames_total,
                {
                    "episode/return": episode.reward,
                    "episode/length": episode.decisions,
                    "episode/frames": episode.frames,
                    "episode/frames_total": episode.frames_total,
                    "episode/progress": episode.progress,
                    "episode/lap": float(episode.lap),
                    "episode/number": self.counts[episode.learner],
                },
            )
            self.latest |= {
                "episode": str(self.counts[episode.learner]),
                "return": f"{episode.reward:.0f}",
            }

    def cycle(
        self,
        number: int,
        collected: Collected,
        frames: np.ndarray,
        table: dict[str, np.ndarray],
        timing: dict[str, float],
        healthy: np.ndarray,
        actions: Sequence[str] | None = None,
    ) -> None:
        """Figures of one cycle: table entries are [M, S]; frames, healthy (before it) [S].

        `actions` are the names of the action's entries; by default their numbers.
        """
        self.episodes(collected.episodes, healthy)
        for aggregate in self.aggregates:
            aggregate.cycle(frames, healthy)
        for s, logger in enumerate(self.loggers):
            if not healthy[s]:
                continue
            means = {name: mean_of_known(values[:, s]) for name, values in table.items()}
            extra = {"train/cycle": number, "train/frames": int(frames[s])}
            logger.scalars(int(frames[s]), means | extra | timing)
            filled = np.arange(collected.chunk.reward.shape[1])[:, None] < collected.count[s]
            taken = collected.chunk.prev_action[s][filled & ~collected.chunk.is_first[s]]
            for i, name in enumerate(actions or range(taken.shape[-1])):
                logger.histogram(int(frames[s]), f"action/{name}", taken[:, i])
        rates = {
            "frames/s": f"{timing['time/frames_per_second']:.0f}",
            "updates/s": f"{timing['time/updates_per_second']:.2f}",
        }
        self.bar.set_postfix(self.latest | rates, refresh=False)
        self.bar.update()

    def report(
        self, frames: np.ndarray, arrays: dict[str, np.ndarray], healthy: np.ndarray
    ) -> None:
        """Pictures of `Agent.report`, leading axis S, of the healthy [S]."""
        for s, logger in enumerate(self.loggers):
            if not healthy[s]:
                continue
            step, data = int(frames[s]), {name: value[s] for name, value in arrays.items()}
            if "truth" in data:  # of agents that see pictures
                _show_model(logger, step, data, self.fps)
            known, guess = data["reward"].ravel(), data["reward_prediction"].ravel()
            logger.scalars(step, {"report/reward_correlation": correlation(known, guess)})
            logger.histogram(step, "report/reward_true", known)
            logger.histogram(step, "report/reward_predicted", guess)
            if "value" in data:  # of agents that have one
                _show_values(logger, step, data["value"], data["return"])
            if "generated" in data:
                _show_generated(logger, step, data, self.fps)

    def evaluation(self, frames: np.ndarray, played: Played, healthy: np.ndarray) -> None:
        """Held-out episodes of the healthy [S]; the video is of the first learner's first track."""
        for s, logger in enumerate(self.loggers):
            if not healthy[s]:
                continue
            returns = played.returns[s]
            logger.scalars(
                int(frames[s]),
                {
                    "eval/return": float(returns.mean()),
                    "eval/return_min": float(returns.min()),
                    "eval/return_max": float(returns.max()),
                    "eval/lap_rate": float(played.laps[s].mean()),
                    "eval/progress": float(played.progress[s].mean()),
                },
            )
        for aggregate in self.aggregates:
            aggregate.evaluation(frames, played.returns, healthy)
        step = int(frames[0])
        if len(played.video):
            self.loggers[0].video(step, "eval/episode", played.video[:150], self.fps)
            try:
                mp4(self.folder / "videos" / f"eval_{step:08d}.mp4", played.video, self.fps)
            except OSError as error:  # no reason to end a training
                self.say(f"warning: no video of this evaluation: {error}")
        self.say(
            f"evaluation at {step} frames: {played.returns[healthy].mean():.0f} over "
            f"{played.returns.shape[1]} held-out episodes"
        )

    def say(self, text: str) -> None:
        """A line above the progress bar."""
        if not self.bar.disable:
            say_above(self.bar, text)

    def finish(self, task: str, name: str, healthy: np.ndarray) -> None:
        """The return curve of each learner, and over those that are healthy [S], as return.png."""
        for path, logger, member in zip(self.folders, self.loggers, self.members, strict=True):
            logger.flush()
            frames, returns = draw.read_episode_curve(path / METRICS_NAME)
            if len(frames):
                title = f"{task}, {name}, {member.label}"
                draw.return_curve(path / "return.png", frames, returns, title)
        if self.aggregates:
            draw_all(self.folder, self.aggregates, name, task, healthy)

    def flush(self) -> None:
        """Make everything so far outlive a kill."""
        for logger in self._all_loggers():
            logger.flush()

    def close(self) -> None:
        """Close every file."""
        self.bar.close()
        for logger in self._all_loggers():
            logger.close()

    def _all_loggers(self) -> list[RunLogger]:
        return [*self.loggers, *(aggregate.logger for aggregate in self.aggregates)]


def _show_model(logger: RunLogger, step: int, data: dict[str, np.ndarray], fps: float) -> None:
    """What the world model makes of the pictures it saw, and those it foretells."""
    every = max(1, len(data["truth"]) // 8)
    logger.image(
        step,
        "model/truth_reconstruction_error",
        draw.strip(data["truth"][::every], data["reconstruction"][::every]),
    )
    logger.video(
        step,
        "model/open_loop",
        draw.open_loop_video(data["open_truth"], data["open_prediction"], CONTEXT),
        fps,
    )


def _show_values(logger: RunLogger, step: int, value: np.ndarray, returns: np.ndarray) -> None:
    """Values of imagined states beside the lambda-returns from there."""
    figures = {"value": value.mean(), "return": returns.mean()}
    figures["value_return_correlation"] = correlation(value, returns)
    logger.scalars(step, {f"report/{name}": float(figure) for name, figure in figures.items()})
    logger.histogram(step, "report/value", value)
    logger.histogram(step, "report/return", returns)


def _show_generated(logger: RunLogger, step: int, data: dict[str, np.ndarray], fps: float) -> None:
    """Generated starts, their latents decoded before and after alignment, and their futures."""
    rows = np.stack([data["generated"], data["generated_before"], data["generated_after"]])
    logger.image(step, "generated/scene_before_after_alignment", draw.grid(rows))
    shown = data["generated_video"]  # [n, H + 1, h, w, c]
    first = np.repeat(data["generated"][:, None], shown.shape[1], axis=1)
    logger.video(step, "generated/imagined", draw.side_by_side(first, shown), fps)
    logger.scalars(
        step,
        {
            "report/generated_return": float(data["generated_return"].mean()),
            "report/generated_score": float(data["generated_score"].mean()),
        },
    )
    logger.histogram(step, "report/generated_return", data["generated_return"])
    logger.histogram(step, "report/generated_score", data["generated_score"])


def mean_of_known(values: np.ndarray) -> float:
    """Mean over the entries that are not nan (an update without that figure); nan if none is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return float(np.nanmean(values))


def correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson correlation of two arrays of one shape; 0 where one of them is constant."""
    x, y = np.ravel(x) - np.mean(x), np.ravel(y) - np.mean(y)
    scale = np.sqrt(np.sum(x**2) * np.sum(y**2))
    return float(np.sum(x * y) / scale) if scale > 0 else 0.0


def _curve(path: Path) -> np.ndarray:
    return draw.read_episode_curve(path / METRICS_NAME)[0]
