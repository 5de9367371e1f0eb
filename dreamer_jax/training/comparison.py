"""Statistics of a comparison: groups of runs, one run per seed (NumPy only).

After Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice":
interquartile means with percentile bootstrap intervals over seeds, and the probability of
improvement. Every bootstrap draws from the same fixed seed, so the same runs give the same figures.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from dreamer_jax.errors import UserError
from dreamer_jax.training.figures import running_mean
from dreamer_jax.training.statistics import (
    bootstrap_interval,
    interquartile_mean,
    percentile_interval,
)

WINDOW = 10  # episodes of the running mean
THRESHOLD = 500.0  # return that a run is asked to reach, unless told otherwise
GRID = 200  # points of a curve
CONFIDENCE = 0.95
RESAMPLES = 10_000
BAND_RESAMPLES = 2_000  # at each grid point
SCORES = ("final", "area", "held_out")
SPEED = "frames_to_threshold"

Interval = tuple[float, float]


@dataclass(frozen=True)
class SeedRun:
    """One run: its training episodes in the order of their frames, and its held-out returns."""

    seed: int
    frames: np.ndarray  # int [E], environment frames at the end of each episode, ascending
    returns: np.ndarray  # [E]
    tracks: np.ndarray | None = None  # int [K] held-out track seeds
    held_out: np.ndarray | None = None  # [K]
    driven: dict[str, Any] | None = None  # how these were: rules, actions, weights
    early: bool = False  # whether the run was trained on after its held-out episodes
    stopped: bool = False  # whether its loss ceased to be finite before the end
    finished: bool | None = None  # None: not known
    settings: dict[str, Any] | None = field(default=None, repr=False)  # flat; None: not known
    source: str = ""


class Reach(NamedTuple):
    """When a run first reached the threshold; if never, how long it was watched in vain."""

    reached: bool
    episodes: int
    frames: int


class Bound(NamedTuple):
    """A figure that is known (`exact`) or only known to be at least `value`."""

    value: float
    exact: bool


class Summary(NamedTuple):
    """A score over n seeds; the intervals are None for one seed."""

    seeds: int
    mean: float
    mean_interval: Interval | None
    iqm: float
    iqm_interval: Interval | None


class Difference(NamedTuple):
    """Second minus first group; the interval is None where a group has one seed."""

    value: float
    interval: Interval | None


class Pair(NamedTuple):
    """The second group against the first in one score.

    `paired`: both have the same seeds, and the bootstrap draws seeds rather than runs.
    `probability` is that of a random run of the second group beating one of the first. Scores
    that may be censored have no differences.
    """

    first: str
    second: str
    score: str
    seeds: tuple[int, int]
    paired: bool
    mean: Difference | None
    iqm: Difference | None
    probability: Difference


@dataclass(frozen=True)
class Group:
    """Results of one group of n runs, in the order of their seeds."""

    runs: tuple[SeedRun, ...]
    curves: np.ndarray  # [n, GRID]
    curve: np.ndarray  # [GRID] interquartile mean over seeds
    band: tuple[np.ndarray, np.ndarray] | None  # [GRID] each; None for one seed
    scores: dict[str, dict[int, float]]  # score -> seed -> value; a seed may be missing
    summaries: dict[str, Summary]  # only scores that some seed has
    reaches: tuple[Reach, ...]  # [n]


@dataclass(frozen=True)
class Comparison:
    """Everything that is drawn and written."""

    threshold: float
    grid: np.ndarray  # int [GRID] environment frames
    groups: dict[str, Group]
    pairs: tuple[Pair, ...]


def compare_groups(groups: Mapping[str, Sequence[SeedRun]], threshold: float) -> Comparison:
    """Compare the groups by name, each with every later one.

    Curves, areas and final scores end where the shortest run ends; thresholds are looked for in
    the whole of each run.

    Raises:
      UserError: the runs share no stretch of frames.
    """
    start, end = common_span([run for runs in groups.values() for run in runs])
    grid = np.linspace(start, end, GRID).astype(np.int64)
    results = {name: _group(runs, grid, threshold) for name, runs in groups.items()}
    pairs = [
        pair
        for first, second in itertools.combinations(results, 2)
        for pair in _pairs(first, results[first], second, results[second])
    ]
    return Comparison(threshold, grid, results, tuple(pairs))


def common_span(runs: Sequence[SeedRun]) -> tuple[int, int]:
    """(first, last) environment frames at which every run has an episode behind it.

    Raises:
      UserError: there is no such stretch.
    """
    late = max(runs, key=lambda run: run.frames[0])
    short = min(runs, key=lambda run: run.frames[-1])
    start, end = int(late.frames[0]), int(short.frames[-1])
    if start >= end:
        raise UserError(
            f"the runs share no frames: {short.source} ends at {end} frames and {late.source} "
            f"finishes its first episode at {start}; train the shorter one on (car_racing.py "
            "--resume) or leave it out"
        )
    return start, end


def curve_at(run: SeedRun, frames: ArrayLike) -> np.ndarray:
    """The run's curve at `frames` [G] -> [G]: mean return of the last 10 episodes by then.

    A step function: it changes where an episode ends; fewer than 10 episodes count at the start.
    Raises ValueError before the end of the first episode.
    """
    latest = np.searchsorted(run.frames, frames, side="right") - 1
    if np.any(latest < 0):
        raise ValueError("the curve begins at the end of the first episode")
    return running_mean(run.returns, WINDOW)[latest]


def mean_height(run: SeedRun, start: int, end: int) -> float:
    """Area under the run's curve from `start` to `end` (frames), over its width: a return."""
    inside = (run.frames > start) & (run.frames < end)
    edges = np.concatenate([[start], run.frames[inside], [end]])
    return float(curve_at(run, edges[:-1]) @ np.diff(edges) / (end - start))


def reach(run: SeedRun, threshold: float) -> Reach:
    """First episode at which the mean of 10 episodes is `threshold` or more.

    A mean of fewer episodes does not count: one lucky first track is no success.
    """
    enough = running_mean(run.returns, WINDOW) >= threshold
    enough[: WINDOW - 1] = False
    at = int(np.argmax(enough)) if enough.any() else len(enough) - 1
    return Reach(bool(enough.any()), at + 1, int(run.frames[at]))


def median_bound(values: ArrayLike, reached: ArrayLike) -> Bound:
    """Median over seeds of times [n] of which some are only lower bounds (`reached` [n] False).

    Exact where neither end of what is possible moves it: all bounds taken as they are, and all
    as infinite.
    """
    least = np.asarray(values, dtype=np.float64)
    most = np.where(reached, least, np.inf)
    low, high = float(np.median(least)), float(np.median(most))
    return Bound(low, low == high)


def summarise_seeds(values: ArrayLike) -> Summary:
    """Mean and interquartile mean over seeds [n] with 95% bootstrap intervals.

    The interquartile mean drops floor(n/4) seeds at each end. For n = 1, 2 or 3 that is none, and
    it is the plain mean (n = 1: the value itself), as in rliable.
    """
    values = np.asarray(values, dtype=np.float64)
    several = len(values) > 1
    return Summary(
        len(values),
        float(values.mean()),
        bootstrap_interval(values, np.mean, CONFIDENCE, RESAMPLES) if several else None,
        float(interquartile_mean(values)),
        bootstrap_interval(values, interquartile_mean, CONFIDENCE, RESAMPLES) if several else None,
    )


def band(curves: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """95% bootstrap interval over seeds of the interquartile mean at each point of [n, G] curves.

    Pointwise: it says nothing about all points at once. None for one seed.
    """
    if len(curves) < 2:
        return None
    # The fixed bootstrap seed draws the same seeds at every point, so the band is smooth.
    limits = [
        bootstrap_interval(column, interquartile_mean, CONFIDENCE, BAND_RESAMPLES)
        for column in curves.T
    ]
    low, high = np.array(limits).T
    return low, high


def difference(
    first: ArrayLike, second: ArrayLike, statistic: Callable[..., Any], paired: bool
) -> Difference:
    """`statistic` of second [m] minus that of first [n], with its 95% bootstrap interval.

    `statistic(x, axis=-1)` as `np.mean`. Paired: n = m, entries of one place belong together.
    """
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    value = float(statistic(second, axis=-1) - statistic(first, axis=-1))
    if min(len(first), len(second)) < 2:
        return Difference(value, None)
    i, j = _draws(len(first), len(second), paired)
    estimates = statistic(second[j], axis=-1) - statistic(first[i], axis=-1)
    return Difference(value, percentile_interval(estimates, CONFIDENCE))


def higher_wins(first: ArrayLike, second: ArrayLike) -> np.ndarray:
    """[n], [m] -> [n, m]: 1 where second beats first, 1/2 where they are equal, else 0."""
    first, second = np.asarray(first)[:, None], np.asarray(second)[None, :]
    return (second > first) + 0.5 * (second == first)


def faster_wins(first: Sequence[Reach], second: Sequence[Reach]) -> np.ndarray:
    """[n, m]: 1 where second needed fewer frames than first, 0 the other way, 1/2 if not known.

    A run that never got there lost to those that did while it was still watched; where neither
    is known to be faster the pair is a tie (Gehan 1965, generalised Wilcoxon test).
    """
    (got_a, at_a), (got_b, at_b) = _columns(first), _columns(second)
    got_a, at_a = got_a[:, None], at_a[:, None]
    second_first = got_b & np.where(got_a, at_b < at_a, at_b <= at_a)
    first_first = got_a & np.where(got_b, at_a < at_b, at_a <= at_b)
    return 0.5 * (1.0 + second_first - first_first)


def probability(wins: np.ndarray, paired: bool) -> Difference:
    """Probability that a random run of the second group beats one of the first: [n, m] wins.

    The mean over all pairs, which is the Mann-Whitney U over n m, with its 95% bootstrap
    interval ("probability of improvement" in Agarwal et al. 2021).
    """
    n, m = wins.shape
    value = float(wins.mean())
    if min(n, m) < 2:
        return Difference(value, None)
    i, j = _draws(n, m, paired)
    # How often each run was drawn; a row of counts is far smaller than all its pairs.
    estimates = ((_counts(i, n) @ wins) * _counts(j, m)).sum(-1) / (n * m)
    return Difference(value, percentile_interval(estimates, CONFIDENCE))


def _group(runs: Sequence[SeedRun], grid: np.ndarray, threshold: float) -> Group:
    runs = tuple(sorted(runs, key=lambda run: run.seed))
    curves = np.stack([curve_at(run, grid) for run in runs])
    start, end = int(grid[0]), int(grid[-1])
    scores = {
        "final": {run.seed: float(curve[-1]) for run, curve in zip(runs, curves, strict=True)},
        "area": {run.seed: mean_height(run, start, end) for run in runs},
        "held_out": {r.seed: float(r.held_out.mean()) for r in runs if r.held_out is not None},
    }
    summaries = {
        name: summarise_seeds(list(by_seed.values())) for name, by_seed in scores.items() if by_seed
    }
    return Group(
        runs,
        curves,
        interquartile_mean(curves, axis=0),
        band(curves),
        scores,
        summaries,
        tuple(reach(run, threshold) for run in runs),
    )


def _pairs(first: str, a: Group, second: str, b: Group) -> list[Pair]:
    pairs = []
    for score in SCORES:
        x, y = a.scores[score], b.scores[score]
        if not x or not y:
            continue
        paired = list(x) == list(y)  # both are in the order of their seeds
        u, v = list(x.values()), list(y.values())
        mean, iqm = (difference(u, v, f, paired) for f in (np.mean, interquartile_mean))
        chance = probability(higher_wins(u, v), paired)
        pairs.append(Pair(first, second, score, (len(u), len(v)), paired, mean, iqm, chance))
    paired = [run.seed for run in a.runs] == [run.seed for run in b.runs]
    chance = probability(faster_wins(a.reaches, b.reaches), paired)
    counts = (len(a.runs), len(b.runs))
    return [*pairs, Pair(first, second, SPEED, counts, paired, None, None, chance)]


def _columns(reaches: Sequence[Reach]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([r.reached for r in reaches]), np.array([r.frames for r in reaches])


def _draws(n: int, m: int, paired: bool) -> tuple[np.ndarray, np.ndarray]:
    """Places drawn with replacement, [RESAMPLES, n] and [RESAMPLES, m]; the same when paired."""
    rng = np.random.default_rng(0)
    i = rng.integers(0, n, (RESAMPLES, n))
    return i, i if paired else rng.integers(0, m, (RESAMPLES, m))


def _counts(draws: np.ndarray, n: int) -> np.ndarray:
    """[R, k] places in 0 .. n-1 -> [R, n]: how often each was drawn."""
    rows = np.arange(len(draws))[:, None] * n
    return np.bincount((draws + rows).ravel(), minlength=len(draws) * n).reshape(-1, n)
