"""DLC-V1: a Gaussian RSSM, gradients through the dynamics, symlog critic with an EMA target.

The baseline arm of "Using a Pretrained DDIM for Roll-out Scene Generation for Latent Imagination":
imagination starts from posterior states of replayed sequences.

    update:  batch -> world-model loss -> Adam
             starts from the posterior -> rollout of H steps -> lambda-returns
             actor (every `actor_interval`-th update): maximise returns + entropy
             critic: regress symlog(return);  target critic: EMA
"""

from __future__ import annotations

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from dreamer_jax import actor_critic
from dreamer_jax.agents import pictures
from dreamer_jax.agents.dlc_v1_config import DLCConfig
from dreamer_jax.agents.dlc_v1_parts import (
    DLCState,
    Optimisers,
    Parts,
    init_state,
    make_optimisers,
    make_parts,
)
from dreamer_jax.imagination import rollout
from dreamer_jax.nn.conv import fold, to_unit
from dreamer_jax.ops import gaussian
from dreamer_jax.ops.gradients import clip_cotangent
from dreamer_jax.ops.keys import named_key
from dreamer_jax.ops.optimisers import ema
from dreamer_jax.ops.transforms import symexp
from dreamer_jax.types import Agent, LatentState, Metrics, Params, Spec, Transition
from dreamer_jax.world_models import objectives
from dreamer_jax.world_models.rssm import (
    imagine_step,
    initial_state,
    observe,
    observe_step,
)

LOSSES = (
    "loss/image",
    "loss/reward",
    "loss/continue",
    "loss/dynamics",
    "loss/representation",
    "loss/actor",
    "loss/critic",
)
NORMS = ("grad_norm/model", "grad_norm/critic")  # the actor's is in its loss, see `update_actor`


class Seen(NamedTuple):
    """What the model made of a batch, without gradient."""

    posterior: LatentState  # [T, B, ...]
    embed: jax.Array  # [T, B, E]


class ActCarry(NamedTuple):
    """What acting remembers, leading axis [N]."""

    state: LatentState
    action: jax.Array


def make_dlc_v1(config: DLCConfig, spec: Spec) -> Agent:
    """The baseline arm as pure functions."""
    parts = make_parts(config, spec)
    optimisers = make_optimisers(config)

    def init(key: jax.Array) -> DLCState:
        """Fresh parameters and optimisers."""
        return init_state(parts, spec, config, key, optimisers)

    def carry(num_envs: int) -> ActCarry:
        """Zero state and action for N environments."""
        state = initial_state(parts.rssm, (num_envs,))
        return ActCarry(state, jnp.zeros((num_envs, spec.action)))

    def act(state, carry, obs, is_first, key, mode):
        """obs["image"] uint8 [N, H, W, C], is_first [N] -> action [N, A] in [-1, 1], carry."""
        image = obs["image"]
        chex.assert_rank([image, is_first], [4, 1])
        sampled = 1.0 if mode == "train" else 0.0
        key_latent, key_action = jax.random.split(key)
        embed = parts.encoder.apply(state.model["encoder"], to_unit(fold(image, config.fold)))
        noise = sampled * jax.random.normal(key_latent, carry.state.stoch.shape)
        latent = observe_step(
            parts.rssm, state.model["rssm"], carry.state, carry.action, embed, is_first, noise
        )
        raw = parts.actor.apply(state.actor, latent.features)
        mean, std = actor_critic.policy_distribution(raw, config.actor_min_std)
        action, _ = actor_critic.sample_action(mean, sampled * std, key_action)
        return action, ActCarry(latent, action)

    def update(state: DLCState, batch: Transition, key: jax.Array) -> tuple[DLCState, Metrics]:
        """One update of everything: batch [T, B, ...]."""
        state, seen, metrics = learn_model(parts, config, optimisers, state, batch, key)
        start, alive = choose_starts(seen.posterior, batch, config.starts, named_key(key, "starts"))
        state, _, more = learn_behaviour(parts, config, optimisers, state, start, alive, key)
        return state.replace(step=state.step + 1), metrics | more

    def report(state: DLCState, batch: Transition, key: jax.Array) -> dict[str, jax.Array]:
        """Reconstructions, open-loop predictions and imagined values, see `agents/pictures.py`."""
        posterior = filtered(parts, config, state.model, batch, named_key(key, "observe"))
        start, alive = choose_starts(posterior, batch, config.starts, named_key(key, "starts"))
        dream = Dream(
            parts, config, state.model, state.target, start, alive, named_key(key, "imagine")
        )
        _, (states, imagined, _) = dream.run(state.actor)
        value = symexp(parts.critic.apply(state.critic, states)[..., 0])
        arrays = pictures.look(world(parts, config, state.model), batch, posterior)
        return arrays | {"value": value, "return": imagined.returns}

    axes = DLCState(0, 0, 0, 0, 0, 0, 0, None)
    return Agent(init, carry, act, update, report, axes, LOSSES + NORMS)


def learn_model(parts, config, optimisers: Optimisers, state: DLCState, batch, key):
    """One world-model update: (state with the new model, Seen by the old one, metrics)."""
    loss = jax.value_and_grad(world_model_loss, argnums=2, has_aux=True)
    (_, (seen, metrics)), grads = loss(parts, config, state.model, batch, named_key(key, "observe"))
    metrics["grad_norm/model"] = optax.global_norm(grads)
    updates, model_opt = optimisers.model.update(grads, state.model_opt, state.model)
    model = optax.apply_updates(state.model, updates)
    return state.replace(model=model, model_opt=model_opt), seen, metrics


def learn_behaviour(parts, config, optimisers: Optimisers, state: DLCState, start, alive, key):
    """One actor and critic update from these starts: (state, Imagined [H, starts], metrics)."""
    dream = Dream(parts, config, state.model, state.target, start, alive, named_key(key, "imagine"))
    actor, actor_opt, features, imagined, metrics = update_actor(dream, state, optimisers.actor)
    critic, critic_opt, more = update_critic(parts, state, optimisers.critic, features, imagined)
    state = state.replace(
        actor=actor,
        actor_opt=actor_opt,
        critic=critic,
        critic_opt=critic_opt,
        target=ema(state.target, critic, config.target_rate),
    )
    return state, imagined, metrics | more


def filtered(parts: Parts, config: DLCConfig, params, batch: Transition, key) -> LatentState:
    """Posterior states [T, B, ...] of the batch."""
    return _observed(parts, config, params, batch, key)[2]


def _observed(parts: Parts, config: DLCConfig, params, batch: Transition, key):
    """Folded pictures [T * B, ...], their embeddings [T, B, E], posterior states and prior."""
    length, size = batch.reward.shape
    image = to_unit(fold(batch.obs["image"], config.fold))
    flat = image.reshape(length * size, *image.shape[2:])
    embed = parts.encoder.apply(params["encoder"], flat).reshape(length, size, -1)
    start = initial_state(parts.rssm, (size,))
    inputs = (embed, batch.prev_action, batch.is_first, start)
    return flat, embed, *observe(parts.rssm, params["rssm"], *inputs, key)


def world(parts: Parts, config: DLCConfig, params: Params) -> pictures.Model:
    """The world model with these parameters, for pictures."""

    def imagine(state, action):
        return imagine_step(parts.rssm, params["rssm"], state, action, jnp.zeros_like(state.stoch))

    return pictures.Model(
        imagine=imagine,
        decode=lambda features: parts.decoder.apply(params["decoder"], features),
        reward=lambda features: symexp(parts.reward.apply(params["reward"], features)[..., 0]),
        fold=config.fold,
    )


def world_model_loss(parts: Parts, config: DLCConfig, params, batch: Transition, key):
    """Reconstruction + reward + continue + clipped KLs.

    Returns:
      loss [], (Seen, metrics).
    """
    flat, embed, posterior, prior = _observed(parts, config, params, batch, key)
    features = posterior.features
    image = parts.decoder.apply(params["decoder"], features.reshape(flat.shape[0], -1))
    reward = parts.reward.apply(params["reward"], features)[..., 0]
    cont = parts.cont.apply(params["cont"], features)[..., 0]
    dynamics, representation, kl = gaussian.free_nats_kl(
        (posterior.mean, posterior.std), prior, config.free_nats
    )
    metrics = {
        "loss/image": objectives.image_loss(image[None], flat[None]),
        "loss/reward": objectives.reward_loss(reward, batch.reward),
        "loss/continue": objectives.continue_loss(cont, batch.is_terminal),
        "loss/dynamics": config.kl_scale * jnp.mean(dynamics),
        "loss/representation": config.kl_scale * jnp.mean(representation),
    }
    loss = sum(metrics.values())
    metrics |= {
        "loss/model": loss,
        "latent/kl": jnp.mean(kl),
        "latent/prior_entropy": jnp.mean(gaussian.entropy(prior[1])),
        "latent/posterior_entropy": jnp.mean(gaussian.entropy(posterior.std)),
        "replay/reward": jnp.mean(batch.reward),
    }
    return loss, (jax.lax.stop_gradient(Seen(posterior, embed)), metrics)


def choose_starts(posterior: LatentState, batch: Transition, number: int, key: jax.Array):
    """`number` different states of the batch: start [number, ...] and alive [number]."""
    length, size = batch.reward.shape
    flat = jax.tree.map(lambda x: x.reshape(length * size, *x.shape[2:]), posterior)
    alive = 1.0 - batch.is_terminal.reshape(-1).astype(jnp.float32)
    index = jax.random.choice(key, length * size, (number,), replace=False)
    return jax.tree.map(lambda x: x[index], (flat, alive))


class Dream(NamedTuple):
    """All that imagination depends on besides the actor."""

    parts: Parts
    config: DLCConfig
    model: Params
    target: Params
    start: LatentState
    alive: jax.Array
    key: jax.Array

    def run(self, actor: Params):
        """Rollout and returns under this actor: (actor loss, (features, imagined, metrics))."""
        parts, config = self.parts, self.config

        def policy(features, key):
            raw = parts.actor.apply(actor, features)
            mean, std = actor_critic.policy_distribution(raw, config.actor_min_std)
            return actor_critic.sample_action(mean, std, key)

        def step(state, action, key):
            noise = jax.random.normal(key, state.stoch.shape)
            return imagine_step(parts.rssm, self.model["rssm"], state, action, noise)

        def guard(state):
            if config.dynamics_clip == 0:
                return state
            mean = config.horizon * config.starts  # the loss is a mean over so many returns
            return clip_cotangent(state, config.dynamics_clip / mean)

        trajectory = rollout(step, policy, self.start, config.horizon, self.key, guard)
        features = trajectory.states.features
        rewards = symexp(parts.reward.apply(self.model["reward"], features)[..., 0])
        continues = jax.nn.sigmoid(parts.cont.apply(self.model["cont"], features)[..., 0])
        values = symexp(parts.critic.apply(self.target, features)[..., 0])
        imagined = actor_critic.imagined_returns(
            rewards, continues, values, self.alive, config.gamma, config.lambda_
        )
        loss = actor_critic.actor_loss(imagined, trajectory.entropy, config.entropy_scale)
        metrics = {
            "loss/actor": loss,
            "actor/entropy": jnp.mean(trajectory.entropy),
            "actor/action_mean_abs": jnp.mean(jnp.abs(trajectory.actions)),
            "imagined/return": jnp.mean(imagined.returns),
            "imagined/return_std": jnp.std(imagined.returns),
            "imagined/reward": jnp.mean(imagined.rewards),
            "imagined/value": jnp.mean(values),
            "imagined/continue": jnp.mean(continues[1:]),
        }
        return loss, (features[:-1], imagined, metrics)


def update_actor(dream: Dream, state: DLCState, actor_tx):
    """Imagine; when the actor is due, also follow the gradient through the dynamics."""
    interval, warmup = dream.config.actor_interval, dream.config.actor_warmup
    due = (state.step % interval == interval - 1) & (state.step >= warmup)

    def learn(_):
        (_, aux), grads = jax.value_and_grad(dream.run, has_aux=True)(state.actor)
        updates, opt = actor_tx.update(grads, state.actor_opt, state.actor)
        return optax.apply_updates(state.actor, updates), opt, aux, optax.global_norm(grads)

    def imagine_only(_):
        return state.actor, state.actor_opt, dream.run(state.actor)[1], jnp.nan

    actor, opt, (features, imagined, metrics), norm = jax.lax.cond(due, learn, imagine_only, None)
    metrics["grad_norm/actor"] = norm  # nan: no actor update
    bad = due & ~jnp.isfinite(norm)
    metrics["loss/actor"] = jnp.where(bad, jnp.nan, metrics["loss/actor"])
    return actor, opt, *jax.lax.stop_gradient((features, imagined)), metrics


def update_critic(parts: Parts, state: DLCState, critic_tx, features, imagined):
    """One regression step on the imagined states: features [H, B, F]."""

    def loss_fn(critic):
        prediction = parts.critic.apply(critic, features)[..., 0]
        return actor_critic.critic_loss(prediction, imagined)

    loss, grads = jax.value_and_grad(loss_fn)(state.critic)
    updates, opt = critic_tx.update(grads, state.critic_opt, state.critic)
    metrics = {"loss/critic": loss, "grad_norm/critic": optax.global_norm(grads)}
    return optax.apply_updates(state.critic, updates), opt, metrics
