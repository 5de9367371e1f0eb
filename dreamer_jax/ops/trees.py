"""Choosing between pytrees of arrays."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def select(mask: jax.Array, new: Any, old: Any) -> Any:
    """`new` where `mask` holds, bool over the leading axes of every leaf, else `old`."""

    def one(n: jax.Array, o: jax.Array) -> jax.Array:
        return jnp.where(mask.reshape(*mask.shape, *[1] * (n.ndim - mask.ndim)), n, o)

    return jax.tree.map(one, new, old)
