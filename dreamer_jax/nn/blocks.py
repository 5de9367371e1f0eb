"""Dense building blocks."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from dreamer_jax.nn.precision import matmul, rounded


class Linear(nn.Module):
    """[..., in] -> [..., features]; `scale` multiplies the standard deviation of first weights.

    A norm behind it makes the bias no less needed: it divides by the size of what it gets, so that
    without a bias x and 2x look the same, and of an action only its direction is seen.

    Leading axes are flattened first: the weight gradient is then one plain matrix product, which
    XLA's CPU backend runs several times faster than a contraction over two or more axes.
    """

    features: int
    use_bias: bool = True
    scale: float = 1.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = nn.initializers.variance_scaling(self.scale**2, "fan_in", "truncated_normal")
        if self.scale == 0.0:
            init = nn.initializers.zeros_init()
        kernel = self.param("kernel", init, (x.shape[-1], self.features))
        y = matmul(x.reshape(-1, x.shape[-1]), kernel).reshape(*x.shape[:-1], self.features)
        if self.use_bias:
            y = y + self.param("bias", nn.initializers.zeros_init(), (self.features,))
        return y


class BlockLinear(nn.Module):
    """A linear layer whose weight matrix is block-diagonal: [..., in] -> [..., features].

    Block i of the output sees block i of the input, and all of `shared` [..., any] if given.
    Raises ValueError when a size is no multiple of `blocks`.
    """

    features: int
    blocks: int

    @nn.compact
    def __call__(self, x: jax.Array, shared: jax.Array | None = None) -> jax.Array:
        size, blocks = x.shape[-1], self.blocks
        if size % blocks or self.features % blocks:
            raise ValueError(
                f"sizes {size} and {self.features} are no multiples of {blocks} blocks"
            )
        own, common = size // blocks, 0 if shared is None else shared.shape[-1]
        init = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")  # of all blocks
        kernel = self.param("kernel", init, (blocks, own + common, self.features // blocks))
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        product = block_products if jax.default_backend() == "cpu" else block_einsum
        y = product(x.reshape(-1, size), kernel[:, :own])
        if shared is not None:
            dense = jnp.swapaxes(kernel[:, own:], 0, 1).reshape(common, self.features)
            y = y + matmul(shared.reshape(-1, common), dense)
        return y.reshape(*x.shape[:-1], self.features) + bias


def block_einsum(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """[B, n * i] by [n, i, o] -> [B, n * o], one batched product: for accelerators."""
    grouped = rounded(x.reshape(-1, *kernel.shape[:2]))
    y = jnp.einsum("bni,nio->bno", grouped, rounded(kernel)).astype(jnp.float32)
    return y.reshape(len(x), -1)


def block_products(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The same as one product for each block: on a CPU two to five times faster."""
    parts = jnp.split(x, len(kernel), axis=-1)
    pairs = zip(parts, kernel, strict=True)
    return jnp.concatenate([matmul(part, weights) for part, weights in pairs], axis=-1)


class NormSiLU(nn.Module):
    """LayerNorm over the last axis, then SiLU."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.silu(nn.LayerNorm(epsilon=1e-3)(x))


class RMSNormSiLU(nn.Module):
    """Division by the root mean square over the last axis, a learnt scale, then SiLU."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.silu(nn.RMSNorm(epsilon=1e-4)(x))


class MLP(nn.Module):
    """`layers` linear layers: all but the last are followed by `norm` (LayerNorm and SiLU).

    [..., any] -> [..., out]. `out_scale` 0 makes the first outputs exactly zero.
    """

    layers: int
    hidden: int
    out: int
    out_scale: float = 1.0
    norm: type[nn.Module] = NormSiLU

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for _ in range(self.layers - 1):
            x = self.norm()(Linear(self.hidden)(x))
        return Linear(self.out, scale=self.out_scale)(x)
