"""Networks between the embeddings of generated images and those of real ones."""

from __future__ import annotations

import flax.linen as nn
import jax

from dreamer_jax.nn.blocks import Linear, NormSiLU


class Align(nn.Module):
    """[..., E] -> [..., E]: e + delta(e) through a narrow layer; the identity at first."""

    hidden: int

    @nn.compact
    def __call__(self, embed: jax.Array) -> jax.Array:
        x = NormSiLU()(Linear(self.hidden)(embed))
        return embed + Linear(embed.shape[-1], scale=0.0)(x)


class Discriminator(nn.Module):
    """[..., E] -> [...], the logit of "generated"."""

    hidden: tuple[int, ...]

    @nn.compact
    def __call__(self, embed: jax.Array) -> jax.Array:
        x = embed
        for width in self.hidden:
            x = NormSiLU()(Linear(width)(x))
        return Linear(1)(x)[..., 0]
