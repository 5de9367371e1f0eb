"""Shaping gradients on their way back."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def clip_cotangent(tree: Any, bound: float) -> Any:
    """Identity whose gradient is clipped to norm `bound`, each sample of the leading axis alone.

    The norm is taken over all leaves of a sample together, [B, ...] each. A chaotic transition
    multiplies the gradient at every step back in time; one global clip at the end would keep the
    direction of the few samples that exploded and drop all the others.
    """
    return tree


def _forward(tree: Any, bound: float) -> tuple[Any, None]:
    return tree, None


def _backward(bound: float, _: None, cotangent: Any) -> tuple[Any]:
    leaves = [leaf.reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(cotangent)]
    norm = jnp.sqrt(sum(jnp.sum(jnp.square(leaf), axis=-1) for leaf in leaves))
    scale = jnp.minimum(1.0, bound / jnp.maximum(norm, 1e-30))
    return (jax.tree.map(lambda g: g * scale.reshape(-1, *[1] * (g.ndim - 1)), cotangent),)


clip_cotangent.defvjp(_forward, _backward)
