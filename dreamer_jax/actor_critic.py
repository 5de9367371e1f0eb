"""Policy, value targets and losses on imagined trajectories."""

from __future__ import annotations

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from dreamer_jax.ops import gaussian
from dreamer_jax.ops.returns import lambda_returns, survival_weights
from dreamer_jax.ops.transforms import symlog


class Imagined(NamedTuple):
    """What the losses need of a trajectory; H entries each, [H, B]."""

    returns: jax.Array  # lambda-return of state t
    weights: jax.Array  # probability that the trajectory still runs at state t
    rewards: jax.Array  # r_t, earned by action t


def policy_distribution(raw: jax.Array, min_std: float) -> tuple[jax.Array, jax.Array]:
    """[..., 2A] -> mean in (-1, 1) and std in (min_std, 1), each [..., A]."""
    mean, std = jnp.split(raw, 2, axis=-1)
    return jnp.tanh(mean), min_std + (1.0 - min_std) * jax.nn.sigmoid(std)


def sample_action(mean: jax.Array, std: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Reparameterised action in [-1, 1] and the Gaussian's entropy [...].

    Clipping is what the environment does with an action, so imagination does the same: its
    gradient is zero for the samples that were clipped.
    """
    action = mean + std * jax.random.normal(key, mean.shape)
    return jnp.clip(action, -1.0, 1.0), gaussian.entropy(std)


def imagined_returns(
    rewards: jax.Array,
    continues: jax.Array,
    values: jax.Array,
    start_alive: jax.Array,
    gamma: float,
    lambda_: float,
) -> Imagined:
    """Returns and weights.

    Args:
      rewards, continues, values: [H + 1, B] as the heads give them on all states; entry 0 (the
        start's own reward and continue) is not used.
      start_alive: [B], 0 where the start is terminal.
    """
    chex.assert_equal_shape([rewards, continues, values])
    returns = lambda_returns(rewards[1:], gamma * continues[1:], values[1:], lambda_)
    return Imagined(returns, survival_weights(continues[1:], start_alive), rewards[1:])


def actor_loss(imagined: Imagined, entropy: jax.Array, entropy_scale: jax.Array) -> jax.Array:
    """-(return + entropy bonus), weighted by survival; gradients flow through the dynamics."""
    weights = jax.lax.stop_gradient(imagined.weights)
    return -jnp.mean(weights * (imagined.returns + entropy_scale * entropy))


def critic_loss(prediction: jax.Array, imagined: Imagined) -> jax.Array:
    """Squared error to sg(symlog(R)): prediction [H, B] is the critic's raw (symlog) output."""
    chex.assert_equal_shape([prediction, imagined.returns])
    target, weights = jax.lax.stop_gradient((symlog(imagined.returns), imagined.weights))
    return jnp.mean(weights * jnp.square(prediction - target))
