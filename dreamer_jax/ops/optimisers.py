"""Optimiser chains."""

from __future__ import annotations

import jax
import optax


def clipped_adam(learning_rate: float, eps: float, clip: float) -> optax.GradientTransformation:
    """Adam behind a clip of the global gradient norm."""
    return optax.chain(optax.clip_by_global_norm(clip), optax.adam(learning_rate, eps=eps))


def ema(target, online, rate: float):
    """target <- (1 - rate) target + rate online, leaf by leaf."""
    return jax.tree.map(lambda t, o: t + rate * (o - t), target, online)
