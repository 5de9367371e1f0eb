"""Statistics against values worked out by hand."""

import math

import numpy as np
import pytest

from dreamer_jax.training.statistics import (
    bootstrap_interval,
    crossed_interval,
    interquartile_mean,
    least_difference,
    summarise,
)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([7.0], 7.0),
        ([1, 2, 6], 3.0),  # floor(3/4) = 0 dropped
        ([100, 2, 4, -50], 3.0),  # 2 and 4 remain
        ([0, 1, 2, 3, 1000], 2.0),  # 1, 2, 3 remain
        ([8, 7, 6, 5, 4, 3, 2, 1], 4.5),  # 3, 4, 5, 6 remain
    ],
)
def test_interquartile_mean(values, expected):
    assert interquartile_mean(values) == expected


def test_interquartile_mean_of_rows():
    rows = [[100, 2, 4, -50], [1, 1, 3, 9]]
    np.testing.assert_array_equal(interquartile_mean(rows, axis=-1), [3.0, 2.0])


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf]])
def test_values_must_be_there_and_finite(values):
    with pytest.raises(ValueError, match="values"):
        interquartile_mean(values)
    with pytest.raises(ValueError, match="values"):
        bootstrap_interval(values, np.mean)


def test_bootstrap_of_equal_values_has_no_width():
    assert bootstrap_interval([5.0, 5.0, 5.0], np.mean) == (5.0, 5.0)


def test_bootstrap_of_a_coin():
    # The sum of 100 draws from {0, 1} is binomial(100, 1/2): its 2.5 % and 97.5 % points are 40
    # and 60. One step either way is left to the resampling.
    low, high = bootstrap_interval([0, 1] * 50, np.mean)
    assert low == pytest.approx(0.40, abs=0.0101) and high == pytest.approx(0.60, abs=0.0101)


def test_bootstrap_of_two_values_counts_the_tails():
    # Means of two draws from {0, 1}: 0 (1/4), 1/2 (1/2), 1 (1/4). A 40 % interval leaves 30 % at
    # each end, more than the 1/4 of the extremes; a 60 % one leaves 20 %.
    assert bootstrap_interval([0, 1], np.mean, confidence=0.4) == (0.5, 0.5)
    assert bootstrap_interval([0, 1], np.mean, confidence=0.6) == (0.0, 1.0)


def test_crossed_interval_of_one_seed_is_over_tracks():
    low, high = crossed_interval([[0, 1] * 50])  # the coin above
    assert low == pytest.approx(0.40, abs=0.0101) and high == pytest.approx(0.60, abs=0.0101)


def test_crossed_interval_draws_whole_seeds():
    # Tracks all alike: means of two draws from {0, 1}, as below.
    seeds = [[0.0] * 7, [1.0] * 7]
    assert crossed_interval(seeds, confidence=0.4) == pytest.approx((0.5, 0.5))
    assert crossed_interval(seeds, confidence=0.6) == pytest.approx((0.0, 1.0))
    assert crossed_interval(seeds, seed=3) == crossed_interval(seeds, seed=3)


def test_crossed_interval_adds_what_seeds_and_tracks_bring():
    # Effects of 4 seeds and 100 tracks, each of variance 1 about 0: the mean has 1/4 + 1/100.
    seeds, tracks = np.array([1.0, -1.0, 1.0, -1.0]), np.array([1.0, -1.0] * 50)
    low, high = crossed_interval(seeds[:, None] + tracks)
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(1 / 4 + 1 / 100), rel=0.05)


@pytest.mark.parametrize("values", [np.zeros((0, 3)), [[1.0, math.nan]]])
def test_crossed_interval_refuses(values):
    with pytest.raises(ValueError, match="values"):
        crossed_interval(values)


def test_least_difference_is_students():
    # Variances 2 and 8, pooled 5 with 2 degrees of freedom: t is 4.303.
    least, std = least_difference([[0, 2], [10, 14]])
    assert std == pytest.approx(math.sqrt(5)) and least == pytest.approx(4.303 * std, rel=1e-4)
    # Two rows of 4, 6 degrees of freedom: t is 2.447.
    least, std = least_difference([[1, 2, 3, 4], [11, 12, 13, 14]])
    assert least == pytest.approx(2.447 * math.sqrt(5 / 3 / 2), rel=1e-4)


def test_least_difference_holds_for_few_seeds():
    """Rows without any difference are told apart in 5 of 100 cases, by 4 seeds too."""
    draws = np.random.default_rng(0).normal(size=(4000, 3, 4))
    apart = [abs(x[0].mean() - x[1].mean()) > least_difference(x)[0] for x in draws]
    assert np.mean(apart) == pytest.approx(0.05, abs=0.01)


def test_least_difference_needs_two_seeds():
    with pytest.raises(ValueError, match="two seeds"):
        least_difference([[1.0], [2.0]])


def test_bootstrap_repeats_for_a_seed_and_over_chunks(monkeypatch):
    values = np.random.default_rng(0).normal(size=30)
    first = bootstrap_interval(values, np.mean, seed=3)
    assert first == bootstrap_interval(values, np.mean, seed=3)
    assert first != bootstrap_interval(values, np.mean, seed=4)
    monkeypatch.setattr("dreamer_jax.training.statistics._CHUNK_VALUES", 7 * 30)
    chunked = bootstrap_interval(values, np.mean, seed=3)
    assert chunked == pytest.approx(first, abs=0.05)


def test_bootstrap_refuses_an_impossible_confidence():
    with pytest.raises(ValueError, match="confidence"):
        bootstrap_interval([1.0], np.mean, confidence=1.0)


def test_summary():
    summary = summarise([0, 1, 2, 3, 1000], [False, True, False, False, True])
    assert summary["episodes"] == 5
    assert summary["mean"] == pytest.approx(201.2)
    # Deviations -201.2, -200.2, -199.2, -198.2, 798.8; squares sum to 797606.8; / 4, rooted.
    assert summary["std"] == pytest.approx(math.sqrt(797606.8 / 4))
    assert summary["iqm"] == 2.0
    assert (summary["min"], summary["max"], summary["lap_rate"]) == (0.0, 1000.0, 0.4)
    assert summary["iqm_low"] <= summary["iqm"] <= summary["iqm_high"]
    assert summary["mean_low"] <= summary["mean"] <= summary["mean_high"]


def test_summary_of_one_episode():
    summary = summarise([4.0], [True])
    assert summary["std"] == 0.0 and summary["lap_rate"] == 1.0
    assert summary["mean_low"] == summary["mean_high"] == summary["iqm_low"] == 4.0


def test_summary_needs_as_many_laps_as_returns():
    with pytest.raises(ValueError, match="2 returns but 1 laps"):
        summarise([1.0, 2.0], [True])
