"""DDIM sampling (Song et al. 2021) as one scan."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from ddim_jax.losses import Predict
from ddim_jax.process import predict_noise, predict_x0
from ddim_jax.schedules import Schedule


def timesteps(trained: int, steps: int) -> np.ndarray:
    """`steps` of the trained noise levels, evenly spaced, the noisiest first: int32 [steps].

    Raises:
      ValueError: fewer than 1 step or more than were trained.
    """
    if not 1 <= steps <= trained:
        raise ValueError(f"steps={steps} cannot be: use 1 to {trained}, the steps trained")
    if steps == 1:
        return np.array([trained - 1], np.int32)
    return np.round(np.linspace(trained - 1, 0, steps)).astype(np.int32)


def ddim_sample(
    predict: Predict,
    schedule: Schedule,
    start: jax.Array,
    key: jax.Array,
    steps: int,
    eta: float = 0.0,
    clip: bool = True,
) -> jax.Array:
    """Images in [-1, 1] from noise (eq. 12).

    Args:
      start: standard normal noise [B, H, W, C].
      key: for the noise added on the way; unused where eta is 0.
      steps: noise levels visited, 1 .. T.
      eta: 0 is deterministic, 1 with all steps is DDPM's ancestral sampling.
      clip: cut every prediction of the image at [-1, 1] and let the noise follow.

    Raises:
      ValueError: impossible steps or eta.
    """
    if not 0.0 <= eta <= 1.0:
        raise ValueError(f"eta={eta} cannot be: use a value in [0, 1]")
    t = timesteps(schedule.steps, steps)
    level = schedule.alpha_bar[t]
    after = jnp.append(level[1:], 1.0)

    def step(x, inputs):
        t, level, after, key = inputs
        t = jnp.broadcast_to(t, x.shape[:1])
        noise = predict(x, t)
        image = predict_x0(schedule, x, t, noise)
        if clip:
            image = jnp.clip(image, -1.0, 1.0)
            noise = predict_noise(schedule, x, t, image)
        sigma = eta * jnp.sqrt((1.0 - after) / (1.0 - level) * (1.0 - level / after))
        left = jnp.maximum(1.0 - after - jnp.square(sigma), 0.0)  # below 0 only by rounding
        x = jnp.sqrt(after) * image + jnp.sqrt(left) * noise
        if eta:
            x = x + sigma * jax.random.normal(key, x.shape)
        return x, None

    keys = jax.random.split(key, steps)
    return jax.lax.scan(step, start, (jnp.asarray(t), level, after, keys))[0]
