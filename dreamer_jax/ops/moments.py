"""Running scale of returns (Hafner et al. 2023, eq. 7)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Range(NamedTuple):
    """EMA of the 5th and 95th percentile; `weight` corrects for its start at 0."""

    low: jax.Array  # []
    high: jax.Array  # []
    weight: jax.Array  # []


def init_range() -> Range:
    """Nothing seen yet."""
    return Range(jnp.zeros(()), jnp.zeros(()), jnp.zeros(()))


def update_range(state: Range, x: jax.Array, rate: float = 0.01) -> Range:
    """With the percentiles of all values of x."""
    low, high = jnp.percentile(jax.lax.stop_gradient(x), jnp.array([5.0, 95.0]))
    return Range(
        low=state.low + rate * (low - state.low),
        high=state.high + rate * (high - state.high),
        weight=state.weight + rate * (1.0 - state.weight),
    )


def offset_and_scale(state: Range, least: float = 1.0) -> tuple[jax.Array, jax.Array]:
    """(low percentile, max(least, high - low)), both []; small returns are not blown up."""
    weight = jnp.maximum(state.weight, 1e-8)
    return state.low / weight, jnp.maximum((state.high - state.low) / weight, least)
