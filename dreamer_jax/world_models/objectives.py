"""What a world model is trained on; every loss is a mean over time and batch."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import optax

from dreamer_jax.ops.transforms import symlog


def image_loss(prediction: jax.Array, target: jax.Array) -> jax.Array:
    """Squared error summed over pixels: both [T, B, h, w, c] in [0, 1]."""
    chex.assert_equal_shape([prediction, target])
    return jnp.mean(jnp.sum(jnp.square(prediction - target), axis=(-3, -2, -1)))


def reward_loss(prediction: jax.Array, reward: jax.Array) -> jax.Array:
    """Squared error to symlog(reward): both [T, B], the prediction in symlog units."""
    chex.assert_equal_shape([prediction, reward])
    return jnp.mean(jnp.square(prediction - symlog(reward)))


def continue_loss(logits: jax.Array, is_terminal: jax.Array) -> jax.Array:
    """Bernoulli negative log-likelihood of 1 - is_terminal: both [T, B]."""
    chex.assert_equal_shape([logits, is_terminal])
    target = 1.0 - is_terminal.astype(jnp.float32)
    return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, target))
