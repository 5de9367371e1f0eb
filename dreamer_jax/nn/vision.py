"""Image encoder and decoder, both on folded images (`conv.fold`; fold 1 is the plain image)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from dreamer_jax.nn.blocks import Linear, NormSiLU
from dreamer_jax.nn.conv import Conv, ConvTranspose

Layer = tuple[int, int, int]  # features, kernel, stride


class Encoder(nn.Module):
    """[B, h, w, c] in [0, 1] -> [B, embed]; convolutions, then one linear layer."""

    layers: tuple[Layer, ...]
    embed: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = x - 0.5
        for features, kernel, stride in self.layers:
            x = NormSiLU()(Conv(features, kernel, stride)(x))
        x = x.reshape(x.shape[0], -1)
        return NormSiLU()(Linear(self.embed, use_bias=False)(x))


class Decoder(nn.Module):
    """[B, features] -> [B, h, w, c] in [0, 1].

    A linear layer unflattened to `base` (side, channels), transposed convolutions, sigmoid; the
    result is cropped, or edge-padded, around its centre to `out` (h, w, c).
    """

    base: tuple[int, int]
    layers: tuple[Layer, ...]  # the last one paints: its features must be out[-1]
    out: tuple[int, int, int]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        side, channels = self.base
        x = Linear(side * side * channels)(x)
        x = x.reshape(-1, side, side, channels)
        for features, kernel, stride in self.layers[:-1]:
            x = NormSiLU()(ConvTranspose(features, kernel, stride)(x))
        features, kernel, stride = self.layers[-1]
        x = ConvTranspose(features, kernel, stride, use_bias=True)(x)
        return nn.sigmoid(fit(x, self.out))


def fit(x: jax.Array, size: tuple[int, int, int]) -> jax.Array:
    """Crop or edge-pad [B, h, w, c] around its centre to [B, *size]."""
    for axis in (1, 2):
        excess = x.shape[axis] - size[axis - 1]
        if excess > 0:
            x = jax.lax.slice_in_dim(x, excess // 2, excess // 2 + size[axis - 1], axis=axis)
        elif excess < 0:
            margin = [(0, 0)] * 4
            margin[axis] = (-excess // 2, -excess - -excess // 2)
            x = jnp.pad(x, margin, mode="edge")
    return x
