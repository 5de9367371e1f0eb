"""Image encoder and decoder, both on folded images (`conv.fold`; fold 1 is the plain image)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from dreamer_jax.nn.blocks import Linear, NormSiLU, RMSNormSiLU
from dreamer_jax.nn.conv import Conv, ConvTranspose

Layer = tuple[int, int, int]  # features, kernel, stride


class Encoder(nn.Module):
    """[B, h, w, c] in [0, 1] -> [B, embed]; convolutions, then one linear layer."""

    layers: tuple[Layer, ...]
    embed: int
    norm: type[nn.Module] = NormSiLU

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = x - 0.5
        for features, kernel, stride in self.layers:
            x = self.norm()(Conv(features, kernel, stride)(x))
        x = x.reshape(x.shape[0], -1)
        return self.norm()(Linear(self.embed)(x))


class Decoder(nn.Module):
    """[B, features] -> [B, h, w, c] in [0, 1].

    A linear layer unflattened to `base` (side, channels), transposed convolutions, sigmoid; the
    result is cropped, or edge-padded, around its centre to `out` (h, w, c).
    """

    base: tuple[int, int]
    layers: tuple[Layer, ...]  # the last one paints: its features must be out[-1]
    out: tuple[int, int, int]
    norm: type[nn.Module] = NormSiLU

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        side, channels = self.base
        x = Linear(side * side * channels)(x)
        x = x.reshape(-1, side, side, channels)
        for features, kernel, stride in self.layers[:-1]:
            x = self.norm()(ConvTranspose(features, kernel, stride)(x))
        features, kernel, stride = self.layers[-1]
        x = ConvTranspose(features, kernel, stride)(x)
        return nn.sigmoid(fit(x, self.out))


class HalvingEncoder(nn.Module):
    """[B, h, w, c] in [0, 1] -> [B, side * side * channels] (DreamerV3, table B.1 of 2023).

    Convolutions of stride 2 with doubling width, from `depth` on, until the next would leave less
    than 4 x 4; then flattened.
    """

    depth: int
    norm: type[nn.Module] = RMSNormSiLU

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = x - 0.5
        for features, _ in halvings(self.depth, x.shape[1:3]):
            x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
            x = self.norm()(Conv(features, 4, 2)(x))
        return x.reshape(x.shape[0], -1)


class DoublingDecoder(nn.Module):
    """[B, features] -> [B, h, w, c] in [0, 1]: `HalvingEncoder` the other way round."""

    depth: int
    out: tuple[int, int, int]
    norm: type[nn.Module] = RMSNormSiLU

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        widths, sides = zip(*halvings(self.depth, self.out[:2]), strict=True)
        x = self.norm()(Linear(sides[-1][0] * sides[-1][1] * widths[-1])(x))
        x = x.reshape(-1, *sides[-1], widths[-1])
        for features in widths[-2::-1]:
            x = self.norm()(ConvTranspose(features, 4, 2)(x)[:, 1:-1, 1:-1])
        x = ConvTranspose(self.out[-1], 4, 2)(x)[:, 1:-1, 1:-1]
        return nn.sigmoid(x)


def halvings(depth: int, size: tuple[int, int]) -> list[tuple[int, tuple[int, int]]]:
    """(width, (h, w)) after each halving of an image of `size`, as long as 4 x 4 remain.

    Raises:
      ValueError: an odd side on the way, or an image too small for one halving.
    """
    steps = []
    while min(size) >= 8:
        if size[0] % 2 or size[1] % 2:
            raise ValueError(f"an image side of {size} cannot be halved; resize the images to 64")
        size = (size[0] // 2, size[1] // 2)
        steps.append((depth * 2 ** len(steps), size))
    if not steps:
        raise ValueError(f"an image of {size} is too small; use 8 x 8 or more")
    return steps


def fitted(
    base: tuple[int, int], layers: tuple[Layer, ...], out: tuple[int, int, int]
) -> tuple[tuple[int, int], tuple[Layer, ...]]:
    """`base` and `layers` of a `Decoder` that paints all of `out` (h, w, c), nothing padded: the
    side raised as far as it must be, the last layer's features those of `out`."""
    side, channels = base
    while _painted(side, layers) < max(out[:2]):
        side += 1
    *inner, (_, kernel, stride) = layers
    return (side, channels), (*inner, (out[-1], kernel, stride))


def _painted(side: int, layers: tuple[Layer, ...]) -> int:
    for _, kernel, stride in layers:
        side = (side - 1) * stride + kernel
    return side


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
