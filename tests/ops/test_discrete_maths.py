"""Two-hot targets, categorical latents, running percentiles, LaProp and AGC, by hand."""

import chex
import distrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dreamer_jax.ops import categorical, moments, optimisers, two_hot
from dreamer_jax.ops.heads import symlog_two_hot_head, two_hot_head

KEY = jax.random.key(0)
LOGITS = jax.random.normal(jax.random.key(1), (4, 3, 5))  # [B, V, K]
OTHER = jax.random.normal(jax.random.key(2), (4, 3, 5))


# ---------------------------------------------------------------- two-hot


def test_two_hot_by_hand():
    bins = jnp.array([0.0, 2.5, 5.0, 7.5, 10.0])
    got = two_hot.two_hot(jnp.array([5.5, 5.0, -3.0, 12.0]), bins)
    want = [[0, 0, 0.8, 0.2, 0], [0, 0, 1, 0, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 1]]
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_a_mean_in_symlog_by_hand():
    """Half of the weight at the symlogs 1 and 3: their mean is 2, whose number is e^2 - 1; by bins
    of numbers it is the mean of e - 1 and e^3 - 1."""
    raw = jnp.full(41, -jnp.inf).at[jnp.array([21, 23])].set(0.0)  # bins of -20, -19, .. 20
    assert symlog_two_hot_head(41).mean(raw) == pytest.approx(np.e**2 - 1, rel=1e-5)
    assert two_hot_head(41).mean(raw) == pytest.approx((np.e + np.e**3) / 2 - 1, rel=1e-5)
    # The target e^1.25 - 1 lies a quarter of the way from the bin of 1 to that of 2.
    some = jnp.arange(41.0) / 10
    log_p = jax.nn.log_softmax(some)
    loss = symlog_two_hot_head(41).loss(some, jnp.float32(np.e**1.25 - 1))
    assert loss == pytest.approx(-0.75 * float(log_p[21]) - 0.25 * float(log_p[22]), rel=1e-4)
    with pytest.raises(ValueError, match="number=40 cannot be"):
        symlog_two_hot_head(40)


def test_bins_are_symmetric_and_dense_around_zero():
    bins = two_hot.symexp_bins()
    assert bins.shape == (255,) and bins[127] == 0
    np.testing.assert_array_equal(bins, -bins[::-1])
    np.testing.assert_allclose(bins[-1], np.expm1(20.0), rtol=1e-5)
    assert (jnp.diff(bins) > 0).all() and jnp.diff(bins).min() < 0.18
    for number in (2, 1, 254):
        with pytest.raises(ValueError, match="odd number"):
            two_hot.symexp_bins(number)


@pytest.mark.parametrize("x", [-4e8, -812.5, -1.0, -0.3, 0.0, 1e-3, 0.7, 100.0, 31415.9])
def test_the_mean_of_a_two_hot_is_its_number(x):
    bins = two_hot.symexp_bins()
    weights = two_hot.two_hot(jnp.float32(x), bins)
    assert (weights > 0).sum() <= 2 and weights.sum() == pytest.approx(1)
    logits = jnp.log(jnp.maximum(weights, 1e-38))
    assert two_hot.mean(logits, bins) == pytest.approx(x, rel=1e-4, abs=1e-5)


def test_equal_weights_mean_exactly_zero():
    bins = two_hot.symexp_bins()
    assert two_hot.mean(jnp.zeros((3, 255)), bins).tolist() == [0.0] * 3


def test_the_loss_is_least_at_the_target_and_its_gradient_is_bounded():
    bins = two_hot.symexp_bins()
    for target in (0.0, 5.0, 1e6):
        grad = jax.grad(lambda z, t=target: two_hot.loss(z, jnp.float32(t), bins))(jnp.zeros(255))
        want = 1 / 255 - two_hot.two_hot(jnp.float32(target), bins)  # softmax - target
        np.testing.assert_allclose(grad, want, atol=1e-6)
        assert jnp.abs(grad).sum() <= 2  # whatever the target's size
    logits = jnp.log(two_hot.two_hot(jnp.float32(5.0), bins) + 1e-12)
    best = two_hot.loss(logits, jnp.float32(5.0), bins)
    assert best < two_hot.loss(jnp.zeros(255), jnp.float32(5.0), bins)
    to_target = jax.grad(lambda t: two_hot.loss(jnp.zeros(255), t, bins))(jnp.float32(5.0))
    assert to_target == 0


def test_a_head_learns_numbers_of_all_sizes():
    """Gradient descent on the logits finds -1000, 0 and 3 at one step size."""
    bins, targets = two_hot.symexp_bins(), jnp.array([-1000.0, 0.0, 3.0])
    step = jax.jit(lambda z: z - 5.0 * jax.grad(lambda z: two_hot.loss(z, targets, bins).sum())(z))
    logits = jnp.zeros((3, 255))
    for _ in range(3000):
        logits = step(logits)
    np.testing.assert_allclose(two_hot.mean(logits, bins), targets, rtol=0.2, atol=0.2)


# ---------------------------------------------------------------- categorical latents


def test_unimix_by_hand():
    got = jnp.exp(categorical.unimix(jnp.array([100.0, 0.0, 0.0, 0.0]), 0.01))
    np.testing.assert_allclose(got, [0.9925, 0.0025, 0.0025, 0.0025], atol=1e-6)
    plain = categorical.unimix(LOGITS, 0.0)
    np.testing.assert_allclose(jnp.exp(plain), jax.nn.softmax(LOGITS), rtol=1e-6)
    # a class that is all but impossible still gets a gradient
    grad = jax.grad(lambda z: categorical.unimix(z)[1])(jnp.array([50.0, 0.0]))
    assert jnp.isfinite(grad).all()


def test_kl_and_entropy_are_those_of_distrax():
    p, q = (distrax.Independent(distrax.Categorical(z), 1) for z in (LOGITS, OTHER))
    np.testing.assert_allclose(categorical.kl(LOGITS, OTHER), p.kl_divergence(q), rtol=1e-5)
    np.testing.assert_allclose(categorical.entropy(LOGITS), p.entropy(), rtol=1e-5)
    assert jnp.abs(categorical.kl(LOGITS, LOGITS + 3.0)).max() < 1e-6


def test_balancing_moves_the_prior_by_alpha_and_the_posterior_by_the_rest():
    def total(post, prior, alpha):
        return categorical.balanced_kl(post, prior, alpha)[0].sum()

    plain = jax.grad(lambda p, q: categorical.kl(p, q).sum(), (0, 1))(LOGITS, OTHER)
    got = jax.grad(total, (0, 1))(LOGITS, OTHER, 0.8)
    np.testing.assert_allclose(got[0], 0.2 * plain[0], atol=1e-6)
    np.testing.assert_allclose(got[1], 0.8 * plain[1], atol=1e-6)
    both, value = categorical.balanced_kl(LOGITS, OTHER)
    np.testing.assert_allclose(both, value, rtol=1e-6)  # the value is the KL's


def test_below_the_free_nats_nothing_moves():
    near = LOGITS + 0.01 * OTHER
    for argument in (0, 1):
        for term, moves in ((0, argument == 1), (1, argument == 0)):
            for post, free in ((LOGITS, False), (near, True)):
                prior = OTHER if not free else LOGITS
                grad = jax.grad(
                    lambda p, q, term=term: categorical.free_nats_kl(p, q)[term].sum(), argument
                )(post, prior)
                assert (jnp.abs(grad).max() > 0) == (moves and not free)
    assert categorical.free_nats_kl(near, LOGITS)[0].tolist() == [1.0] * 4


@pytest.mark.parametrize("name", ["straight_through", "straight_through_gumbel"])
def test_hard_samples_are_one_hot_and_distributed_as_the_logits(name):
    draw = getattr(categorical, name)
    options = () if name == "straight_through" else (0.5,)
    many = jnp.broadcast_to(LOGITS[0], (20_000, 3, 5))
    samples = draw(KEY, many, *options)
    assert set(np.unique(np.round(samples, 5)).tolist()) == {0.0, 1.0}
    np.testing.assert_allclose(samples.sum(-1), 1.0, atol=1e-5)
    np.testing.assert_allclose(samples.mean(0), jax.nn.softmax(LOGITS[0]), atol=0.015)


def test_classes_are_drawn_by_their_running_sum():
    """Against the same sums in numpy; classes of probability 0 never come, wherever they are."""
    probs = jnp.array([0.0, 0.1, 0.0, 0.6, 0.3, 0.0])
    many = jnp.broadcast_to(probs, (5_000, 4, 6))
    drawn = np.asarray(categorical.draw_classes(KEY, many))
    level = 1.0 - np.asarray(jax.random.uniform(KEY, (5_000, 4)))
    for index, edge in enumerate([0.0, 0.1, 0.1, 0.7]):
        clear = np.abs(level - edge) > 1e-6
        np.testing.assert_array_equal((drawn > index)[clear], (level > edge)[clear])
    assert set(np.unique(drawn)) == {1, 3, 4}
    shares = np.bincount(drawn.ravel(), minlength=6) / drawn.size
    np.testing.assert_allclose(shares, probs, atol=0.01)


def test_soft_samples_are_on_the_simplex_and_harden_with_the_cold():
    warm, cold = (categorical.gumbel_softmax(KEY, LOGITS, t) for t in (5.0, 0.01))
    for sample in (warm, cold):
        np.testing.assert_allclose(sample.sum(-1), 1.0, atol=1e-5)
    assert warm.max() < 0.9 < cold.max(-1).mean()
    hard = categorical.straight_through_gumbel(KEY, LOGITS, 0.01)
    np.testing.assert_array_equal(jnp.argmax(hard, -1), jnp.argmax(cold, -1))


def test_gradients_flow_exactly_where_they_should():
    weights = OTHER

    def through(draw, *options):
        return jax.grad(lambda z: (weights * draw(KEY, z, *options)).sum())(LOGITS)

    probs = jax.grad(lambda z: (weights * jax.nn.softmax(z, -1)).sum())(LOGITS)
    np.testing.assert_allclose(through(categorical.straight_through), probs, atol=1e-6)
    soft = through(categorical.gumbel_softmax, 0.7)
    np.testing.assert_allclose(through(categorical.straight_through_gumbel, 0.7), soft, atol=1e-6)
    chex.assert_tree_all_finite(soft)
    assert jnp.abs(soft - probs).max() > 1e-3
    # of a soft sample the gradient is exact: against finite differences
    direction, h = jax.random.normal(jax.random.key(3), LOGITS.shape), 1e-2

    def value(z):
        return (weights * categorical.gumbel_softmax(KEY, z, 0.7)).sum()

    numeric = (value(LOGITS + h * direction) - value(LOGITS - h * direction)) / (2 * h)
    assert numeric == pytest.approx(float((soft * direction).sum()), rel=1e-2)


def test_the_temperature_falls_geometrically_and_stays():
    got = categorical.annealed(jnp.array([0, 50, 100, 900]), 1.0, 0.25, 100)
    np.testing.assert_allclose(got, [1.0, 0.5, 0.25, 0.25], rtol=1e-6)


# ---------------------------------------------------------------- percentiles


def test_the_range_of_returns_by_hand():
    state = moments.init_range()
    assert moments.offset_and_scale(state) == (0.0, 1.0)
    state = moments.update_range(state, jnp.arange(101.0))
    offset, scale = moments.offset_and_scale(state)  # the start at 0 is corrected for
    assert offset == pytest.approx(5.0, rel=1e-5) and scale == pytest.approx(90.0, rel=1e-5)
    state = moments.update_range(state, jnp.arange(101.0) * 3)
    low = (0.01 * 0.99 * 5 + 0.01 * 15) / (1 - 0.99**2)
    assert moments.offset_and_scale(state)[0] == pytest.approx(low, rel=1e-4)
    small = moments.update_range(moments.init_range(), jnp.linspace(0, 0.1, 11))
    assert moments.offset_and_scale(small)[1] == 1.0  # not blown up


def test_the_range_gives_no_gradient():
    def scale(x):
        return moments.offset_and_scale(moments.update_range(moments.init_range(), 9 * x))[1]

    assert jnp.abs(jax.grad(scale)(jnp.arange(20.0))).max() == 0


# ---------------------------------------------------------------- optimisers


def test_laprop_by_hand():
    """Two steps of one number, gradients 2 and -1, in plain Python."""
    b1, b2, lr = 0.9, 0.99, 0.1
    square = momentum = 0.0
    want = []
    for t, g in enumerate((2.0, -1.0), 1):
        square = b2 * square + (1 - b2) * g * g
        momentum = b1 * momentum + (1 - b1) * g / (square / (1 - b2**t)) ** 0.5
        want.append(-lr * momentum / (1 - b1**t))
    optimiser = optimisers.laprop(lr, b1, b2)
    state, got = optimiser.init(jnp.zeros(())), []
    for g in (2.0, -1.0):
        step, state = optimiser.update(jnp.float32(g), state)
        got.append(float(step))
    np.testing.assert_allclose(got, want, rtol=1e-6)
    assert want[0] == pytest.approx(-0.1)  # the first step has the learning rate's size


def test_a_gradient_out_of_the_blue_moves_laprop_no_further_than_its_rate():
    steps = {}
    for name, optimiser in {"laprop": optimisers.laprop(1.0), "adam": optax.adam(1.0)}.items():
        state = optimiser.init(jnp.zeros(()))
        for g in [1e-3] * 50 + [1e3] + [1e-3] * 3:
            step, state = optimiser.update(jnp.float32(g), state)
            steps.setdefault(name, []).append(abs(float(step)))
    assert max(steps["laprop"][50:]) < 4.2  # (1 - b1) / sqrt((1 - b2) / (1 - b2^51)) and decay
    assert max(steps["laprop"][:50]) <= 1.0 + 1e-5
    chex.assert_tree_all_finite(steps)


def test_adaptive_clipping_by_hand():
    params = {"a": jnp.array([3.0, 4.0]), "b": jnp.zeros(2), "c": jnp.array([3.0, 4.0])}
    grads = {"a": jnp.array([30.0, 40.0]), "b": jnp.array([0.0, 1.0]), "c": jnp.array([0.3, 0.4])}
    optimiser = optimisers.clip_adaptively(0.3)
    got, _ = optimiser.update(grads, optimiser.init(params), params)
    np.testing.assert_allclose(got["a"], [0.9, 1.2], rtol=1e-6)  # norm 0.3 * 5
    np.testing.assert_allclose(got["b"], [0.0, 3e-4], rtol=1e-6)  # norm 0.3 * 1e-3
    np.testing.assert_array_equal(got["c"], grads["c"])
    none, _ = optimiser.update(jax.tree.map(jnp.zeros_like, grads), optax.EmptyState(), params)
    chex.assert_tree_all_finite(none)


def test_gradients_are_clipped_before_they_are_normalised():
    """By hand: a gradient of 50 is cut to 1.5, 0.3 of the norm 5, and so does not stay in the mean
    of squares as 50. First step: the rate. Second: n = 0.999 * 0.001 * 0.81 + 0.001 * 0.09, over
    1 - 0.999^2; 0.3 / sqrt = 0.44730; m = 0.9 * 0.1 + 0.1 * 0.44730; over 1 - 0.81."""
    optimiser = optimisers.dreamer_v3_optimiser(0.1, agc=0.3, warmup=0)
    params = jnp.array([3.0, 4.0])
    state = optimiser.init(params)
    first, state = optimiser.update(jnp.array([30.0, 40.0]), state, params)
    np.testing.assert_allclose(first, [-0.1, -0.1], rtol=1e-4)
    second, _ = optimiser.update(jnp.array([0.3, 0.4]), state, params)
    np.testing.assert_allclose(second, [-0.070911, -0.070911], rtol=1e-4)  # else -0.0481


def test_the_learning_rate_rises_over_the_warmup():
    optimiser = optimisers.dreamer_v3_optimiser(0.1, agc=100.0, warmup=10)
    params = jnp.ones(3)
    state, sizes = optimiser.init(params), []
    for _ in range(12):
        step, state = optimiser.update(jnp.ones(3), state, params)
        sizes.append(float(jnp.abs(step).max()))
    np.testing.assert_allclose(sizes, np.minimum(np.arange(12) / 10, 1) * 0.1, rtol=1e-4, atol=1e-8)


def test_the_learning_rate_falls_to_a_tenth():
    """By hand: 4 updates up to 0.1, then down by 0.015 each, 0.01 from the tenth on."""
    want = [0, 0.025, 0.05, 0.075, 0.1, 0.085, 0.07, 0.055, 0.04, 0.025, 0.01, 0.01, 0.01]
    rate = optimisers.warmed_up(0.1, 4, 10)
    np.testing.assert_allclose([rate(jnp.int32(n)) for n in range(13)], want, rtol=1e-5, atol=1e-9)
    at_once = optimisers.warmed_up(0.1, 0, 2)
    np.testing.assert_allclose(
        [at_once(jnp.int32(n)) for n in range(3)], [0.1, 0.055, 0.01], rtol=1e-5
    )
    assert optimisers.warmed_up(0.1, 0)(jnp.int32(7)) == 0.1


def test_estimators_are_found_by_name():
    logits, key = jnp.array([[0.5, -1.0, 2.0]]), jax.random.key(1)
    for name, expected in (
        ("straight_through", categorical.straight_through(key, logits)),
        ("gumbel_softmax", categorical.gumbel_softmax(key, logits, 0.3)),
        ("straight_through_gumbel", categorical.straight_through_gumbel(key, logits, 0.3)),
    ):
        np.testing.assert_array_equal(categorical.estimator(name, 0.3)(key, logits), expected)
    with pytest.raises(ValueError, match="use one of straight_through"):
        categorical.estimator("score_function")
