"""What the noise network is trained on."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ddim_jax.process import predict_noise, q_sample
from ddim_jax.schedules import Schedule

Predict = Callable[[jax.Array, jax.Array], jax.Array]  # (x_t [B, H, W, C], t int [B]) -> noise


def from_image(net: Predict, schedule: Schedule) -> Predict:
    """The noise that a network means whose output is the image behind x_t."""

    def predict(x: jax.Array, t: jax.Array) -> jax.Array:
        return predict_noise(schedule, x, t, net(x, t))

    return predict


def image_loss(net: Predict, schedule: Schedule, x0: jax.Array, key: jax.Array) -> jax.Array:
    """Mean squared error of the image that `net` gives, over the noise's variance (at least 5%).

    So weighted it is the loss of v = signal * noise - amount * x0 (Salimans & Ho 2022, section 4).
    Images of folded pixels lie near few dimensions and noise does not: a network narrower than a
    block of pixels can give the one and not the other.
    """
    x, t, _ = noised(schedule, x0, key)
    variance = 1.0 - schedule.alpha_bar[t].reshape(-1, *[1] * (x0.ndim - 1))
    return jnp.mean(jnp.square(net(x, t) - x0) / jnp.maximum(variance, 0.05))


def noised(schedule: Schedule, x0: jax.Array, key: jax.Array):
    """x_t, the steps t [B] (uniform, one per image) and the noise that was added."""
    key_step, key_noise = jax.random.split(key)
    t = jax.random.randint(key_step, x0.shape[:1], 0, schedule.steps)
    noise = jax.random.normal(key_noise, x0.shape)
    return q_sample(schedule, x0, t, noise), t, noise


def noise_prediction_loss(
    predict: Predict, schedule: Schedule, x0: jax.Array, key: jax.Array
) -> jax.Array:
    """Mean squared error of the predicted noise, each image at a step of its own.

    x0 [B, H, W, C] in [-1, 1]; the network is told the step that was drawn (Ho et al. 2020, eq. 14
    and algorithm 1).
    """
    x, t, noise = noised(schedule, x0, key)
    return jnp.mean(jnp.square(predict(x, t) - noise))
