"""The cross-entropy method over action sequences (PlaNet, Hafner et al. 2019, algorithm 2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

Score = Callable[[jax.Array], jax.Array]  # actions [C, H, A] -> return of each [C]


class Belief(NamedTuple):
    """Over action sequences, each entry on its own."""

    mean: jax.Array  # [H, A]
    std: jax.Array  # [H, A]


def refit(actions: jax.Array, returns: jax.Array, top: int) -> Belief:
    """Mean and standard deviation of the `top` sequences of [C, H, A] with the highest returns [C].

    A return that is not finite counts as the worst.
    """
    chex.assert_equal_shape_prefix([actions, returns], 1)
    returns = jnp.where(jnp.isfinite(returns), returns, -jnp.inf)
    best = actions[jax.lax.top_k(returns, top)[1]]
    return Belief(best.mean(axis=0), best.std(axis=0))


def cem(
    score: Score,
    key: jax.Array,
    start: Belief,
    iterations: int = 10,
    candidates: int = 1000,
    top: int = 100,
    low: float = -1.0,
    high: float = 1.0,
) -> Belief:
    """The belief after `iterations` rounds of drawing, scoring and refitting; its mean is the plan.

    Args:
      score: the return that a model expects of each sequence, from the state to plan for; vmap
        `cem` over keys and states for many at once.
      start: PlaNet's is mean 0 and standard deviation 1, afresh for every decision.
      candidates, top: sequences drawn in a round, and those kept.
      low, high: actions are clipped to them.

    Raises:
      ValueError: top is not in 1 .. candidates.
    """
    if not 1 <= top <= candidates:
        raise ValueError(f"top={top} cannot be: use 1 to candidates={candidates}")
    chex.assert_equal_shape([start.mean, start.std])
    chex.assert_rank(start.mean, 2)

    def round_(belief: Belief, key: jax.Array) -> tuple[Belief, None]:
        noise = jax.random.normal(key, (candidates, *belief.mean.shape))
        actions = jnp.clip(belief.mean + belief.std * noise, low, high)
        return refit(actions, score(actions), top), None

    return jax.lax.scan(round_, start, jax.random.split(key, iterations))[0]


def standard(horizon: int, action: int) -> Belief:
    """Mean 0, standard deviation 1: [H, A]."""
    return Belief(jnp.zeros((horizon, action)), jnp.ones((horizon, action)))
