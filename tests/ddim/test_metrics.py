import tracemalloc

import numpy as np
import pytest

from ddim_jax import metrics
from ddim_jax.features import FID_NET, FeatureNet
from ddim_jax.metrics import (
    compare_pictures,
    frechet_distance,
    frechet_from_moments,
    grid_with_neighbours,
    nearest_neighbours,
    precision_recall,
)


def normal(seed, n, d):
    return np.random.default_rng(seed).normal(size=(n, d))


def test_equal_sets_are_at_distance_zero():
    x = normal(0, 50, 6)
    assert frechet_distance(x, x) == pytest.approx(0.0, abs=1e-12)
    assert frechet_distance(x, x[::-1]) == pytest.approx(0.0, abs=1e-12)


def test_a_shift_of_the_mean_costs_its_square():
    x = normal(1, 40, 3)
    assert frechet_distance(x, x + np.array([3.0, 0.0, -4.0])) == pytest.approx(25.0)


def test_one_dimension_by_hand():
    # means 0 and 3, unbiased variances 2 and 8: 3^2 + (sqrt 2 - sqrt 8)^2 = 9 + 2
    assert frechet_distance([[-1.0], [1.0]], [[1.0], [5.0]]) == pytest.approx(11.0)


def test_diagonal_covariances():
    s1, s2 = np.array([1.0, 2.0, 0.0]), np.array([4.0, 2.5, 1.0])
    got = frechet_from_moments(np.zeros(3), np.diag(s1**2), np.zeros(3), np.diag(s2**2))
    assert got == pytest.approx(np.sum((s1 - s2) ** 2))  # 9 + 0.25 + 1


def test_commuting_covariances():
    # B = 9 A, so (A B)^(1/2) = 3 A and the distance is (1 + 9 - 6) tr A = 4 * 4
    a = np.array([[2.0, 1.0], [1.0, 2.0]])
    assert frechet_from_moments([0, 0], a, [0, 0], 9 * a) == pytest.approx(16.0)


def test_covariances_that_do_not_commute_by_hand():
    # For 2x2 matrices tr M^(1/2) = sqrt(tr M + 2 sqrt(det M)). Here tr AB = 13 + 4 = 17 and
    # det AB = 4 * 4, so the trace is sqrt(17 + 8) = 5 and the distance 5 + 14 - 2 * 5.
    a, b = np.diag([1.0, 4.0]), np.array([[13.0, 3.0], [3.0, 1.0]])
    assert frechet_from_moments([0, 0], a, [0, 0], b) == pytest.approx(9.0)


def test_large_samples_of_known_gaussians_converge():
    # s1 = 1, s2 = (1, 2, 3), shift (1, 0, 0): 1 + 0 + 1 + 4
    rng = np.random.default_rng(2)
    a = rng.normal(size=(100_000, 3))
    b = rng.normal(size=(100_000, 3)) * [1.0, 2.0, 3.0] + [1.0, 0.0, 0.0]
    assert frechet_distance(a, b) == pytest.approx(6.0, rel=0.02)


def test_fewer_vectors_than_dimensions():
    x, y = normal(3, 10, 200), 2.0 * normal(4, 7, 200)
    assert frechet_distance(x, x) == pytest.approx(0.0, abs=1e-10)
    # Spans at right angles: the mixed term vanishes.
    left, right = x.copy(), np.zeros((7, 200))
    left[:, 100:], right[:, 100:] = 0.0, y[:, 100:]
    means = np.sum((left.mean(0) - right.mean(0)) ** 2)
    want = means + left.var(0, ddof=1).sum() + right.var(0, ddof=1).sum()
    assert frechet_distance(left, right) == pytest.approx(want)


@pytest.mark.parametrize("n", [30, 5])
def test_symmetric_and_blind_to_rotation(n):
    a, b = normal(5, n, 8), normal(6, n + 3, 8) @ np.diag(np.arange(8.0)) + 1.0
    turn = np.linalg.qr(normal(7, 8, 8))[0]
    want = frechet_distance(a, b)
    assert want > 1.0
    assert frechet_distance(b, a) == pytest.approx(want)
    assert frechet_distance(a @ turn, b @ turn) == pytest.approx(want)


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        (np.zeros((1, 3)), np.zeros((4, 3)), "a must be .* n >= 2"),
        (np.zeros((4, 3)), np.zeros(3), "b must be .* n >= 2"),
        (np.zeros((4, 3)), np.zeros((4, 2)), "b has width 2 but a has 3"),
        (np.zeros((4, 3)), np.full((4, 3), np.nan), "b must be finite"),
    ],
)
def test_odd_sets_are_refused(a, b, words):
    with pytest.raises(ValueError, match=words):
        frechet_distance(a, b)


@pytest.mark.parametrize(
    ("mu2", "cov2", "words"),
    [
        ([0, 0, 0], np.eye(2), "mu2 has 3"),
        ([0, 0], np.eye(3), "cov2 must be"),
        ([0, np.inf], np.eye(2), "mu2 must be finite"),
        ([0, 0], [[1, 1], [0, 1]], "cov2 is not symmetric"),
        ([0, 0], np.diag([1, -1]), "cov2 has a negative eigenvalue"),
    ],
)
def test_odd_moments_are_refused(mu2, cov2, words):
    with pytest.raises(ValueError, match=words):
        frechet_from_moments([0, 0], np.eye(2), mu2, cov2)


def test_precision_and_recall_of_the_same_and_of_disjoint_sets():
    x = normal(8, 40, 5)
    assert precision_recall(x, x) == (1.0, 1.0)
    assert precision_recall(x, x + 1000.0) == (0.0, 0.0)


def test_precision_and_recall_by_hand():
    # k = 1: real balls have radius 1; generated ones 7.5, 7.5 and 10.
    # Of 2.5, 10, 20 only the first is in a real ball; all reals are within 7.5 of 2.5.
    real, generated = np.arange(4.0)[:, None], np.array([[2.5], [10.0], [20.0]])
    assert precision_recall(real, generated, k=1) == (pytest.approx(1 / 3), 1.0)
    # The other way round the figures change places.
    assert precision_recall(generated, real, k=1) == (1.0, pytest.approx(1 / 3))


def test_dropped_modes_lower_recall_only():
    cluster = normal(9, 20, 4)
    real = np.concatenate([cluster, cluster + 100.0, cluster + 200.0, cluster + 300.0])
    assert precision_recall(real, cluster) == (1.0, 0.25)


def test_copies_of_one_picture_meet_at_radius_zero():
    one = np.full((6, 300), 0.1) * np.arange(300)
    rounded = np.nextafter(one, np.inf)
    assert precision_recall(one, rounded) == (1.0, 1.0)


@pytest.mark.parametrize("k", [0, 5])
def test_k_must_leave_neighbours(k):
    with pytest.raises(ValueError, match=f"k={k} neighbours of . .* vectors"):
        precision_recall(np.zeros((9, 2)), np.zeros((5, 2)), k)


def test_neighbours_by_hand():
    training = np.array([[0.0, 0.0], [3.0, 4.0], [0.0, 0.0], [6.0, 8.0]])
    indices, distances = nearest_neighbours(np.array([[0.0, 0.0], [6.0, 8.5]]), training, 3)
    np.testing.assert_array_equal(indices, [[0, 2, 1], [3, 1, 0]])  # the first of equals first
    np.testing.assert_allclose(distances, [[0, 0, 5], [0.5, np.hypot(3, 4.5), np.hypot(6, 8.5)]])


@pytest.mark.parametrize("block", [1, 3, 100])
def test_blocks_change_nothing(monkeypatch, block):
    monkeypatch.setattr(metrics, "_BLOCK", block)
    rng = np.random.default_rng(10)
    a, b = (rng.integers(0, top, (n, 2, 2, 3), dtype=np.uint8) for n, top in ((40, 6), (30, 9)))
    full = lengths(a, b)
    indices, distances = nearest_neighbours(a, b, 4)
    np.testing.assert_array_equal(indices, np.argsort(full, axis=1, kind="stable")[:, :4])
    np.testing.assert_array_equal(distances, np.sort(full, axis=1)[:, :4])
    inside_b = (full <= np.sort(lengths(b, b))[:, 2]).any(axis=1).mean()
    inside_a = (full <= np.sort(lengths(a, a))[:, 2:3]).any(axis=0).mean()
    assert 0 < inside_a < inside_b <= 1
    got = precision_recall(b.reshape(30, -1), a.reshape(40, -1), k=2)
    assert got == (pytest.approx(inside_b), pytest.approx(inside_a))


def lengths(a, b):
    return np.sqrt(((a[:, None].astype(float) - b) ** 2).sum((2, 3, 4)))


def test_memory_stays_far_below_the_full_matrix():
    real, generated = normal(11, 4000, 2), normal(12, 4000, 2)
    tracemalloc.start()
    precision_recall(real, generated)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4000 * 4000 * 8 / 5


@pytest.mark.parametrize(
    ("generated", "training", "k", "words"),
    [
        (np.zeros((0, 2)), np.zeros((3, 2)), 1, "generated must be .* not empty"),
        (np.zeros((3, 2)), np.zeros((3, 4)), 1, "training has width 4"),
        (np.zeros((3, 2)), np.full((3, 2), np.inf), 1, "training must be finite"),
        (np.zeros((3, 2)), np.zeros((3, 2)), 4, "k=4 neighbours among 3"),
    ],
)
def test_odd_neighbour_questions_are_refused(generated, training, k, words):
    with pytest.raises(ValueError, match=words):
        nearest_neighbours(generated, training, k)


def plain(levels):
    return np.stack([np.full((4, 6, 3), level, np.uint8) for level in levels])


def test_the_grid_shows_each_frame_beside_its_neighbours():
    grid = grid_with_neighbours(plain([10, 20]), plain([1, 2, 3]), np.array([[0, 2], [1, 0]]), 1)
    assert grid.shape == (2 * 5 - 1, 3 * 7 - 1, 3)
    assert grid.dtype == np.uint8
    np.testing.assert_array_equal(grid[::5, ::7, 0], [[10, 1, 3], [20, 2, 1]])
    np.testing.assert_array_equal(grid[3::5, 5::7, 0], [[10, 1, 3], [20, 2, 1]])
    assert (grid[4] == 255).all() and (grid[:, 6] == 255).all()


def test_a_grid_without_gaps():
    grid = grid_with_neighbours(plain([9]), plain([5]), np.array([[0]]), gap=0)
    np.testing.assert_array_equal(grid[0, :, 0], [9] * 6 + [5] * 6)


@pytest.mark.parametrize("indices", [[[0]], [[0], [3]], [[0], [-1]], [0, 1], [[0.0], [1.0]]])
def test_indices_must_fit_the_grid(indices):
    with pytest.raises(ValueError, match="indices must"):
        grid_with_neighbours(plain([1, 2]), plain([1, 2, 3]), np.array(indices))


def mean_colour(name):
    return FeatureNet(name, 3, lambda images: np.asarray(images, np.float32).mean((1, 2)))


def pictures(seed, n):
    return np.random.default_rng(seed).integers(0, 256, (n, 6, 6, 3), dtype=np.uint8)


def test_the_table_of_a_perfect_generator_and_of_a_copier():
    real, training = pictures(0, 30), pictures(1, 40)
    table = compare_pictures(real, real, training, mean_colour("made"), k=2)
    assert table["Frechet distance (made)"] == pytest.approx(0.0, abs=1e-9)
    assert table["precision (k=2)"] == table["recall (k=2)"] == 1.0
    nearest = table["nearest training frame, real"]
    assert table["nearest training frame, generated"] == nearest > 10.0
    table = compare_pictures(real, training, training, mean_colour("made"))
    assert table["nearest training frame, generated"] == 0.0
    got = table["Frechet distance (made)"]
    assert got == pytest.approx(table["Frechet distance (made) of training frames"]) and got > 0
    assert [table[f"{name} frames"] for name in ("real", "generated", "training")] == [30, 40, 40]


def test_pixel_distances_are_root_mean_squares():
    real, training = pictures(2, 8), plain([100, 107])[:, :4, :4]
    table = compare_pictures(real[:, :4, :4], training, training + 3, mean_colour("made"), k=1)
    assert table["nearest training frame, generated"] == pytest.approx(3.0)


def test_only_fids_own_net_makes_a_fid():
    table = compare_pictures(pictures(3, 9), pictures(4, 9), pictures(5, 9), mean_colour(FID_NET))
    assert {"FID", "FID of training frames"} <= set(table)
    other = compare_pictures(pictures(3, 9), pictures(4, 9), pictures(5, 9), mean_colour("x"))
    assert not any("FID" in name for name in other)


def test_odd_pictures_are_refused_by_name():
    good = pictures(6, 9)
    with pytest.raises(ValueError, match="generated must be uint8"):
        compare_pictures(good, good / 255.0, good, mean_colour("x"))
    with pytest.raises(ValueError, match="training has frames of"):
        compare_pictures(good, good, good[:, :4], mean_colour("x"))
    with pytest.raises(ValueError, match="training must hold at least 2"):
        compare_pictures(good, good, good[:1], mean_colour("x"))
