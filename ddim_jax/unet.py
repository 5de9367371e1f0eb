"""The noise network: a U-Net with residual blocks that are told the step, and self-attention.

Paper sizes: DLC-V1, appendix D. What differs from the public U-Nets of that shape: `fold` turns
pixel blocks into channels first, and the resolution changes by (un)folding 2 x 2 blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp

from dreamer_jax.nn.blocks import Linear
from dreamer_jax.nn.conv import conv_same, fold, unfold


@dataclass(frozen=True)
class UNetConfig:
    """Sizes of the noise network."""

    fold: int = 1
    """Side of the pixel blocks folded into channels (1: none)."""
    channels: tuple[int, ...] = (128, 128, 256, 256, 256)
    """Channels of each level; the resolution halves from one to the next."""
    blocks: int = 2
    """Residual blocks a level, on the way down and again on the way up."""
    attention: tuple[int, ...] = (3,)
    """Levels with self-attention after each block, counted from 0."""
    head_dim: int = 16
    """Size of an attention head."""
    groups: int = 32
    """Groups of the normalisation."""


class Conv3(nn.Module):
    """3 x 3 convolution that keeps the resolution."""

    features: int
    zero: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = nn.initializers.zeros_init() if self.zero else nn.initializers.lecun_normal()
        kernel = self.param("kernel", init, (3, 3, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        return conv_same(x, kernel) + bias


class ResBlock(nn.Module):
    """[B, h, w, any] and the step's embedding [B, E] -> [B, h, w, features]."""

    features: int
    groups: int

    @nn.compact
    def __call__(self, x: jax.Array, step: jax.Array) -> jax.Array:
        h = Conv3(self.features)(nn.silu(nn.GroupNorm(self.groups)(x)))
        scale, shift = jnp.split(Linear(2 * self.features)(step)[:, None, None], 2, axis=-1)
        h = nn.GroupNorm(self.groups)(h) * (1.0 + scale) + shift
        h = Conv3(self.features, zero=True)(nn.silu(h))
        return h + (x if x.shape[-1] == self.features else Linear(self.features)(x))


class Attention(nn.Module):
    """Self-attention over all positions of [B, h, w, c], added to its input."""

    head_dim: int
    groups: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, height, width, channels = x.shape
        heads = channels // self.head_dim
        h = nn.GroupNorm(self.groups)(x).reshape(batch, height * width, channels)
        qkv = Linear(3 * channels)(h).reshape(batch, height * width, 3, heads, self.head_dim)
        h = nn.dot_product_attention(*jnp.moveaxis(qkv, 2, 0))
        return x + Linear(channels, scale=0.0)(h.reshape(batch, height, width, channels))


class UNet(nn.Module):
    """(x_t float32 [B, H, W, C], t int [B]) -> the noise in it [B, H, W, C], or what else it is
    trained to give (`DDIMConfig.output`)."""

    config: UNetConfig

    @nn.compact
    def __call__(self, x: jax.Array, t: jax.Array) -> jax.Array:
        config, width = self.config, self.config.channels[0]
        x = fold(x, config.fold)
        step = nn.silu(Linear(4 * width)(sinusoid(t, width)))
        step = nn.silu(Linear(4 * width)(step))
        h, skips = Linear(width)(x) if config.fold > 1 else Conv3(width)(x), []
        last = len(config.channels) - 1
        for level, channels in enumerate(config.channels):
            for _ in range(config.blocks):
                h = self._block(h, step, level, channels)
                skips.append(h)
            if level < last:
                h = Linear(config.channels[level + 1])(fold(h, 2))
        h = ResBlock(config.channels[-1], config.groups)(h, step)
        h = Attention(config.head_dim, config.groups)(h)
        h = ResBlock(config.channels[-1], config.groups)(h, step)
        for level in range(last, -1, -1):
            for _ in range(config.blocks):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = self._block(h, step, level, config.channels[level])
            if level > 0:
                h = unfold(Linear(4 * config.channels[level - 1])(h), 2)
        h = nn.silu(nn.GroupNorm(config.groups)(h))
        # The shortcut carries the noise itself past the narrow levels.
        out = Conv3(x.shape[-1], zero=True)(h) + Linear(x.shape[-1], scale=0.0)(x)
        return unfold(out, config.fold)

    def _block(self, h, step, level, channels):
        h = ResBlock(channels, self.config.groups)(h, step)
        if level in self.config.attention:
            h = Attention(self.config.head_dim, self.config.groups)(h)
        return h


def sinusoid(t: jax.Array, width: int) -> jax.Array:
    """Sines and cosines of int [B] at width / 2 frequencies from 1 to 1e-4: [B, width]."""
    frequencies = jnp.exp(-jnp.log(1e4) * jnp.arange(width // 2) / (width // 2))
    angles = t.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def check_sizes(config: UNetConfig, image: tuple[int, int, int]) -> None:
    """Raises ValueError, naming the setting, where the network does not fit images (H, W, C)."""
    if not config.channels or config.blocks < 1 or config.fold < 1:
        raise ValueError("unet: channels, blocks and fold must not be empty or below 1")
    if config.groups < 1 or config.head_dim < 1 or min(config.channels) < 1:
        raise ValueError(
            f"unet: groups={config.groups}, head_dim={config.head_dim} and channels "
            f"{config.channels} must all be 1 or more"
        )
    block = config.fold * 2 ** (len(config.channels) - 1)
    if image[0] % block or image[1] % block:
        raise ValueError(
            f"unet: fold={config.fold} and {len(config.channels)} levels need image sides that "
            f"are multiples of {block}, not {image[0]}x{image[1]}"
        )
    if any(c % config.groups or c % config.head_dim or c % 2 for c in config.channels):
        raise ValueError(
            f"unet: channels {config.channels} must be multiples of groups={config.groups} and "
            f"head_dim={config.head_dim}"
        )
