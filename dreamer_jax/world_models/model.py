"""A world model as pure functions: senses, dynamics, reward and continue behind one tuple."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dreamer_jax.nn.blocks import MLP
from dreamer_jax.nn.centred import settled
from dreamer_jax.ops.heads import Head
from dreamer_jax.ops.keys import named_key
from dreamer_jax.types import Metrics, Params, Spec, Transition
from dreamer_jax.world_models.dynamics import Dynamics
from dreamer_jax.world_models.senses import (
    SenseDecoder,
    SenseEncoder,
    nothing_seen,
    prepare,
    reconstruction_losses,
)

SETTLED = 100  # updates over whose batches the mean picture is taken


class WorldModel(NamedTuple):
    """The networks; each can be swapped for another of the same call."""

    encoder: SenseEncoder
    dynamics: Dynamics
    decoder: SenseDecoder
    reward: MLP
    cont: MLP
    head: Head  # what the reward network's outputs mean
    fold: int  # side of the pixel blocks folded into channels
    error_scale: float  # of squared errors of what is seen

    def init(self, key: jax.Array, spec: Spec) -> Params:
        """Parameters by part, each from its own key."""
        kinds = prepare(nothing_seen(spec, (1,)), self.fold)
        encoder = self.encoder.init(named_key(key, "encoder"), kinds)
        embed = self.encoder.apply(encoder, kinds)
        action, features = jnp.zeros((1, spec.action)), jnp.zeros((1, self.dynamics.size))
        params = {
            "encoder": encoder,
            "dynamics": self.dynamics.module.init(named_key(key, "dynamics"), embed, action),
        }
        for name in ("decoder", "reward", "cont"):
            params[name] = getattr(self, name).init(named_key(key, name), features)
        return params

    def observe(
        self, params: Params, batch: Transition, key: jax.Array, start: Any = None
    ) -> tuple[Any, Any]:
        """Posterior states [T, B, ...] of the batch and the prior's parameters.

        `start` is the state before the batch, leading axis [B]; None: zeros.
        """
        length, size = batch.reward.shape
        embed = self.encoder.apply(params["encoder"], self.flat(batch)).reshape(length, size, -1)
        start = self.dynamics.initial((size,)) if start is None else start
        inputs = (embed, batch.prev_action, batch.is_first, start, key)
        return self.dynamics.observe(params["dynamics"], *inputs)

    def filter(self, params: Params, state, prev_action, obs, is_first, key) -> Any:
        """One step of acting: leaves [N, ...]; without a key the most probable latent."""
        embed = self.encoder.apply(params["encoder"], prepare(obs, self.fold))
        return self.dynamics.filter(params["dynamics"], state, prev_action, embed, is_first, key)

    def imagine(self, params: Params, state, action, key) -> Any:
        """One step of the prior; without a key the most probable latent."""
        return self.dynamics.imagine(params["dynamics"], state, action, key)

    def flat(self, batch: Transition) -> dict[str, jax.Array]:
        """Prepared observations [T * B, ...] by kind."""
        kinds = prepare(batch.obs, self.fold)
        return {kind: x.reshape(-1, *x.shape[2:]) for kind, x in kinds.items()}

    def losses(self, params: Params, features, batch: Transition, gamma: float = 1.0) -> Metrics:
        """Reconstruction, reward and continue, each [], from features [T, B, F].

        `gamma` is part of what continue predicts; 1 leaves it to the returns.
        """
        made = self.decoder.apply(params["decoder"], features.reshape(-1, features.shape[-1]))
        reward = self.head.loss(self.reward.apply(params["reward"], features), batch.reward)
        cont = self.cont.apply(params["cont"], features)[..., 0]
        alive = gamma * (1.0 - batch.is_terminal.astype(jnp.float32))
        errors = reconstruction_losses(made, self.flat(batch))
        return {name: self.error_scale * error for name, error in errors.items()} | {
            "loss/reward": jnp.mean(reward),
            "loss/continue": jnp.mean(optax.sigmoid_binary_cross_entropy(cont, alive)),
        }

    def settle(self, params: Params, batch: Transition, step: jax.Array) -> Params:
        """`params` after update `step` [] (0 is the first): the mean pictures that pictures are
        seen about, if they are, become those of the batches so far, and stay from SETTLED on."""
        kinds = self.flat(batch)
        if "image" not in kinds:
            return params
        weight = jnp.where(step < SETTLED, 1.0 / (step + 1.0), 0.0)
        parts = ("encoder", "decoder")
        return params | {name: settled(params[name], kinds["image"], weight) for name in parts}

    def rewards(self, params: Params, features: jax.Array) -> jax.Array:
        """Expected reward on arriving at features [..., F]: [...]."""
        return self.head.mean(self.reward.apply(params["reward"], features))

    def continues(self, params: Params, features: jax.Array) -> jax.Array:
        """Probability that the episode goes on from features [..., F]: [...]."""
        return jax.nn.sigmoid(self.cont.apply(params["cont"], features)[..., 0])
