"""Feature vectors of pictures: the space in which generated pictures are judged.

`random_conv_v1` needs no file: its weights are fixed random numbers. Distances in its space rank
generators of the same pictures; they are on no published scale, hence never called FID. Features
of the real FID come from a weights file: `ddim_jax.inception`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

FID_NET = "inception-2015-12-05"  # the one net whose Frechet distance is called FID

_SEED = 20151205
_LAYERS = ((5, 2, 16), (3, 2, 32), (3, 2, 48), (3, 2, 64))  # kernel, stride, channels


class FeatureNet(NamedTuple):
    """A fixed net; figures taken in its space carry its name."""

    name: str
    size: int  # d, width of the feature vectors
    apply: Callable  # uint8 [b, h, w, 3] -> float32 [b, d]


def score_name(net: FeatureNet) -> str:
    """What to call the Frechet distance in the net's space: 'FID' for FID's own Inception only."""
    return "FID" if net.name == FID_NET else f"Frechet distance ({net.name})"


def features(net: FeatureNet, images: np.ndarray, batch: int = 64) -> np.ndarray:
    """Feature vectors of pictures, computed in blocks of `batch`.

    Args:
      net: which features.
      images: uint8 [n, h, w, 3].
      batch: pictures on the device at once; the last block is padded, so one program serves all.

    Returns:
      float32 [n, d]. Raises ValueError for other shapes or types, no pictures, or batch < 1.
    """
    images = pictures(images, "images")
    if batch < 1:
        raise ValueError(f"batch must be at least 1, not {batch}")
    batch = min(batch, len(images))
    out = np.empty((len(images), net.size), np.float32)
    for start in range(0, len(images), batch):
        block = images[start : start + batch]
        size = len(block)
        if size < batch:
            block = np.concatenate([block, np.zeros((batch - size, *block.shape[1:]), np.uint8)])
        out[start : start + size] = np.asarray(net.apply(block))[:size]
    return out


def pictures(images: np.ndarray, name: str) -> np.ndarray:
    """The images as an array; ValueError with `name` unless uint8 [n, h, w, 3] with n >= 1."""
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or not images.size:
        got = f"{images.dtype} {list(images.shape)}"
        raise ValueError(f"{name} must be uint8 [n, height, width, 3] with n >= 1, not {got}")
    return images


def random_conv_v1() -> FeatureNet:
    """Four strided convolutions (VALID, leaky ReLU) with fixed random weights; 512 features.

    Mean and standard deviation over space of every layer's channels; the last layer's means are
    taken in each quarter of the picture, because in a racing frame it matters where a thing is.
    Pictures must be at least 49x49 (ValueError). That features of random nets can judge
    generators: Naeem et al. 2020, "Reliable fidelity and diversity metrics for generative models".
    """
    params = tuple((jnp.asarray(kernel), jnp.asarray(bias)) for kernel, bias in random_weights())
    widths = [width for _, _, width in _LAYERS]
    return FeatureNet("random-conv-v1", 2 * sum(widths) + 3 * widths[-1], partial(_apply, params))


def random_weights() -> list[tuple[np.ndarray, np.ndarray]]:
    """Kernel float32 [k, k, in, out] and bias [out] of each layer, bit for bit the same everywhere.

    Uniform, of He variance (2 / fan-in), from PCG64's raw bits: NumPy promises to keep these,
    but not what its distributions make of them. Every other kernel is then shifted to mean zero
    over space, else brightness drowns edges and texture; in whole numbers, which no machine
    rounds.
    """
    bits = np.random.PCG64(_SEED)

    def whole(*shape):  # odd numbers between -2^24 and 2^24
        raw = bits.random_raw(int(np.prod(shape))) >> np.uint64(40)
        return 2 * raw.astype(np.int64).reshape(shape) + 1 - 2**24

    weights, c_in = [], 3
    for k, _, c_out in _LAYERS:
        drawn = whole(k, k, c_in, c_out)
        kernel = k * k * drawn
        kernel[..., ::2] -= drawn[..., ::2].sum((0, 1))
        unit = np.sqrt(6.0 / (k * k * c_in)) / (k * k * 2**24)
        bias = whole(c_out) * 0.5 / 2**24
        weights.append(((unit * kernel).astype(np.float32), bias.astype(np.float32)))
        c_in = c_out
    return weights


@jax.jit
def _apply(params: tuple, images: jax.Array) -> jax.Array:
    x = images.astype(jnp.float32) / 127.5 - 1.0
    parts = []
    for (kernel, bias), (k, stride, _) in zip(params, _LAYERS, strict=True):
        if min(x.shape[1:3]) < k:
            break
        x = jax.nn.leaky_relu(conv(x, kernel, stride, "VALID") + bias, 0.2)
        parts += [x.mean((1, 2)), x.std((1, 2))]
    if len(parts) < 2 * len(_LAYERS) or min(x.shape[1:3]) < 2:
        h, w = images.shape[1:3]
        raise ValueError(f"images of {h}x{w} are too small for random-conv-v1: at least 49x49")
    parts[-2] = _quarter_means(x) / 2.0  # four of them weigh as one
    return jnp.concatenate(parts, axis=-1)


def _quarter_means(x: jax.Array) -> jax.Array:
    rows, cols = x.shape[1] // 2, x.shape[2] // 2
    halves = (x[:, :rows], x[:, rows:])
    quarters = [part for half in halves for part in (half[:, :, :cols], half[:, :, cols:])]
    return jnp.concatenate([quarter.mean((1, 2)) for quarter in quarters], axis=-1)


def conv(x: jax.Array, kernel: jax.Array, stride: int, padding: str) -> jax.Array:
    """[b, h, w, i] by [kh, kw, i, o], in full float32: accelerators round the factors otherwise."""
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=jax.lax.Precision.HIGHEST,
    )
