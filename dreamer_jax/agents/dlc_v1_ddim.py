"""DLC-V1, arm "ddim": imagination starts from scenes that a diffusion model generates.

    as the baseline arm (dlc_v1.py), but a share of the starts is made like this:
        x ~ pool of generated images -> e = Enc(x) -> e' = Align(e) -> h = 0, z ~ posterior(h, e')
    discriminator and alignment layer learn inside the same update;
    the pool is renewed between updates by `refresh`, from whatever `starts(key, n)` makes.

With a share of 0 every number of the baseline comes out bit for bit.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from dreamer_jax.agents import dlc_v1, pictures
from dreamer_jax.agents.dlc_v1 import Dream, choose_starts
from dreamer_jax.agents.dlc_v1_config import DLCConfig, GeneratedConfig
from dreamer_jax.agents.dlc_v1_parts import DLCState, Parts, make_optimisers, make_parts
from dreamer_jax.alignment import LOSSES, Alignment, AlignmentState, make_alignment
from dreamer_jax.nn.conv import fold, to_unit
from dreamer_jax.ops.keys import named_key
from dreamer_jax.ops.trees import select
from dreamer_jax.types import Agent, LatentState, Spec, Transition
from dreamer_jax.world_models.rssm import initial_state, observe_step


@struct.dataclass
class GeneratedArmState:
    """The baseline's state, the alignment's, and the pool: uint8 [P, H, W, C]."""

    dlc: DLCState
    alignment: AlignmentState
    pool: jax.Array

    @property
    def step(self) -> jax.Array:
        """Updates so far, int32 []."""
        return self.dlc.step


def make_dlc_v1_ddim(config: DLCConfig, generated: GeneratedConfig, spec: Spec) -> Agent:
    """The DDIM arm as pure functions."""
    base = dlc_v1.make_dlc_v1(config, spec)
    parts, optimisers = make_parts(config, spec), make_optimisers(config)
    alignment = make_alignment(
        config.embed,
        generated.align_hidden,
        generated.discriminator_hidden,
        generated.align_lr,
        generated.discriminator_lr,
        config.actor_critic_eps,
        config.actor_critic_clip,
    )
    scenes = GeneratedStarts(parts, config, generated, alignment)

    def init(key: jax.Array) -> GeneratedArmState:
        """Fresh parameters; the pool is empty until `refresh`."""
        pool = jnp.zeros((generated.pool, *spec.image), jnp.uint8)
        return GeneratedArmState(base.init(key), alignment.init(named_key(key, "alignment")), pool)

    def act(state, carry, obs, is_first, key, mode):
        """As the baseline."""
        return base.act(state.dlc, carry, obs, is_first, key, mode)

    def update(state: GeneratedArmState, batch: Transition, key: jax.Array):
        """One update of everything: batch [T, B, ...]."""
        images = scenes.due(state)
        embed = scenes.embed(state.dlc.model, images)
        dlc, seen, metrics = dlc_v1.learn_model(parts, config, optimisers, state.dlc, batch, key)
        real = seen.embed.reshape(-1, config.embed)
        index = jax.random.choice(
            named_key(key, "real"), real.shape[0], (config.starts,), replace=False
        )
        align, align_metrics = alignment.update(state.alignment, real[index], embed)
        start, alive = choose_starts(seen.posterior, batch, config.starts, named_key(key, "starts"))
        made, score = scenes.states(state.dlc, align, embed, named_key(key, "generated"))
        chosen = scenes.chosen(score, state.step)
        start = select(chosen, made, start)
        alive = jnp.where(chosen, 1.0, alive)
        dlc, imagined, more = dlc_v1.learn_behaviour(
            parts, config, optimisers, dlc, start, alive, key
        )
        first = imagined.returns[0]
        figures = {
            "generated/starts": jnp.mean(chosen),
            "generated/score": jnp.mean(score),
            "generated/return": jnp.mean(first, where=chosen),  # nan: no such start
            "generated/return_replayed": jnp.mean(first, where=~chosen),
        }
        new = GeneratedArmState(dlc.replace(step=dlc.step + 1), align, state.pool)
        return new, metrics | align_metrics | more | figures

    def refresh(state: GeneratedArmState, starts: Any, key: jax.Array) -> GeneratedArmState:
        """The oldest `fresh` images of the pool make room for new ones."""
        number = min(generated.fresh, config.starts)
        keys = jax.random.split(key, generated.fresh // number)
        new = jax.lax.map(lambda k: starts(k, number), keys).reshape(-1, *spec.image)
        return state.replace(pool=jnp.concatenate([state.pool[generated.fresh :], new]))

    def report(state: GeneratedArmState, batch: Transition, key: jax.Array):
        """The baseline's arrays, and what becomes of the generated images."""
        images, dlc = scenes.due(state), state.dlc
        embed = scenes.embed(dlc.model, images)
        key_raw, key_made = jax.random.split(named_key(key, "generated"))
        before = scenes.filtered(dlc, embed, key_raw)
        after, score = scenes.states(dlc, state.alignment, embed, key_made)
        dream = Dream(
            parts,
            config,
            dlc.model,
            dlc.target,
            after,
            jnp.ones(config.starts),
            named_key(key, "imagine"),
        )
        _, (features, imagined, _) = dream.run(dlc.actor)
        rows = min(pictures.SCENES, config.starts)
        model = dlc_v1.world(parts, config, dlc.model)
        arrays = base.report(dlc, batch, key)
        return arrays | {
            "generated": to_unit(images[:rows]),
            "generated_before": pictures.paint(model, before.features[:rows]),
            "generated_after": pictures.paint(model, after.features[:rows]),
            "generated_video": pictures.paint(model, jnp.swapaxes(features[:, :rows], 0, 1)),
            "generated_return": imagined.returns,
            "generated_score": score,
        }

    axes = GeneratedArmState(base.axes, 0, 0)
    return Agent(init, base.carry, act, update, report, axes, base.losses + LOSSES, refresh=refresh)


class GeneratedStarts:
    """From generated images to latent states."""

    def __init__(
        self, parts: Parts, config: DLCConfig, generated: GeneratedConfig, align: Alignment
    ) -> None:
        self.parts, self.config, self.generated, self.alignment = parts, config, generated, align

    def due(self, state: GeneratedArmState) -> jax.Array:
        """The `starts` images of the pool whose turn it is."""
        number, turn = self.config.starts, state.step // self.generated.every
        return state.pool[(turn * number + jnp.arange(number)) % self.generated.pool]

    def embed(self, model: Any, images: jax.Array) -> jax.Array:
        """uint8 [n, H, W, C] -> [n, E], no gradient."""
        folded = to_unit(fold(images, self.config.fold))
        return jax.lax.stop_gradient(self.parts.encoder.apply(model["encoder"], folded))

    def states(self, dlc: DLCState, align: AlignmentState, embed: jax.Array, key: jax.Array):
        """Aligned states [n, ...] and the discriminator's score of each [n]."""
        aligned = self.alignment.apply(align, embed)
        score = self.alignment.score(align, aligned)
        return jax.lax.stop_gradient((self.filtered(dlc, aligned, key), score))

    def filtered(self, dlc: DLCState, embed: jax.Array, key: jax.Array) -> LatentState:
        """Posterior states of embeddings [n, E]: h = 0, or after `warm_up` steps on the spot.

        Each such step shows the same image again, after the action that the policy would take. None
        is the first of an episode: to the model that means the start line.
        """
        rssm, params = self.parts.rssm, dlc.model["rssm"]
        number = embed.shape[0]
        noises = jax.random.normal(key, (self.generated.warm_up + 1, number, rssm.stoch))
        state = initial_state(rssm, (number,))
        projected = rssm.apply(params, embed, method=rssm.project)
        mean, std = rssm.apply(params, state.deter, projected, method=rssm.posterior)
        state = LatentState(state.deter, mean + std * noises[0], mean, std)
        size, is_first = self.parts.actor.out // 2, jnp.zeros(number, bool)
        for noise in noises[1:]:
            action = jnp.tanh(self.parts.actor.apply(dlc.actor, state.features)[..., :size])
            state = observe_step(rssm, params, state, action, embed, is_first, noise)
        return state

    def chosen(self, score: jax.Array, step: jax.Array) -> jax.Array:
        """Which starts are generated, bool [n]; the others are replayed states."""
        number = self.config.starts
        share = jnp.where(step >= self.generated.from_update, self.generated.fraction, 0.0)
        wanted = jnp.arange(number) < jnp.round(share * number)
        return wanted & (score <= self.generated.reject_above)
