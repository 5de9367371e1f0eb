"""Pictures about their mean: what never changes need not be learnt.

Where small figures move on a still field, the field is nearly all that an encoder's norms leave of
a picture and nearly all of a decoder's first error, and for hundreds to thousands of updates the
latents carry nothing. Here the encoder sees the difference from the mean picture, and the decoder
starts at the mean picture.

The mean picture has no gradient; it is the variable collection `MEAN` beside the parameters.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

MEAN = "mean"
LEAST = 0.02  # of a pixel's mean in the decoder, and 1 - LEAST the most: its odds stay finite


class CentredEncoder(nn.Module):
    """[B, h, w, c] in [0, 1] -> [B, E]: `network` sees the mean picture as even grey."""

    network: nn.Module

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return self.network(x - _mean(self, x.shape[1:]) + 0.5)


class CentredDecoder(nn.Module):
    """[B, F] -> [B, h, w, c] in [0, 1]: `network`'s grey is the mean picture.

    The odds p / (1 - p) of `network`'s pixels are multiplied by those of the mean picture: its
    logits are added ahead of the sigmoid.
    """

    network: nn.Module

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        light = self.network(features)
        mean = jnp.clip(_mean(self, light.shape[1:]), LEAST, 1.0 - LEAST)
        light, dark = light * mean, (1.0 - light) * (1.0 - mean)
        return light / (light + dark)


def _mean(module: nn.Module, shape: tuple[int, ...]) -> jax.Array:
    mean = module.variable(MEAN, "picture", lambda: jnp.full(shape, 0.5))
    return jax.lax.stop_gradient(mean.value)


def learnt(params):
    """Tree of bool: all leaves but mean pictures."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: all(getattr(entry, "key", None) != MEAN for entry in path), params
    )


def settled(variables, pictures: jax.Array, weight: jax.Array):
    """`variables` with their mean pictures, if they have any, moved by `weight` [] towards the mean
    of `pictures` [B, h, w, c]."""
    if MEAN not in variables:
        return variables
    now = jnp.mean(pictures, axis=0)
    moved = jax.tree.map(lambda mean: mean + weight * (now - mean), variables[MEAN])
    return {**variables, MEAN: moved}
