"""What a network's raw outputs say about a number: rewards and values."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dreamer_jax.ops import two_hot
from dreamer_jax.ops.transforms import symexp, symlog


class Head(NamedTuple):
    """A family of distributions over real numbers.

    outputs: raw values per number
    mean:    (raw [..., outputs]) -> [...]
    loss:    (raw, target [...]) -> negative log-likelihood [...], up to a constant; no gradient to
             the target
    """

    outputs: int
    mean: Callable[[jax.Array], jax.Array]
    loss: Callable[[jax.Array, jax.Array], jax.Array]


def gaussian_head() -> Head:
    """Normal of standard deviation 1 (DreamerV1, V2, PlaNet): half the squared error."""

    def loss(raw, target):
        return 0.5 * jnp.square(raw[..., 0] - jax.lax.stop_gradient(target))

    return Head(1, lambda raw: raw[..., 0], loss)


def two_hot_head(number: int = 255) -> Head:
    """Bins spaced by symexp (DreamerV3). Raises ValueError for an even number."""
    bins = two_hot.symexp_bins(number)
    return Head(
        number,
        lambda raw: two_hot.mean(raw, bins),
        lambda raw, target: two_hot.loss(raw, target, bins),
    )


def symlog_two_hot_head(number: int = 255) -> Head:
    """Even bins for the number's symlog, in which the mean is taken (Hafner et al. 2023, eq. 8).

    Raises ValueError for an even number.
    """
    bins = symlog(two_hot.symexp_bins(number))
    return Head(
        number,
        lambda raw: symexp(two_hot.mean(raw, bins)),
        lambda raw, target: two_hot.loss(raw, symlog(target), bins),
    )
