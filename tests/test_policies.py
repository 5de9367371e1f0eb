"""Policies against distrax, numeric integrals and known gradients."""

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer_jax.policies import bounded_normal, one_hot, tanh_normal, truncated_normal

KEY = jax.random.key(0)
RAW = jnp.array([[0.3, -1.2, 0.5, 2.0], [4.0, 0.0, -3.0, 1.0]])


def test_bounded_normal_is_the_normal_it_says():
    policy = bounded_normal(2, min_std=0.2, max_std=0.9)
    mean = jnp.tanh(RAW[:, :2])
    std = 0.2 + 0.7 / (1.0 + jnp.exp(-(RAW[:, 2:] + 2.0)))
    known = distrax.Independent(distrax.Normal(mean, std), 1)
    action = policy.sample(RAW, KEY)
    np.testing.assert_allclose(policy.mode(RAW), mean, rtol=1e-6)
    np.testing.assert_allclose(policy.log_prob(RAW, action), known.log_prob(action), rtol=1e-5)
    np.testing.assert_allclose(policy.entropy(RAW), known.entropy(), rtol=1e-5)


@pytest.mark.parametrize("raw", [[0.7, -4.5], [-3.0, 0.0], [0.0, 6.0], [9.0, -9.0]])
def test_truncated_normal_is_the_normal_between_its_borders(raw):
    """Density, entropy, mean and quantiles against a numeric integral of what it says it is."""
    policy, raw = truncated_normal(1), jnp.array(raw)
    mean, std = np.tanh(raw[0]), 0.1 + 2.0 / (1.0 + np.exp(-raw[1] / 2.0))
    grid = np.linspace(-1.0, 1.0, 20_001)
    density = np.exp(-0.5 * ((grid - mean) / std) ** 2)
    density /= np.trapezoid(density, grid)
    log_prob = jax.jit(jax.vmap(lambda x: policy.log_prob(raw, x)))(grid[:, None])
    np.testing.assert_allclose(np.exp(log_prob), density, rtol=2e-3, atol=1e-6)
    entropy = -np.trapezoid(density * np.log(np.maximum(density, 1e-30)), grid)
    assert float(policy.entropy(raw)) == pytest.approx(entropy, abs=2e-3)
    many = jax.jit(jax.vmap(lambda k: policy.sample(raw, k)))(jax.random.split(KEY, 20_000))[:, 0]
    assert np.abs(many).max() <= 1.0
    assert many.mean() == pytest.approx(np.trapezoid(density * grid, grid), abs=0.02)
    below = np.cumsum(density) / density.sum()
    expected = np.interp([0.05, 0.5, 0.95], below, grid)
    np.testing.assert_allclose(np.quantile(many, [0.05, 0.5, 0.95]), expected, atol=0.03)
    assert float(policy.mode(raw)[0]) == pytest.approx(float(mean))


def test_an_entropy_bonus_draws_a_truncated_mean_back_from_the_border():
    """The Normal's own entropy does not know its mean."""
    raw = jnp.array([[2.0, -3.0], [-2.0, -3.0]])
    slope = jax.vmap(jax.grad(truncated_normal(1).entropy))(raw)[:, 0]
    assert slope[0] < -0.01 and slope[1] > 0.01
    assert not np.any(jax.vmap(jax.grad(bounded_normal(1).entropy))(raw)[:, 0])


def test_tanh_normal_is_a_density_on_the_open_interval():
    policy = tanh_normal(1)
    raw = jnp.array([0.7, -4.5])  # a standard deviation of about 0.6
    grid = jnp.linspace(-0.9999, 0.9999, 40_001)[:, None]
    log_prob = jax.jit(jax.vmap(lambda x: policy.log_prob(raw, x)))(grid)
    assert np.trapezoid(np.exp(log_prob), grid[:, 0]) == pytest.approx(1.0, abs=2e-3)
    many = jax.jit(jax.vmap(lambda k: policy.sample(raw, k)))(jax.random.split(KEY, 4000))
    inside = np.mean(np.abs(many) < 0.5)
    shown = (np.abs(grid[:, 0]) < 0.5) * np.exp(log_prob)
    assert inside == pytest.approx(np.trapezoid(shown, grid[:, 0]), abs=0.03)
    assert float(policy.mode(raw)[0]) == pytest.approx(np.tanh(5 * np.tanh(0.7 / 5)))


def test_tanh_normal_starts_wide_and_stays_finite_at_the_border():
    policy = tanh_normal(2, start_std=5.0)
    assert float(policy.entropy(jnp.zeros(4))) == pytest.approx(
        2 * (np.log(5.0 + 1e-4) + 0.5 * np.log(2 * np.pi * np.e)), rel=1e-4
    )
    assert np.isfinite(policy.log_prob(jnp.zeros(4), jnp.array([1.0, -1.0])))


@pytest.mark.parametrize("policy", [bounded_normal(2), tanh_normal(2), truncated_normal(2)])
def test_means_beyond_two_are_in_excess_of_what_tanh_can_move(policy):
    raw = jnp.array([[0.3, -1.9, 9.0, -9.0], [4.0, 1.0, -3.0, 1.0], [2.5, -5.0, 0.0, 0.0]])
    excess, slope = jax.vmap(jax.value_and_grad(policy.excess))(raw)
    np.testing.assert_allclose(excess, [0.0, 4.0, 0.25 + 9.0])
    np.testing.assert_allclose(slope, [[0, 0, 0, 0], [4, 0, 0, 0], [1, -6, 0, 0]])
    np.testing.assert_array_equal(one_hot(4).excess(raw), jnp.zeros(3))


def test_one_hot_mixes_the_uniform_distribution_in():
    policy = one_hot(3, unimix=0.1)
    raw = jnp.array([0.0, 5.0, -2.0])
    probs = 0.9 * jax.nn.softmax(raw) + 0.1 / 3
    np.testing.assert_allclose(
        jax.vmap(lambda a: policy.log_prob(raw, a))(jnp.eye(3)), np.log(probs), rtol=1e-5
    )
    assert float(policy.entropy(raw)) == pytest.approx(float(-jnp.sum(probs * jnp.log(probs))))
    np.testing.assert_array_equal(policy.mode(raw), [0.0, 1.0, 0.0])
    drawn = jax.jit(jax.vmap(lambda k: policy.sample(raw, k)))(jax.random.split(KEY, 5000))
    np.testing.assert_allclose(drawn.sum(-1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(drawn.mean(0), probs, atol=0.02)


@pytest.mark.parametrize(
    "policy",
    [bounded_normal(2), tanh_normal(2, start_std=0.5), truncated_normal(2), one_hot(4)],
)
def test_samples_pass_on_gradients_and_scores_none_to_the_action(policy):
    raw = RAW[0]

    def weighed(raw):
        return jnp.sum(policy.sample(raw, KEY) * jnp.arange(1.0, 1.0 + len(policy.mode(raw))))

    action = policy.sample(raw, KEY)
    by_raw, by_action = jax.jit(jax.grad(policy.log_prob, argnums=(0, 1)))(raw, action)
    assert np.any(jax.jit(jax.grad(weighed))(raw) != 0)
    assert np.any(by_raw != 0) and not np.any(by_action)


@pytest.mark.parametrize(
    "policy", [bounded_normal(2), tanh_normal(2), truncated_normal(2), one_hot(3)]
)
def test_following_the_score_makes_the_better_action_likelier(policy):
    """REINFORCE by hand: reward for a positive first entry."""
    raw = jnp.zeros(policy.outputs)

    def objective(raw, keys):
        action = jax.lax.stop_gradient(jax.vmap(lambda k: policy.sample(raw, k))(keys))
        reward = (action[:, 0] > 0.5).astype(jnp.float32)
        scores = jax.vmap(lambda a: policy.log_prob(raw, a))(action)
        return jnp.mean(scores * (reward - jnp.mean(reward)))

    step = jax.jit(lambda raw, k: raw + 0.3 * jax.grad(objective)(raw, jax.random.split(k, 256)))
    for number in range(60):
        raw = step(raw, jax.random.key(number))
    assert float(policy.mode(raw)[0]) > 0.5


def test_a_wrong_number_of_outputs_is_refused():
    with pytest.raises(AssertionError):
        bounded_normal(2).mode(jnp.zeros(3))
