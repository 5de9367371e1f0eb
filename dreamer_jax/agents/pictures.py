"""What a world model makes of a batch, for TensorBoard; for any agent with recurrent states."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dreamer_jax.nn.conv import to_unit, unfold
from dreamer_jax.ops.trees import select
from dreamer_jax.types import Params, Transition
from dreamer_jax.world_models.model import WorldModel

CONTEXT = 5  # frames seen before the open-loop prediction starts
ROWS = 6  # sequences predicted open loop
SCENES = 8  # generated starts looked at


class Model(NamedTuple):
    """A world model as functions of states and features, its parameters bound.

    imagine: (state, action [B, A]) -> the most probable next state
    decode:  (features [n, F]) -> folded images [n, h, w, c] in [0, 1], None without pictures
    reward:  (features [..., F]) -> rewards [...] in reward units
    fold:    side of the pixel blocks in the decoder's channels
    """

    imagine: Callable
    decode: Callable | None
    reward: Callable
    fold: int


def of(world: WorldModel, params: Params) -> Model:
    """Of a `WorldModel` and its parameters."""

    def decode(features):
        return world.decoder.apply(params["decoder"], features)["image"]

    return Model(
        imagine=lambda state, action: world.imagine(params, state, action, None),
        decode=decode if "image" in world.decoder.networks else None,
        reward=lambda features: world.rewards(params, features),
        fold=world.fold,
    )


def paint(model: Model, features: jax.Array) -> jax.Array:
    """What the decoder makes of features [..., F]: images [..., h, w, c] in [0, 1]."""
    image = unfold(model.decode(features.reshape(-1, features.shape[-1])), model.fold)
    return image.reshape(*features.shape[:-1], *image.shape[1:])


def look(model: Model, batch: Transition, posterior: Any) -> dict[str, jax.Array]:
    """Reconstructions and open-loop predictions of a batch and its posterior states [T, B].

    Returns:
      reward, reward_prediction [T, B] in reward units, and where the model sees pictures: truth,
      reconstruction [T, h, w, 3] of the first sequence; open_truth, open_prediction
      [ROWS, T, h, w, 3], where the first CONTEXT frames, and any with which an episode begins,
      are filtered and the rest imagined with the recorded actions; all in [0, 1].
    """
    rewards = {"reward": batch.reward, "reward_prediction": model.reward(posterior.features)}
    if model.decode is None:
        return rewards
    length, size = batch.reward.shape
    rows, context = min(ROWS, size), min(CONTEXT, length - 1)
    images = [batch.obs[name] for name in sorted(batch.obs) if batch.obs[name].dtype == jnp.uint8]
    truth = to_unit(jnp.concatenate(images, axis=-1))

    def dream(latent, inputs):
        action, first, seen = inputs
        latent = select(first, seen, model.imagine(latent, action))
        return latent, latent.features

    before = jax.tree.map(lambda x: x[context - 1, :rows], posterior)
    seen = jax.tree.map(lambda x: x[context:, :rows], posterior)
    rest = (batch.prev_action[context:, :rows], batch.is_first[context:, :rows], seen)
    _, future = jax.lax.scan(dream, before, rest)
    features = jnp.concatenate([posterior.features[:context, :rows], future])
    return rewards | {
        "truth": rgb(truth[:, 0]),
        "reconstruction": rgb(paint(model, posterior.features[:, 0])),
        "open_truth": rgb(jnp.swapaxes(truth[:, :rows], 0, 1)),
        "open_prediction": rgb(jnp.swapaxes(paint(model, features), 0, 1)),
    }


def rgb(image: jax.Array) -> jax.Array:
    """Three channels [..., 3] to show: the first three, or the first three times."""
    return image[..., :3] if image.shape[-1] >= 3 else jnp.repeat(image[..., :1], 3, axis=-1)
