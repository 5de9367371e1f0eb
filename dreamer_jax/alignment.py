"""Latent alignment: generated embeddings are moved to where a discriminator takes them for real.

"Mini-U-Net" and its discriminator of "Using a Pretrained DDIM for Roll-out Scene Generation for
Latent Imagination", appendix D. The discriminator learns real = 0, generated = 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from dreamer_jax.nn.alignment import Align, Discriminator
from dreamer_jax.ops.keys import named_key
from dreamer_jax.ops.optimisers import clipped_adam
from dreamer_jax.types import Metrics, Params


class AlignmentState(NamedTuple):
    """Parameters and optimisers of both networks."""

    align: Params
    discriminator: Params
    align_opt: optax.OptState
    discriminator_opt: optax.OptState


class Alignment(NamedTuple):
    """Pure functions.

    init:   (key) -> state
    apply:  (state, generated [..., E]) -> aligned [..., E]
    score:  (state, embed [..., E]) -> probability of "generated" [...]
    update: (state, real [n, E], generated [n, E]) -> (state, metrics); no gradient leaves it
    """

    init: Callable
    apply: Callable
    score: Callable
    update: Callable


LOSSES = ("loss/discriminator", "loss/alignment")


def discriminator_loss(real: jax.Array, generated: jax.Array) -> jax.Array:
    """Binary cross-entropy of the logits of both halves, real = 0 and generated = 1."""
    return 0.5 * jnp.mean(jax.nn.softplus(real)) + 0.5 * jnp.mean(jax.nn.softplus(-generated))


def alignment_loss(aligned: jax.Array) -> jax.Array:
    """-log(1 - D(e')) of the aligned embeddings' logits."""
    return jnp.mean(jax.nn.softplus(aligned))


def make_alignment(
    embed: int,
    align_hidden: int,
    discriminator_hidden: tuple[int, ...],
    align_lr: float,
    discriminator_lr: float,
    eps: float,
    clip: float,
) -> Alignment:
    """The alignment layer and its discriminator for embeddings of size `embed`."""
    layer, judge = Align(align_hidden), Discriminator(discriminator_hidden)
    align_tx = clipped_adam(align_lr, eps, clip)
    judge_tx = clipped_adam(discriminator_lr, eps, clip)

    def init(key: jax.Array) -> AlignmentState:
        example = jnp.zeros((1, embed))
        align = layer.init(named_key(key, "align"), example)
        discriminator = judge.init(named_key(key, "discriminator"), example)
        return AlignmentState(
            align, discriminator, align_tx.init(align), judge_tx.init(discriminator)
        )

    def apply(state: AlignmentState, generated: jax.Array) -> jax.Array:
        return layer.apply(state.align, generated)

    def score(state: AlignmentState, embed: jax.Array) -> jax.Array:
        return jax.nn.sigmoid(judge.apply(state.discriminator, embed))

    def update(state, real, generated) -> tuple[AlignmentState, Metrics]:
        chex.assert_equal_shape([real, generated])
        real, generated = jax.lax.stop_gradient((real, generated))

        def judge_loss(params):
            both = judge.apply(params, real), judge.apply(params, apply(state, generated))
            return discriminator_loss(*both), both

        (loss, logits), grads = jax.value_and_grad(judge_loss, has_aux=True)(state.discriminator)
        steps, judge_opt = judge_tx.update(grads, state.discriminator_opt, state.discriminator)
        discriminator = optax.apply_updates(state.discriminator, steps)

        def layer_loss(params):
            return alignment_loss(judge.apply(discriminator, layer.apply(params, generated)))

        other, align_grads = jax.value_and_grad(layer_loss)(state.align)
        steps, align_opt = align_tx.update(align_grads, state.align_opt, state.align)
        align = optax.apply_updates(state.align, steps)
        correct = jnp.mean(logits[0] < 0) + jnp.mean(logits[1] > 0)
        metrics = {
            "loss/discriminator": loss,
            "loss/alignment": other,
            "alignment/accuracy": 0.5 * correct,
            "alignment/distance_before": _distance(real, generated),
            "alignment/distance_after": _distance(real, layer.apply(align, generated)),
            "grad_norm/discriminator": optax.global_norm(grads),
            "grad_norm/alignment": optax.global_norm(align_grads),
        }
        return AlignmentState(align, discriminator, align_opt, judge_opt), metrics

    return Alignment(init, apply, score, update)


def _distance(real: jax.Array, generated: jax.Array) -> jax.Array:
    """Between the means of the two sets [n, E], in standard deviations of the real one, RMS over E.

    A constant entry counts with a deviation of 0.01.
    """
    scale = jnp.maximum(jnp.std(real, axis=0), 1e-2)
    gap = (jnp.mean(real, axis=0) - jnp.mean(generated, axis=0)) / scale
    return jnp.sqrt(jnp.mean(jnp.square(gap)))
