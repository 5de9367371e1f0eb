"""Convolutions behind one interface: which arithmetic carries them out is decided here.

Strided convolutions and, above all, their weight gradients are slow on CPUs and turn into grouped
ones under `jax.vmap` over learners; as patches times a matrix they run at the speed of a (batched)
matrix product. A kernel as large as its stride needs no overlapping patches: a reshape does.
All functions take NHWC images and HWIO kernels, padding VALID but for `conv_same`, and agree within
float tolerance.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from dreamer_jax.nn.precision import matmul, rounded


def fold(image: jax.Array, block: int) -> jax.Array:
    """[..., H, W, C] -> [..., H/b, W/b, b*b*C]: pixel blocks become channels, nothing is lost."""
    if block == 1:
        return image
    *lead, h, w, c = image.shape
    if h % block or w % block:
        raise ValueError(f"fold={block} does not divide an image of {h}x{w}; choose a divisor")
    x = image.reshape(*lead, h // block, block, w // block, block * c)
    if x.dtype == jnp.uint8 and block * c % 4 == 0:
        # Four bytes at a time: three times faster on a CPU than byte by byte.
        words = jax.lax.bitcast_convert_type(x.reshape(*x.shape[:-1], -1, 4), jnp.uint32)
        words = jnp.swapaxes(words, -3, -2)
        x = jax.lax.bitcast_convert_type(words, jnp.uint8)
    else:
        x = jnp.swapaxes(x, -3, -2)
    return x.reshape(*lead, h // block, w // block, block * block * c)


def unfold(folded: jax.Array, block: int) -> jax.Array:
    """The inverse of `fold`."""
    if block == 1:
        return folded
    *lead, h, w, c = folded.shape
    x = folded.reshape(*lead, h, w, block, block, c // block**2)
    return jnp.moveaxis(x, -3, -4).reshape(*lead, h * block, w * block, c // block**2)


def to_unit(image: jax.Array) -> jax.Array:
    """uint8 -> float32 in [0, 1]."""
    return image.astype(jnp.float32) / 255.0


def conv_plain(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """[B, H, W, I] by [k, k, I, O] -> [B, (H-k)//s+1, (W-k)//s+1, O], XLA's own convolution."""
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def conv_patches(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """The same sum as patches times a matrix. Raises ValueError where no kernel fits."""
    k, _, c_in, c_out = kernel.shape
    x = rounded(x)
    rows, cols = ((size - k) // stride + 1 for size in x.shape[1:3])
    if rows < 1 or cols < 1:
        raise ValueError(f"a kernel of {k} does not fit a map of {x.shape[1]} x {x.shape[2]}")
    if k == stride:
        patches = fold(x[:, : rows * k, : cols * k], k)
    else:
        reach_r, reach_c = stride * (rows - 1) + 1, stride * (cols - 1) + 1
        shifts = [(i, j) for i in range(k) for j in range(k)]
        patches = jnp.concatenate(
            [x[:, i : i + reach_r : stride, j : j + reach_c : stride] for i, j in shifts], axis=-1
        )
    flat = matmul(patches.reshape(-1, k * k * c_in), kernel.reshape(k * k * c_in, c_out))
    return flat.reshape(-1, rows, cols, c_out)


def conv_same(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """[B, H, W, I] by [k, k, I, O] -> [B, H, W, O], stride 1, zeros around the image.

    XLA's own: on maps of 8 to 32 pixels patches were no faster in either direction.
    """
    out = jax.lax.conv_general_dilated(
        rounded(x), rounded(kernel), (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return out.astype(jnp.float32)


def conv_transpose_plain(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """[B, H, W, I] by [k, k, I, O] -> [B, (H-1)s+k, (W-1)s+k, O]: each pixel stamps its kernel."""
    k = kernel.shape[0]
    return jax.lax.conv_general_dilated(
        x,
        kernel[::-1, ::-1],
        (1, 1),
        [(k - 1, k - 1)] * 2,
        lhs_dilation=(stride, stride),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def conv_transpose_patches(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """The same sum as a matrix product whose patches are then laid side by side or added up."""
    k, _, c_in, c_out = kernel.shape
    batch, rows, cols, _ = x.shape
    stamped = kernel.transpose(2, 0, 1, 3).reshape(c_in, k * k * c_out)
    stamps = matmul(x.reshape(-1, c_in), stamped)
    if k == stride:
        return unfold(stamps.reshape(batch, rows, cols, k * k * c_out), k)
    # Cut each stamp into stride x stride tiles: tile (a, b) of pixel (i, j) lands on tile
    # (i + a, j + b) of the output, so only ceil(k / s)^2 shifted additions are needed.
    tiles = -(-k // stride)
    pad = tiles * stride - k
    stamps = stamps.reshape(batch, rows, cols, k, k, c_out)
    stamps = jnp.pad(stamps, ((0, 0),) * 3 + ((0, pad), (0, pad), (0, 0)))
    stamps = stamps.reshape(batch, rows, cols, tiles, stride, tiles, stride, c_out)
    canvas = 0.0
    for a in range(tiles):
        for b in range(tiles):
            tile = stamps[:, :, :, a, :, b].reshape(batch, rows, cols, -1)
            margin = ((0, 0), (a, tiles - 1 - a), (b, tiles - 1 - b), (0, 0))
            canvas = canvas + jnp.pad(tile, margin)
    out = unfold(canvas, stride)
    return out[:, : (rows - 1) * stride + k, : (cols - 1) * stride + k]


class Conv(nn.Module):
    """Convolution, padding VALID. With its bias a norm behind it does not hide what is even."""

    features: int
    kernel: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.kernel, self.kernel, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        return conv_patches(x, kernel, self.stride) + bias


class ConvTranspose(nn.Module):
    """Transposed convolution, padding VALID."""

    features: int
    kernel: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.kernel, self.kernel, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        return conv_transpose_patches(x, kernel, self.stride) + bias
