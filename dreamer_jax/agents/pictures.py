"""What a world model makes of a batch, for TensorBoard; for agents with an RSSM and a decoder."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dreamer_jax.nn.conv import fold, to_unit, unfold
from dreamer_jax.ops.keys import named_key
from dreamer_jax.ops.transforms import symexp
from dreamer_jax.types import LatentState, Params, Transition
from dreamer_jax.world_models.rssm import imagine_step, initial_state, observe

CONTEXT = 5  # frames seen before the open-loop prediction starts
ROWS = 6  # sequences predicted open loop
SCENES = 8  # generated starts looked at


class Model(NamedTuple):
    """A world model: networks called encoder, rssm, decoder, reward, and their parameters."""

    parts: Any
    fold: int
    params: Params


def filtered(model: Model, batch: Transition, key: jax.Array) -> LatentState:
    """Posterior states [T, B, ...] of the batch."""
    length, size = batch.reward.shape
    image = to_unit(fold(batch.obs["image"], model.fold))
    flat = image.reshape(length * size, *image.shape[2:])
    embed = model.parts.encoder.apply(model.params["encoder"], flat).reshape(length, size, -1)
    rssm = model.parts.rssm
    start = initial_state(rssm, (size,))
    args = (rssm, model.params["rssm"], embed, batch.prev_action, batch.is_first, start)
    return observe(*args, named_key(key, "observe"))[0]


def paint(model: Model, features: jax.Array) -> jax.Array:
    """What the decoder makes of features [..., F]: images [..., h, w, c] in [0, 1]."""
    flat = features.reshape(-1, features.shape[-1])
    image = unfold(model.parts.decoder.apply(model.params["decoder"], flat), model.fold)
    return image.reshape(*features.shape[:-1], *image.shape[1:])


def look(model: Model, batch: Transition, key: jax.Array) -> dict[str, jax.Array]:
    """Reconstructions and open-loop predictions of a batch [T, B].

    Returns:
      truth, reconstruction [T, h, w, c] of the first sequence; open_truth, open_prediction
      [ROWS, T, h, w, c], where the first CONTEXT frames are filtered and the rest imagined with
      the recorded actions; all in [0, 1]. reward, reward_prediction [T, B] in reward units.
    """
    parts, params = model.parts, model.params
    length, size = batch.reward.shape
    rows, context = min(ROWS, size), min(CONTEXT, length - 1)
    truth = to_unit(batch.obs["image"])
    posterior = filtered(model, batch, key)

    def dream(latent, action):
        noise = jnp.zeros_like(latent.stoch)
        latent = imagine_step(parts.rssm, params["rssm"], latent, action, noise)
        return latent, latent.features

    before = jax.tree.map(lambda x: x[context - 1, :rows], posterior)
    _, future = jax.lax.scan(dream, before, batch.prev_action[context:, :rows])
    features = jnp.concatenate([posterior.features[:context, :rows], future])
    reward = parts.reward.apply(params["reward"], posterior.features)[..., 0]
    return {
        "truth": truth[:, 0],
        "reconstruction": paint(model, posterior.features[:, 0]),
        "open_truth": jnp.swapaxes(truth[:, :rows], 0, 1),
        "open_prediction": jnp.swapaxes(paint(model, features), 0, 1),
        "reward": batch.reward,
        "reward_prediction": symexp(reward),
    }
