"""Diagonal Gaussians as (mean, std) pairs: arrays only, so they cross scan, vmap and jit."""

from __future__ import annotations

import math

import chex
import jax
import jax.numpy as jnp


def kl(mean_p: jax.Array, std_p: jax.Array, mean_q: jax.Array, std_q: jax.Array) -> jax.Array:
    """KL[p || q] in nats, summed over the last axis: [..., Z] -> [...]."""
    chex.assert_equal_shape([mean_p, std_p, mean_q, std_q])
    ratio = jnp.square(std_p / std_q)
    shift = jnp.square((mean_p - mean_q) / std_q)
    return 0.5 * jnp.sum(ratio + shift - 1.0 - jnp.log(ratio), axis=-1)


def entropy(std: jax.Array) -> jax.Array:
    """Differential entropy in nats, summed over the last axis: [..., Z] -> [...]."""
    return jnp.sum(jnp.log(std) + 0.5 * math.log(2.0 * math.pi * math.e), axis=-1)


def free_nats_kl(
    post: tuple[jax.Array, jax.Array], prior: tuple[jax.Array, jax.Array], free: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The two clipped KL terms of DreamerV3 (Hafner et al. 2023, eq. 5).

    Args:
      post, prior: (mean, std), each [..., Z].
      free: nats below which a term gives no gradient.

    Returns:
      dynamics max(free, KL[sg(post) || prior]), representation max(free, KL[post || sg(prior)])
      and the unclipped KL, each [...].
    """
    sg = jax.lax.stop_gradient
    dynamics = kl(*sg(post), *prior)
    representation = kl(*post, *sg(prior))
    return jnp.maximum(dynamics, free), jnp.maximum(representation, free), sg(dynamics)
