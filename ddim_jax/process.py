"""The forward process and its inverses. Images are float32 in [-1, 1]."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from ddim_jax.schedules import Schedule


def to_signed(image: jax.Array) -> jax.Array:
    """uint8 -> float32 in [-1, 1]."""
    return image.astype(jnp.float32) / 127.5 - 1.0


def to_bytes(x: jax.Array) -> jax.Array:
    """[-1, 1] -> uint8, what lies outside is cut."""
    return jnp.round((jnp.clip(x, -1.0, 1.0) + 1.0) * 127.5).astype(jnp.uint8)


def signal_and_noise(schedule: Schedule, t: jax.Array, ndim: int) -> tuple[jax.Array, jax.Array]:
    """sqrt(alpha_bar_t) and sqrt(1 - alpha_bar_t), t int [B], as [B, 1, ...] of `ndim` axes."""
    level = schedule.alpha_bar[t].reshape(-1, *[1] * (ndim - 1))
    return jnp.sqrt(level), jnp.sqrt(1.0 - level)


def q_sample(schedule: Schedule, x0: jax.Array, t: jax.Array, noise: jax.Array) -> jax.Array:
    """x_t of images x0 [B, ...] at steps t [B] (Ho et al. 2020, eq. 4)."""
    signal, amount = signal_and_noise(schedule, t, x0.ndim)
    return signal * x0 + amount * noise


def predict_x0(schedule: Schedule, x: jax.Array, t: jax.Array, noise: jax.Array) -> jax.Array:
    """The image behind x_t [B, ...] if `noise` is what was added (inverse of `q_sample`)."""
    signal, amount = signal_and_noise(schedule, t, x.ndim)
    return (x - amount * noise) / signal


def predict_noise(schedule: Schedule, x: jax.Array, t: jax.Array, image: jax.Array) -> jax.Array:
    """The noise in x_t [B, ...] if `image` is behind it (inverse of `predict_x0`)."""
    signal, amount = signal_and_noise(schedule, t, x.ndim)
    return (x - signal * image) / amount
