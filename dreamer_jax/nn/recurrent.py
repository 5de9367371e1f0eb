"""Recurrent cells."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from dreamer_jax.nn.blocks import BlockLinear, Linear, RMSNormSiLU


class LayerNormGRU(nn.Module):
    """GRU with one LayerNorm over all three gates (as in DreamerV2's RSSM).

    (h [..., D], x [..., any]) -> h [..., D]. The update gate is biased towards keeping the state.
    """

    features: int

    @nn.compact
    def __call__(self, h: jax.Array, x: jax.Array) -> jax.Array:
        gates = Linear(3 * self.features)(jnp.concatenate([x, h], axis=-1))
        reset, candidate, update = jnp.split(nn.LayerNorm(epsilon=1e-3)(gates), 3, axis=-1)
        candidate = jnp.tanh(nn.sigmoid(reset) * candidate)
        update = nn.sigmoid(update - 1.0)
        return update * candidate + (1.0 - update) * h


class BlockGRU(nn.Module):
    """GRU whose recurrent weights are block-diagonal (DreamerV3, Hafner et al. 2025, "RSSM").

    (h [..., D], x [..., any]) -> h [..., D]. Every block sees its part of h and all of x, through
    one hidden layer of the size of h. The update gate is biased towards keeping the state.
    """

    features: int
    blocks: int
    norm: type[nn.Module] = RMSNormSiLU

    @nn.compact
    def __call__(self, h: jax.Array, x: jax.Array) -> jax.Array:
        x = self.norm()(BlockLinear(self.features, self.blocks)(h, x))
        gates = BlockLinear(3 * self.features, self.blocks)(x)
        # Pieces, not a reshape to [..., blocks, 3, n]: behind that XLA's CPU code for the gates is
        # eight times slower.
        pieces = jnp.split(gates, 3 * self.blocks, axis=-1)
        reset, candidate, update = (jnp.concatenate(pieces[i::3], axis=-1) for i in range(3))
        candidate = jnp.tanh(nn.sigmoid(reset) * candidate)
        update = nn.sigmoid(update - 1.0)
        return update * candidate + (1.0 - update) * h
