"""Returns of a trajectory."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp


def lambda_returns(
    rewards: jax.Array,
    discounts: jax.Array,
    next_values: jax.Array,
    lambda_: float | jax.Array,
) -> jax.Array:
    """R_t = r_t + d_t [(1 - lambda) v_{t+1} + lambda R_{t+1}], with R_H = v_H.

    Args:
      rewards: [H, ...], r_t is earned on the way from state t to state t + 1.
      discounts: [H, ...], d_t = gamma * P(state t + 1 is not terminal).
      next_values: [H, ...], entry t is v_{t+1}, the value of state t + 1.
      lambda_: 0 gives the one-step target, 1 the discounted sum with a bootstrap at the end; or an
        array [H, ...], 0 where the record after t is cut off from state t + 1.

    Returns:
      [H, ...] returns of states 0 .. H - 1 (Sutton & Barto 2018, eq. 12.20; Hafner et al. 2020,
      eq. 6 in its recursive form).
    """
    chex.assert_equal_shape([rewards, discounts, next_values])

    def step(future, inputs):
        reward, discount, value, mix = inputs
        now = reward + discount * ((1.0 - mix) * value + mix * future)
        return now, now

    inputs = (rewards, discounts, next_values, jnp.broadcast_to(lambda_, rewards.shape))
    _, returns = jax.lax.scan(step, next_values[-1], inputs, reverse=True)
    return returns


def survival_weights(continues: jax.Array, start: jax.Array) -> jax.Array:
    """Probability that the trajectory still runs at state t.

    Args:
      continues: [H, ...], entry t is P(state t + 1 is not terminal).
      start: [...], 1 where the start itself is not terminal.

    Returns:
      [H, ...]: start * prod_{k < t} continues_k; so terminal states teach nothing.
    """
    chex.assert_equal_shape([continues[0], start])
    return jnp.cumprod(jnp.concatenate([start[None], continues[:-1]], axis=0), axis=0)
