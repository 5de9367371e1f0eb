"""Optimiser chains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


def clipped_adam(
    learning_rate: float, eps: float, clip: float, anneal: int = 0
) -> optax.GradientTransformation:
    """Adam behind a clip of the global gradient norm; its step size falls as `annealed` says."""
    # Without a fall a plain number: a schedule would add a count to the state.
    rate = annealed(learning_rate, anneal) if anneal else learning_rate
    return optax.chain(optax.clip_by_global_norm(clip), optax.adam(rate, eps=eps))


def clipped_adamw(
    learning_rate: float,
    eps: float,
    clip: float,
    decay: float,
    shrinks: Callable[[Any], Any] | None = None,
) -> optax.GradientTransformation:
    """AdamW behind a clip of the global gradient norm.

    A step takes the share `decay` of every weight, not multiplied by the step size: as in
    Loshchilov & Hutter (2019, algorithm 2) and DreamerV2's program, unlike `optax.adamw`.
    `shrinks` gives a tree of bool, which leaves are weights (default: all).
    """
    adam = optax.adam(learning_rate, eps=eps)
    shrink = optax.add_decayed_weights(-decay, shrinks)  # behind the step size
    return optax.chain(optax.clip_by_global_norm(clip), adam, shrink)


def ema(target, online, rate: float):
    """target <- (1 - rate) target + rate online, leaf by leaf."""
    return jax.tree.map(lambda t, o: t + rate * (o - t), target, online)


class LaPropState(NamedTuple):
    """Of `laprop`; trees like the parameters."""

    count: jax.Array  # int32 []
    momentum: optax.Params
    square: optax.Params


def laprop(
    learning_rate: optax.ScalarOrSchedule, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-20
) -> optax.GradientTransformation:
    """LaProp (Ziyin et al. 2020, algorithm 1): each gradient is normalised before it is averaged.

    Adam averages gradients and squares apart, so that one large gradient can make a step far larger
    than the learning rate; here no step exceeds it by much, which allows a tiny eps. Defaults are
    DreamerV3's.
    """

    def init(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return LaPropState(jnp.zeros((), jnp.int32), zeros, zeros)

    def update(updates, state, params=None):
        del params
        count = state.count + 1
        square = jax.tree.map(lambda n, g: b2 * n + (1 - b2) * g * g, state.square, updates)
        correct = 1 - b2 ** count.astype(jnp.float32)
        momentum = jax.tree.map(
            lambda m, g, n: b1 * m + (1 - b1) * g / (jnp.sqrt(n / correct) + eps),
            state.momentum, updates, square,
        )  # fmt: skip
        rate = learning_rate(state.count) if callable(learning_rate) else learning_rate
        step = -rate / (1 - b1 ** count.astype(jnp.float32))
        return jax.tree.map(lambda m: step * m, momentum), LaPropState(count, momentum, square)

    return optax.GradientTransformation(init, update)


def clip_adaptively(share: float, least: float = 1e-3) -> optax.GradientTransformation:
    """Each tensor's gradient to at most `share` of its parameter's norm (Brock et al. 2021, eq. 3).

    Whole tensors as in DreamerV3, not units; `least` stands for the norm of smaller parameters.
    """

    def update(updates, state, params):
        def clip(g, p):
            limit = share * jnp.maximum(jnp.linalg.norm(p), least)
            norm = jnp.linalg.norm(g)
            return g * jnp.minimum(1.0, limit / jnp.maximum(norm, 1e-20))

        return jax.tree.map(clip, updates, params), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def annealed(peak: float, updates: int) -> optax.Schedule:
    """Step size that falls from `peak`, linearly, to a tenth after so many updates (0: stays)."""
    if not updates:
        return optax.constant_schedule(peak)
    return optax.linear_schedule(peak, 0.1 * peak, updates)


def warmed_up(peak: float, warmup: int, anneal: int = 0) -> optax.Schedule:
    """Step size by the number of updates before: from 0 to `peak` over `warmup` of them, then, if
    `anneal` is not 0, down to a tenth of `peak` at update `anneal`; both linearly."""
    after = annealed(peak, anneal and anneal - warmup)
    if not warmup:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after], [warmup])


def dreamer_v3_optimiser(
    learning_rate: float = 4e-5, agc: float = 0.3, warmup: int = 1000, anneal: int = 0
) -> optax.GradientTransformation:
    """AGC, then LaProp with a learning rate that rises, and may fall, as `warmed_up` says."""
    return optax.chain(clip_adaptively(agc), laprop(warmed_up(learning_rate, warmup, anneal)))
