"""Policy and value losses, by hand, and where their gradients go."""

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer_jax.actor_critic import (
    Imagined,
    actor_loss,
    critic_loss,
    imagined_returns,
    policy_distribution,
    sample_action,
)


def column(*values):
    return jnp.array(values, jnp.float32)[:, None]


def case():
    """H = 3, one trajectory; entry 0 of rewards and continues is the start's and not used."""
    rewards, continues = column(99.0, 1.0, 2.0, 3.0), column(0.0, 1.0, 0.5, 0.5)
    return rewards, continues, column(99.0, 10.0, 20.0, 30.0)


def test_returns_and_weights_by_hand():
    # gamma = 0.5, lambda = 0.5; discounts 0.5, 0.25, 0.25
    # R_2 = 3 + 0.25 * 30                        = 10.5
    # R_1 = 2 + 0.25 (0.5 * 20 + 0.5 * 10.5)     = 5.8125
    # R_0 = 1 + 0.5  (0.5 * 10 + 0.5 * 5.8125)   = 4.953125
    # weights: 1, then times continue 1, then times continue 0.5; gamma has no part in them
    got = imagined_returns(*case(), jnp.ones(1), gamma=0.5, lambda_=0.5)
    np.testing.assert_allclose(got.returns[:, 0], [4.953125, 5.8125, 10.5])
    np.testing.assert_allclose(got.weights[:, 0], [1.0, 1.0, 0.5])
    np.testing.assert_allclose(got.rewards[:, 0], [1.0, 2.0, 3.0])


def test_losses_by_hand():
    # weights 1, 0.5; returns e - 1 and -(e^2 - 1), whose symlogs are 1 and -2; entropies 2, 4
    imagined = Imagined(column(np.e - 1, 1 - np.e**2), column(1.0, 0.5), column(0.0, 0.0))
    # actor: -[1 (e - 1 + 0.1 * 2) + 0.5 (1 - e^2 + 0.1 * 4)] / 2
    want = -((np.e - 1 + 0.2) + 0.5 * (1 - np.e**2 + 0.4)) / 2
    got = actor_loss(imagined, column(2.0, 4.0), 0.1)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    # critic, predicting 3 and 0: [1 (3 - 1)^2 + 0.5 (0 + 2)^2] / 2 = 3
    got = critic_loss(column(3.0, 0.0), imagined)
    np.testing.assert_allclose(got, 3.0, rtol=1e-6)


def test_the_critic_teaches_nobody_else():
    def loss(prediction, rewards, continues, values):
        imagined = imagined_returns(rewards, continues, values, jnp.ones(1), 0.9, 0.5)
        return critic_loss(prediction, imagined)

    grads = jax.grad(loss, (0, 1, 2, 3))(column(1.0, 2.0, 3.0), *case())
    assert grads[0].any() and not any(g.any() for g in grads[1:])


def test_the_actor_learns_through_returns_and_not_through_weights():
    def loss(rewards, continues, values, entropy):
        imagined = imagined_returns(rewards, continues, values, jnp.ones(1), 0.5, 0.5)
        return actor_loss(imagined, entropy, 0.1)

    rewards, continues, values, entropy = jax.grad(loss, (0, 1, 2, 3))(*case(), column(1.0, 1, 1))
    # dR_0/dr = 1, 0.25, 0.0625 x 0.5; dR_1/dr = 1, 0.125; dR_2/dr = 1; weights 1, 1, 0.5; mean of 3
    want = -np.array([0.0, 1.0, 1.25, 0.03125 + 0.125 + 0.5]) / 3
    np.testing.assert_allclose(rewards[:, 0], want, rtol=1e-6)
    # dR_2/dv_3 = 0.25; dR_1/dv = 0.125 (v_2), 0.125 * 0.25 (v_3);
    # dR_0/dv = 0.25 (v_1), 0.25 * 0.125 (v_2), 0.25 * 0.03125 (v_3)
    want = -np.array([0.0, 0.25, 0.03125 + 0.125, 0.0078125 + 0.03125 + 0.125]) / 3
    np.testing.assert_allclose(values[:, 0], want, rtol=1e-6)
    np.testing.assert_allclose(entropy[:, 0], -0.1 * np.array([1.0, 1.0, 0.5]) / 3, rtol=1e-6)
    # The continue of state 3 is in R_2 = 3 + 0.5 c_3 v_3 and in no weight:
    # dR_2 = 15, dR_1 = 0.125 * 15, dR_0 = 0.25 * 0.125 * 15
    np.testing.assert_allclose(continues[3, 0], -15 * (0.5 + 0.125 + 0.03125) / 3, rtol=1e-6)


def test_weights_carry_no_gradient():
    # With all returns equal, an earlier end must not look better.
    def loss(continues):
        imagined = imagined_returns(
            column(0, -1, -1), continues, column(0, 0, 0), jnp.ones(1), 1, 1
        )
        return actor_loss(imagined._replace(returns=-jnp.ones((2, 1))), column(0, 0), 0.0)

    assert not jax.grad(loss)(column(1.0, 0.5, 0.5)).any()


def test_terminal_starts_teach_nothing():
    def both(raw):
        imagined = imagined_returns(*(raw * x for x in case()), jnp.zeros(1), 0.9, 0.5)
        return actor_loss(imagined, column(1.0, 1, 1), 0.1) + critic_loss(
            raw * column(1, 2, 3), imagined
        )

    value, grad = jax.value_and_grad(both)(1.0)
    assert value == 0.0 and grad == 0.0


def test_policy_ranges():
    mean, std = policy_distribution(jnp.array([[-50.0, 0.0, 50.0, -50.0, 0.0, 50.0]]), 0.1)
    np.testing.assert_allclose(mean[0], [-1.0, 0.0, 1.0])
    np.testing.assert_allclose(std[0], [0.1, 0.55, 1.0], rtol=1e-6)


def test_entropy_is_the_gaussians():
    mean, std = jnp.array([[0.2, -0.4]]), jnp.array([[0.3, 0.9]])
    want = distrax.Independent(distrax.Normal(mean, std), 1).entropy()
    np.testing.assert_allclose(sample_action(mean, std, jax.random.key(0))[1], want, rtol=1e-6)


def test_clipped_samples_have_no_gradient():
    mean, key = jnp.full((1000, 1), 0.9), jax.random.key(0)

    def total(mean, std):
        return sample_action(mean, jnp.broadcast_to(std, mean.shape), key)[0].sum()

    action, _ = sample_action(mean, jnp.full_like(mean, 0.5), key)
    clipped = jnp.abs(action) == 1.0
    grad = jax.grad(total)(mean, 0.5)
    assert 0.3 < clipped.mean() < 0.6 and jnp.abs(action).max() <= 1.0
    np.testing.assert_array_equal(grad, ~clipped)
    assert jnp.abs(jax.grad(total, 1)(mean, 0.0)) > 0  # std too is reached


def test_without_spread_the_action_is_the_mean():
    mean = jnp.array([[0.3, -1.0]])
    np.testing.assert_array_equal(sample_action(mean, 0.0 * mean, jax.random.key(0))[0], mean)


@pytest.mark.parametrize(("scale", "sign"), [(1.0, 1.0), (-1.0, -1.0), (0.0, 0.0)])
def test_a_step_down_the_loss_widens_the_policy_by_the_bonus(scale, sign):
    def loss(raw):
        _, std = policy_distribution(raw, 0.1)
        _, entropy = sample_action(jnp.zeros_like(std), std, jax.random.key(0))
        imagined = Imagined(jnp.ones((1, 1)), jnp.ones((1, 1)), jnp.ones((1, 1)))
        return actor_loss(imagined, entropy[None], scale)

    raw = jnp.zeros((1, 2))
    after = raw - 0.1 * jax.grad(loss)(raw)
    widened = policy_distribution(after, 0.1)[1] - policy_distribution(raw, 0.1)[1]
    np.testing.assert_array_equal(jnp.sign(widened), [[sign]])


def test_shapes_are_checked():
    imagined = Imagined(jnp.zeros((3, 2)), jnp.zeros((3, 2)), jnp.zeros((3, 2)))
    with pytest.raises(AssertionError):
        critic_loss(jnp.zeros((3, 2, 1)), imagined)
    with pytest.raises(AssertionError):
        imagined_returns(jnp.zeros((4, 2)), jnp.zeros((4, 2)), jnp.zeros((3, 2)), jnp.ones(2), 1, 1)
