"""PlaNet (Hafner et al. 2019): no policy; every decision is planned in the latent space by CEM.

update:  batch -> posterior states -> reconstruction, reward, continue, KL above its free nats,
         and with latent overshooting the KL of priors several steps ahead
act:     filter -> draw plans -> their rewards in imagination -> refit to the best -> the first
         action of the mean plan, with noise in training

Dense layers and the GRU have LayerNorms and SiLU; published were ReLUs without norms.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import optax
from flax import struct

from dreamer_jax.agents import pictures
from dreamer_jax.agents.acting import ActCarry, empty_carry
from dreamer_jax.agents.networks import make_world
from dreamer_jax.agents.planet_config import PlaNetConfig
from dreamer_jax.ops import gaussian
from dreamer_jax.ops.heads import gaussian_head
from dreamer_jax.ops.keys import named_key
from dreamer_jax.ops.optimisers import clipped_adam
from dreamer_jax.ops.returns import survival_weights
from dreamer_jax.planners.cem import cem, standard
from dreamer_jax.policies import explore
from dreamer_jax.types import Agent, LatentState, Metrics, Params, Spec, Transition
from dreamer_jax.world_models.dynamics import gaussian_dynamics
from dreamer_jax.world_models.model import WorldModel
from dreamer_jax.world_models.rssm import RSSM

WATCHED = ("loss/model", "grad_norm/model")


@struct.dataclass
class PlaNetState:
    """Everything a learner is. `step` counts updates and is the same for all learners."""

    model: Params
    opt: optax.OptState
    step: jax.Array  # int32 []


def make_planet(config: PlaNetConfig, spec: Spec) -> Agent:
    """The agent as pure functions. Raises ValueError for sizes that do not fit together."""
    rssm = RSSM(config.deter, config.stoch, config.hidden, 2, 2, config.min_std)
    world = make_world(config, spec, gaussian_dynamics(rssm), gaussian_head())
    optimiser = clipped_adam(config.model_lr, 1e-4, config.clip)
    wander = partial(explore, discrete=spec.discrete, amount=config.exploration)

    def init(key: jax.Array) -> PlaNetState:
        """Fresh parameters and optimiser."""
        model = world.init(key, spec)
        return PlaNetState(model, optimiser.init(model), jnp.zeros((), jnp.int32))

    def carry(num_envs: int) -> ActCarry:
        """Zero state and action for N environments."""
        return empty_carry(world, num_envs, spec.action)

    def act(state, carry, obs, is_first, key, mode):
        """obs leaves [N, ...], is_first bool [N] -> action [N, A] in [-1, 1] or one-hot, carry.

        Latents are sampled in evaluation too, as in the authors' program; only noise is left out.
        """
        key_latent, key_plan, key_noise = jax.random.split(key, 3)
        latent = world.filter(state.model, carry.state, carry.action, obs, is_first, key_latent)
        keys = jax.random.split(key_plan, len(is_first))
        one = partial(plan, world, config, spec, state.model)
        action = jax.vmap(one)(latent, keys)
        if mode == "train":
            action = wander(action, key_noise)
        action = jnp.clip(action, -1.0, 1.0)
        return action, ActCarry(latent, action)

    def loss(model, batch: Transition, key):
        posterior, prior = world.observe(model, batch, named_key(key, "observe"))
        losses = world.losses(model, posterior.features, batch)
        losses["loss/reward"] *= config.reward_scale
        kl = gaussian.kl(posterior.mean, posterior.std, *prior)
        # Free for each state, as in the authors' program, where DreamerV1's are for the mean.
        losses["loss/kl"] = config.kl_scale * jnp.mean(jnp.maximum(kl, config.free_nats))
        if config.overshooting > 1:
            ahead = overshoot(world, config, model, posterior, batch, named_key(key, "overshoot"))
            losses["loss/overshooting"] = config.overshooting_scale * ahead
        total = sum(losses.values())
        metrics = losses | {"loss/model": total, "latent/kl": jnp.mean(kl)}
        entropy = jnp.mean(gaussian.entropy(posterior.std))
        return total, metrics | {"latent/posterior_entropy": entropy}

    def update(state: PlaNetState, batch: Transition, key) -> tuple[PlaNetState, Metrics]:
        """One update of the world model: batch [T, B, ...]."""
        grads, metrics = jax.grad(loss, has_aux=True)(state.model, batch, key)
        updates, opt = optimiser.update(grads, state.opt, state.model)
        model = world.settle(optax.apply_updates(state.model, updates), batch, state.step)
        metrics["grad_norm/model"] = optax.global_norm(grads)
        return PlaNetState(model, opt, state.step + 1), metrics

    def report(state: PlaNetState, batch: Transition, key) -> dict[str, jax.Array]:
        """Reconstructions and open-loop predictions, see `agents/pictures.py`."""
        posterior, _ = world.observe(state.model, batch, named_key(key, "observe"))
        return pictures.look(pictures.of(world, state.model), batch, posterior)

    axes = PlaNetState(0, 0, None)
    return Agent(init, carry, act, update, report, axes, WATCHED)


def plan(
    world: WorldModel,
    config: PlaNetConfig,
    spec: Spec,
    model: Params,
    state: LatentState,
    key: jax.Array,
) -> jax.Array:
    """The first action [A] of the best plan from one state (no leading axis).

    Rewards count as far as the episode is expected to go on. Discrete actions are planned as
    scores without bounds, of which the largest is taken.
    """
    key_plan, key_dream = jax.random.split(key)
    horizon, number = config.plan_horizon, config.candidates

    def executed(scores):
        if not spec.discrete:
            return scores
        return jax.nn.one_hot(jnp.argmax(scores, axis=-1), spec.action)

    def score(plans):
        start = jax.tree.map(lambda x: jnp.broadcast_to(x, (number, *x.shape)), state)

        def step(latent, inputs):
            action, key = inputs
            latent = world.imagine(model, latent, action, key)
            return latent, latent.features

        actions = jnp.swapaxes(executed(plans), 0, 1)
        keys = jax.random.split(key_dream, horizon)
        _, features = jax.lax.scan(step, start, (actions, keys))
        reached = survival_weights(world.continues(model, features), jnp.ones(number))
        return jnp.sum(reached * world.rewards(model, features), axis=0)

    start, bound = standard(horizon, spec.action), jnp.inf if spec.discrete else 1.0
    best = cem(score, key_plan, start, config.iterations, number, config.top, -bound, bound)
    return executed(best.mean[0])


def overshoot(
    world: WorldModel,
    config: PlaNetConfig,
    model: Params,
    posterior: LatentState,
    batch: Transition,
    key: jax.Array,
) -> jax.Array:
    """Latent overshooting (equation 7): mean KL of the posterior from priors 2 .. D steps ahead.

    They start from every record that has one so far ahead. The posterior is a target here, without
    gradient. Predictions across the end of an episode do not count. Free nats are free for each
    state, as in the authors' program.
    """
    sg = jax.lax.stop_gradient
    length, depth = batch.reward.shape[0], config.overshooting
    if depth >= length:
        raise ValueError(f"agent.overshooting={depth} must be below the length of a sequence")
    latent, same = posterior, jnp.ones(batch.reward.shape)
    total, count = 0.0, 0.0
    for ahead, one_key in enumerate(jax.random.split(key, depth), 1):
        window, starts = slice(ahead, length), slice(length - ahead)
        latent, same = jax.tree.map(lambda x: x[starts], (latent, same))  # noqa: B023
        latent = world.imagine(model, latent, batch.prev_action[window], one_key)
        same = same * (1.0 - batch.is_first[window].astype(jnp.float32))
        if ahead == 1:
            continue  # the ordinary KL
        truth = sg((posterior.mean[window], posterior.std[window]))
        kl = jnp.maximum(gaussian.kl(*truth, latent.mean, latent.std), config.free_nats)
        total += jnp.sum(same * kl)
        count += jnp.sum(same)
    return total / jnp.maximum(count, 1.0)
