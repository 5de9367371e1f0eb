"""Statistics of a comparison against values worked out by hand."""

import itertools

import numpy as np
import pytest
from PIL import Image

from dreamer_jax.errors import UserError
from dreamer_jax.training.comparison import (
    GRID,
    SPEED,
    Reach,
    SeedRun,
    band,
    common_span,
    compare_groups,
    curve_at,
    difference,
    faster_wins,
    higher_wins,
    mean_height,
    median_bound,
    probability,
    reach,
    summarise_seeds,
)
from dreamer_jax.training.comparison_figure import comparison_figure
from dreamer_jax.training.statistics import bootstrap_interval, interquartile_mean


def run(returns, frames=None, seed=0, **more):
    frames = 100 * np.arange(1, len(returns) + 1) if frames is None else np.asarray(frames)
    return SeedRun(seed, frames, np.asarray(returns, float), source=f"run {seed}", **more)


def group(*levels, episodes=20, first_seed=0):
    """Runs of constant returns, one per level."""
    return [run([level] * episodes, seed=first_seed + i) for i, level in enumerate(levels)]


# ---------------------------------------------------------------- one run


def test_curve_is_a_step_function_of_the_last_ten_episodes():
    eleven = run([0, 10, *[5] * 8, 100])
    # Means: 0, 5, 5, ..., of ten 50/10 = 5, and (10 + 8 * 5 + 100) / 10 = 15 at the last.
    np.testing.assert_allclose(curve_at(eleven, [100, 199, 200, 999, 1000, 1100, 9999]),
                               [0, 0, 5, 45 / 9, 5, 15, 15])  # fmt: skip
    with pytest.raises(ValueError, match="first episode"):
        curve_at(eleven, [99])


def test_episodes_that_end_together_count_together():
    np.testing.assert_allclose(curve_at(run([2, 4, 9], [100, 100, 300]), [100, 299]), [3, 3])


def test_mean_height_is_the_area_over_the_width():
    # 10 up to 300, then (10 + 40) / 2 = 25: (200 * 10 + 100 * 25) / 300 = 15.
    stairs = run([10, 40], [100, 300])
    assert mean_height(stairs, 100, 400) == pytest.approx(15.0)
    assert mean_height(stairs, 300, 400) == pytest.approx(25.0)
    assert mean_height(stairs, 150, 250) == pytest.approx(10.0)


def test_mean_height_is_the_mean_over_every_frame():
    rng = np.random.default_rng(0)
    noisy = run(rng.normal(size=30), np.cumsum(rng.integers(1, 9, 30)))
    start, end = int(noisy.frames[3]), int(noisy.frames[-1])
    by_frame = curve_at(noisy, np.arange(start, end)).mean()
    assert mean_height(noisy, start, end) == pytest.approx(by_frame)


def test_reach_needs_ten_whole_episodes():
    # The eleventh mean is the first of ten with 500 in it: (9 * 500 + 500) / 10.
    assert reach(run([400, *[500] * 10, 0]), 500) == Reach(True, 11, 1100)
    assert reach(run([5000, *[0] * 9]), 500) == Reach(True, 10, 1000)
    assert reach(run([900] * 9), 500) == Reach(False, 9, 900)


def test_a_run_that_never_gets_there_says_how_long_it_was_watched():
    assert reach(run([0] * 25), 500) == Reach(False, 25, 2500)


@pytest.mark.parametrize(
    ("values", "reached", "expected"),
    [
        ([100, 300, 200], [1, 1, 1], (200, True)),
        ([100, 200, 900], [1, 1, 0], (200, True)),  # the censored one is above anyway
        ([100, 900, 900], [1, 0, 0], (900, False)),
        ([100, 400], [1, 0], (250, False)),
        # The middle one was stopped early: the median is something from 100 to 200.
        ([100, 50, 200], [1, 0, 1], (100, False)),
    ],
)
def test_median_of_times_of_which_some_are_bounds(values, reached, expected):
    assert median_bound(values, np.array(reached, bool)) == expected


# ---------------------------------------------------------------- over seeds


@pytest.mark.parametrize("values", [[7.0], [1.0, 4.0], [1.0, 2.0, 6.0]])
def test_interquartile_mean_of_few_seeds_is_their_mean(values):
    summary = summarise_seeds(values)
    assert summary.iqm == summary.mean == np.mean(values)
    assert summary.seeds == len(values) and (summary.iqm_interval is None) == (len(values) == 1)


def test_summary_of_five_seeds():
    summary = summarise_seeds([0, 1, 2, 3, 1000])
    assert summary.mean == pytest.approx(201.2) and summary.iqm == 2.0
    assert summary.iqm_interval == bootstrap_interval([0, 1, 2, 3, 1000], interquartile_mean)


def test_band_is_the_interval_at_each_point():
    curves = np.random.default_rng(0).normal(size=(5, 3))
    low, high = band(curves)
    for at in range(3):
        expected = bootstrap_interval(curves[:, at], interquartile_mean, resamples=2000)
        assert (low[at], high[at]) == expected
    assert band(curves[:1]) is None


# ---------------------------------------------------------------- two groups


def test_wins_by_hand():
    np.testing.assert_array_equal(higher_wins([1, 3], [2, 3, 0]), [[1, 1, 0], [0, 0.5, 0]])
    # U = 1 + 1 + 0.5 = 2.5 of 6 pairs.
    assert probability(higher_wins([1, 3], [2, 3, 0]), paired=False).value == 2.5 / 6


def test_faster_by_hand():
    first = [Reach(True, 1, 300), Reach(False, 9, 500)]
    second = [Reach(True, 1, 200), Reach(True, 1, 300), Reach(True, 1, 600), Reach(False, 2, 100)]
    expected = [
        [1, 0.5, 0, 0.5],  # against 300: sooner, equal, later; the last was watched to 100 only
        [1, 1, 0.5, 0.5],  # against >500: sooner twice; 600 may be either
    ]
    np.testing.assert_array_equal(faster_wins(first, second), expected)
    np.testing.assert_array_equal(faster_wins(second, first), 1 - np.transpose(expected))


def test_who_is_still_watched_at_the_moment_of_the_other_has_lost():
    assert faster_wins([Reach(False, 1, 500)], [Reach(True, 1, 500)]) == [[1.0]]


def test_probability_of_all_or_nothing():
    for sign, expected in ((1, 1.0), (-1, 0.0)):
        found = probability(higher_wins([0, 1], [5 * sign, 6 * sign]), paired=True)
        assert found == (expected, (expected, expected))


def test_probability_is_the_same_in_any_order_of_the_seeds():
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 9, 4), rng.integers(0, 9, 5)
    found = {
        probability(higher_wins(a, b), paired=False).value
        for a in itertools.permutations(first)
        for b in (second, second[::-1])
    }
    assert len({round(value, 12) for value in found}) == 1


def test_swapping_the_groups_turns_p_into_one_minus_p():
    rng = np.random.default_rng(1)
    first, second = rng.normal(size=4), rng.normal(0.5, size=4)
    for paired in (True, False):
        there = probability(higher_wins(first, second), paired)
        back = probability(higher_wins(second, first), paired)
        assert there.value == pytest.approx(1 - back.value)
        close = 1e-12 if paired else 0.04  # unpaired, other resamples are drawn
        assert there.interval == pytest.approx([1 - x for x in back.interval[::-1]], abs=close)


def test_equal_groups_are_even():
    values = [3.0, 1.0, 2.0]
    found = probability(higher_wins(values, values), paired=True)
    assert found.value == 0.5 and found.interval == pytest.approx((0.5, 0.5))
    assert difference(values, values, np.mean, paired=True) == (0.0, (0.0, 0.0))
    low, high = difference(values, values, np.mean, paired=False).interval
    assert low < 0 < high


def test_probability_interval_counts_the_resamples():
    wins = higher_wins([0, 1], [0, -1])
    np.testing.assert_array_equal(wins, [[0.5, 0], [0, 0]])
    # Paired: the first seed twice gives 1/2 (1 of 4 resamples), both seeds 1/8, else 0.
    assert probability(wins, paired=True) == (0.125, (0.0, 0.5))
    # Unpaired: 1/2 in 1 of 16 resamples, 1/4 in 4, 1/8 in 4, else 0.
    assert probability(wins, paired=False) == (0.125, (0.0, 0.5))


def test_paired_difference_is_the_bootstrap_of_the_differences():
    first, second = np.array([1.0, 5.0, 9.0, 4.0]), np.array([2.0, 7.0, 8.0, 8.0])
    found = difference(first, second, np.mean, paired=True)
    assert found.value == 1.5
    assert found.interval == pytest.approx(bootstrap_interval(second - first, np.mean))


def test_pairing_narrows_what_both_share():
    shared = np.array([0.0, 100.0, 200.0, 300.0])
    other = shared + np.array([1.0, 2.0, 1.0, 2.0])
    low, high = difference(shared, other, np.mean, paired=True).interval
    assert 1 <= low <= high <= 2
    low, high = difference(shared, other, np.mean, paired=False).interval
    assert low < -100 and high > 100


@pytest.mark.parametrize(("first", "second"), [([1.0], [2.0, 3.0]), ([1.0, 2.0], [3.0])])
def test_one_seed_has_no_interval(first, second):
    assert difference(first, second, np.mean, paired=False).interval is None
    assert probability(higher_wins(first, second), paired=False) == (1.0, None)


# ---------------------------------------------------------------- all together


def test_comparison_by_hand():
    found = compare_groups({"a": group(0, 600), "b": group(100, 700, episodes=30)}, 500)
    assert len(found.grid) == GRID and (found.grid[0], found.grid[-1]) == (100, 2000)
    np.testing.assert_allclose(found.groups["b"].curves[:, [0, -1]], [[100, 100], [700, 700]])
    np.testing.assert_allclose(found.groups["b"].curve, 400)
    assert found.groups["a"].scores == {
        "final": {0: 0.0, 1: 600.0},
        "area": {0: 0.0, 1: 600.0},
        "held_out": {},
    }
    assert found.groups["a"].reaches == (Reach(False, 20, 2000), Reach(True, 10, 1000))
    assert [pair.score for pair in found.pairs] == ["final", "area", SPEED]
    final, _, speed = found.pairs
    assert (final.first, final.second, final.seeds, final.paired) == ("a", "b", (2, 2), True)
    assert final.mean.value == 100 and final.mean.interval == (100, 100)
    assert final.probability.value == 0.75  # 100 beats 0; 700 beats both
    # b's two: never in 3000, and at 1000; a's: never in 2000, and at 1000.
    assert speed.probability.value == 0.5 and speed.mean is None


def test_every_pair_of_three_groups():
    found = compare_groups({"a": group(1), "b": group(2), "c": group(3, 4)}, 500)
    final = [(p.first, p.second, p.paired) for p in found.pairs if p.score == "final"]
    assert final == [("a", "b", True), ("a", "c", False), ("b", "c", False)]
    assert all(p.probability.interval is None for p in found.pairs)


def test_seeds_pair_up_whatever_their_order():
    a, b = group(1, 2, 3), group(2, 3, 4)
    there, back = (compare_groups({"a": a, "b": runs}, 500).pairs for runs in (b, b[::-1]))
    assert there == back and there[0].mean.interval == pytest.approx((1, 1))
    others = compare_groups({"a": a, "b": group(2, 3, 4, first_seed=1)}, 500).pairs
    assert not any(pair.paired for pair in others)


def test_held_out_scores_of_some_seeds_only():
    with_evaluation = run([1] * 12, seed=0, held_out=np.array([3.0, 5.0]), tracks=np.arange(2))
    a = [with_evaluation, run([1] * 12, seed=1)]
    found = compare_groups({"a": a, "b": [with_evaluation]}, 500)
    assert found.groups["a"].scores["held_out"] == {0: 4.0}
    held_out = next(pair for pair in found.pairs if pair.score == "held_out")
    assert held_out.seeds == (1, 1) and held_out.paired and held_out.probability.value == 0.5


def test_runs_without_common_frames_are_refused():
    with pytest.raises(UserError, match=r"run 0 ends at 300 frames and run 1 .* at 400"):
        common_span([run([1, 1, 1]), run([1, 1], [400, 800], seed=1)])


# ---------------------------------------------------------------- the figure


@pytest.mark.parametrize("seeds", [1, 5])
def test_figure_of_several_groups(tmp_path, seeds):
    ramp = np.linspace(0, 900, 30)
    groups = {
        f"arm with the long name {i}": [run(ramp + s, seed=s) for s in range(seeds)]
        for i in range(3)
    }
    groups["last"] = [run(ramp, held_out=np.array([800.0, 900.0]), tracks=np.arange(2))]
    path = tmp_path / "deep" / "figure.png"
    comparison_figure(path, compare_groups(groups, 500))
    with Image.open(path) as image:
        assert image.format == "PNG" and image.size == (1430, 624)
        assert np.asarray(image.convert("L")).std() > 10
