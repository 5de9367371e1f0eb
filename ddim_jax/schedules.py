"""Noise schedules: how much of an image is left after t + 1 noising steps."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Schedule(NamedTuple):
    """`alpha_bar[t]`, float32 [T], is the share of the image's variance left at step t."""

    alpha_bar: jax.Array

    @property
    def steps(self) -> int:
        """T, the number of noising steps."""
        return self.alpha_bar.shape[0]


def from_betas(betas: np.ndarray) -> Schedule:
    """alpha_bar_t = prod_{s <= t} (1 - beta_s) (Ho et al. 2020, eq. 4); float64 inside."""
    return Schedule(jnp.asarray(np.cumprod(1.0 - np.asarray(betas, np.float64)), jnp.float32))


def linear(steps: int, first: float = 1e-4, last: float = 0.02) -> Schedule:
    """Betas from `first` to `last` in equal steps (Ho et al. 2020, section 4).

    The two are meant for 1000 steps; they are scaled by 1000 / steps, so that fewer steps end in
    noise as well.
    """
    scale = 1000 / _checked(steps)
    return from_betas(np.minimum(np.linspace(first * scale, last * scale, steps), 0.999))


def cosine(steps: int, offset: float = 0.008) -> Schedule:
    """Nichol & Dhariwal 2021, eq. 17; betas are cut at 0.999."""

    def level(u: np.ndarray) -> np.ndarray:
        return np.cos((u + offset) / (1 + offset) * np.pi / 2) ** 2

    u = np.arange(_checked(steps) + 1) / steps
    return from_betas(np.minimum(1.0 - level(u[1:]) / level(u[:-1]), 0.999))


SCHEDULES = {"linear": linear, "cosine": cosine}


def _checked(steps: int) -> int:
    if steps < 1:
        raise ValueError(f"a schedule needs 1 step or more, not {steps}")
    return steps
