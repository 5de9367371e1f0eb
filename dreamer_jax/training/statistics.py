"""Summary statistics of episode returns, with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtrit

_CHUNK_VALUES = 4_000_000  # resampled values held at once: 32 MB


def _finite(x: ArrayLike) -> np.ndarray:
    values = np.asarray(x, dtype=np.float64)
    if values.size == 0:
        raise ValueError("no values to summarise")
    if not np.isfinite(values).all():
        raise ValueError("values must be finite")
    return values


def interquartile_mean(x: ArrayLike, axis: int | None = None) -> np.ndarray | float:
    """Mean of the middle half: floor(n/4) values are dropped at each end.

    x: [...], reduced along `axis` (all values when None). Raises ValueError when empty or not
    finite.
    """
    values = _finite(x)
    if axis is None:
        values, axis = values.ravel(), 0
    values = np.sort(values, axis=axis)
    count = values.shape[axis]
    drop = count // 4
    middle = np.take(values, np.arange(drop, count - drop), axis=axis)
    mean = middle.mean(axis=axis)
    return float(mean) if np.ndim(mean) == 0 else mean


def bootstrap_interval(
    x: ArrayLike,
    statistic: Callable[..., np.ndarray],
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval (low, high) of `statistic` over the values x: [n].

    `statistic(samples, axis=-1)` maps [m, n] to [m], as `np.mean` does. The same seed gives the
    same interval. Raises ValueError on empty or non-finite values, or a confidence outside (0, 1).
    """
    values = _finite(x).ravel()
    _check(confidence)
    rng = np.random.default_rng(seed)
    chunk = max(1, _CHUNK_VALUES // values.size)
    estimates = []
    for start in range(0, resamples, chunk):
        rows = min(chunk, resamples - start)
        picks = rng.integers(0, values.size, (rows, values.size))
        estimates.append(statistic(values[picks], axis=-1))
    return percentile_interval(np.concatenate(estimates), confidence)


def crossed_interval(
    x: ArrayLike, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval (low, high) of the mean of x: [n seeds, m tracks].

    Seeds and tracks are drawn anew, each on their own, as every seed drives the same tracks (Owen
    2007, "The pigeonhole bootstrap"); with one seed the interval is over tracks. The same `seed`
    gives the same interval. Raises ValueError as `bootstrap_interval`.
    """
    values = _finite(x)
    _check(confidence)
    rng = np.random.default_rng(seed)
    rows, columns = (
        rng.multinomial(size, np.full(size, 1.0 / size), resamples) / size for size in values.shape
    )
    estimates = np.einsum("rn,nm,rm->r", rows, values, columns, optimize=True)
    return percentile_interval(estimates, confidence)


def with_interval(
    value: float, low: float | None, high: float | None, form: str, sign: str = ""
) -> str:
    """As a user reads it; low and high are None where there is no interval."""
    own = f"{value:{sign}{form}}"
    return f"{own} (no interval)" if low is None else f"{own} ({low:{form}} .. {high:{form}})"


def percentile_interval(estimates: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """What lies between the tails (low, high) of bootstrap estimates [m]."""
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(estimates, [tail, 1.0 - tail])
    return float(low), float(high)


def least_difference(x: ArrayLike, confidence: float = 0.95) -> tuple[float, float]:
    """How far two rows' means must lie apart, and the standard deviation within rows it is from.

    x: [r rows, n seeds], one number a seed. Fisher's least significant difference,
    t sqrt(2 s^2 / n) with s^2 pooled over all rows and r (n - 1) degrees of freedom: it holds for a
    pair chosen beforehand, where rows scatter alike. Where a bootstrap of a few seeds is too narrow
    this is not. Raises ValueError with fewer than two seeds, and as `bootstrap_interval`.
    """
    values = _finite(x)
    _check(confidence)
    rows, seeds = values.shape
    if seeds < 2:
        raise ValueError("two seeds or more are needed")
    variance = float(values.var(axis=1, ddof=1).mean())
    t = float(stdtrit(rows * (seeds - 1), (1.0 + confidence) / 2.0))
    return t * np.sqrt(2.0 * variance / seeds), np.sqrt(variance)


def _check(confidence: float) -> None:
    if not 0.0 < confidence < 1.0:
        raise ValueError("confidence must lie strictly between 0 and 1")


def summarise(returns: ArrayLike, laps: ArrayLike) -> dict[str, float | int]:
    """Summary of an evaluation, with 95 % bootstrap intervals.

    returns: [n] episode returns; laps: [n] bool, whether the episode finished a lap. `std` is the
    sample standard deviation (n - 1), 0 for one episode; `lap_rate` is in [0, 1]. Raises
    ValueError when empty, not finite, or of different lengths.
    """
    values = _finite(returns).ravel()
    finished = np.asarray(laps, dtype=bool).ravel()
    if finished.shape != values.shape:
        raise ValueError(f"{values.size} returns but {finished.size} laps")
    mean_low, mean_high = bootstrap_interval(values, np.mean)
    iqm_low, iqm_high = bootstrap_interval(values, interquartile_mean)
    return {
        "episodes": int(values.size),
        "mean": float(values.mean()),
        "mean_low": mean_low,
        "mean_high": mean_high,
        "std": float(values.std(ddof=1)) if values.size > 1 else 0.0,
        "iqm": float(interquartile_mean(values)),
        "iqm_low": iqm_low,
        "iqm_high": iqm_high,
        "min": float(values.min()),
        "max": float(values.max()),
        "lap_rate": float(finished.mean()),
    }
