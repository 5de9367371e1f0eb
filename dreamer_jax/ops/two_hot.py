"""Real numbers as distributions over fixed bins (Hafner et al. 2025, "critic learning").

The bins of DreamerV3 are `symexp_bins()`: dense around 0, wide far from it, so that one scale fits
all rewards and returns, and the size of a gradient does not depend on the size of a target.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from dreamer_jax.ops.transforms import symexp


def symexp_bins(number: int = 255, limit: float = 20.0) -> jax.Array:
    """symexp of evenly spaced numbers in [-limit, limit]: float32 [number], symmetric around 0.

    Raises:
      ValueError: an even or too small number, which has no bin at 0.
    """
    if number < 3 or number % 2 == 0:
        raise ValueError(f"number={number} cannot be: use an odd number from 3 upwards")
    half = symexp(jnp.linspace(-limit, 0.0, number // 2 + 1))
    return jnp.concatenate([half, -half[:-1][::-1]])  # mirrored: exactly symmetric


def two_hot(x: jax.Array, bins: jax.Array) -> jax.Array:
    """Weights of the two bins next to x, whose mean is x: [...] -> [..., B].

    bins: ascending [B]. What lies outside of them becomes the first or the last.
    """
    chex.assert_rank(bins, 1)
    x = jnp.clip(x, bins[0], bins[-1])
    above = jnp.clip(jnp.searchsorted(bins, x, side="right"), 1, len(bins) - 1)
    low, high = bins[above - 1], bins[above]
    share = ((x - low) / (high - low))[..., None]
    number = len(bins)
    return (1.0 - share) * jax.nn.one_hot(above - 1, number) + share * jax.nn.one_hot(above, number)


def mean(logits: jax.Array, bins: jax.Array) -> jax.Array:
    """Mean of the distribution: [..., B] -> [...].

    Opposite bins are added up in pairs from 0 outwards, so that equal weights give exactly 0:
    summed in order, the far bins (1e8) would leave rounding errors of their own size.
    """
    chex.assert_equal_shape_suffix([logits, bins], 1)
    weighed = jax.nn.softmax(logits, axis=-1) * bins
    middle = len(bins) // 2
    left, right = weighed[..., :middle][..., ::-1], weighed[..., middle + 1 :]
    return weighed[..., middle] + jnp.sum(left + right, axis=-1)


def loss(logits: jax.Array, target: jax.Array, bins: jax.Array) -> jax.Array:
    """Cross entropy of the two-hot target in nats: [..., B], [...] -> [...].

    No gradient goes to the target.
    """
    chex.assert_equal_shape_prefix([logits, target], target.ndim)
    weights = jax.lax.stop_gradient(two_hot(target, bins))
    return -jnp.sum(weights * jax.nn.log_softmax(logits, axis=-1), axis=-1)
