"""Recurrent cells."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from dreamer_jax.nn.blocks import Linear


class LayerNormGRU(nn.Module):
    """GRU with one LayerNorm over all three gates (as in DreamerV2's RSSM).

    (h [..., D], x [..., any]) -> h [..., D]. The update gate is biased towards keeping the state.
    """

    features: int

    @nn.compact
    def __call__(self, h: jax.Array, x: jax.Array) -> jax.Array:
        gates = Linear(3 * self.features, use_bias=False)(jnp.concatenate([x, h], axis=-1))
        reset, candidate, update = jnp.split(nn.LayerNorm(epsilon=1e-3)(gates), 3, axis=-1)
        candidate = jnp.tanh(nn.sigmoid(reset) * candidate)
        update = nn.sigmoid(update - 1.0)
        return update * candidate + (1.0 - update) * h
