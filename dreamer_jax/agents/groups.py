"""World model, actor and value with an optimiser each: what DreamerV1 and V2 do alike.

update:  batch -> posterior states -> reconstruction, reward, continue, the agent's KL
         the last states of each sequence -> rollout of H steps -> lambda-returns of the slow value
         network
         actor: the agent's objective;  value: regress the returns
         slow value: the agent's rule
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct

from dreamer_jax.agents import pictures
from dreamer_jax.agents.acting import ActCarry, act_by_policy, alive, empty_carry, last_states
from dreamer_jax.imagination import rollout
from dreamer_jax.nn.blocks import MLP
from dreamer_jax.ops.gradients import clip_cotangent
from dreamer_jax.ops.heads import Head
from dreamer_jax.ops.keys import named_key
from dreamer_jax.ops.returns import lambda_returns, survival_weights
from dreamer_jax.policies import Policy
from dreamer_jax.types import Agent, Metrics, Params, Spec, Transition
from dreamer_jax.world_models.model import WorldModel

GROUPS = ("model", "actor", "value")
LOSSES = ("loss/model", "loss/actor", "loss/value")
NORMS = tuple(f"grad_norm/{name}" for name in GROUPS)
sg = jax.lax.stop_gradient


@struct.dataclass
class GroupState:
    """Everything a learner is. `step` counts updates and is the same for all learners."""

    params: dict[str, Params]  # by group
    slow: Params  # of the value network
    opt: dict[str, optax.OptState]
    step: jax.Array  # int32 []


AXES = GroupState(0, 0, 0, None)


class Parts(NamedTuple):
    """The networks; each can be swapped for another of the same call."""

    world: WorldModel
    actor: MLP
    value: MLP
    policy: Policy
    head: Head  # what the value network's outputs mean


def init_state(parts: Parts, spec: Spec, key: jax.Array, optimisers: dict[str, Any]) -> GroupState:
    """Parameters of every part from its own key; the slow value network is a copy."""
    features = jnp.zeros((1, parts.world.dynamics.size))
    params = {"model": parts.world.init(key, spec)}
    for name in ("actor", "value"):
        params[name] = getattr(parts, name).init(named_key(key, name), features)
    return GroupState(
        params=params,
        slow=jax.tree.map(jnp.copy, params["value"]),
        opt={name: optimisers[name].init(params[name]) for name in GROUPS},
        step=jnp.zeros((), jnp.int32),
    )


def descend(
    state: GroupState, optimisers: dict[str, Any], grads: dict[str, Params]
) -> tuple[dict[str, Params], dict[str, optax.OptState], dict[str, jax.Array]]:
    """One step of every group: new parameters, optimisers' states, norms of the gradients."""
    params, opt = {}, {}
    for name in GROUPS:
        updates, opt[name] = optimisers[name].update(
            grads[name], state.opt[name], state.params[name]
        )
        params[name] = optax.apply_updates(state.params[name], updates)
    return params, opt, {f"grad_norm/{name}": optax.global_norm(grads[name]) for name in GROUPS}


class Rules(NamedTuple):
    """In what such agents differ.

    kl:        (posterior states, prior) -> (weighted loss [], KL in nats [])
    objective: (raw [H, B, O], actions [H, B, A], returns [H, B], values [H, B]) -> what the actor
               maximises, [H, B]; raw is the actor's answer to features without gradient, the
               returns' gradient goes through the dynamics and the actions, the values have none
    slow:      (slow value network, new value network, updates so far []) -> new slow one
    explore:   (action [N, A], key) -> action, done to sampled ones
    reward:    (rewards) -> what is learnt in their place
    """

    kl: Callable
    objective: Callable
    slow: Callable
    explore: Callable = lambda action, key: action
    reward: Callable = lambda reward: reward


def make_group_agent(
    parts: Parts, spec: Spec, config: Any, optimisers: dict[str, Any], rules: Rules
) -> Agent:
    """The agent as pure functions.

    config: with horizon, last, gamma, lambda_, cont_scale and dynamics_clip.
    """
    world, head = parts.world, parts.head

    def init(key: jax.Array) -> GroupState:
        """Fresh parameters and optimisers."""
        return init_state(parts, spec, key, optimisers)

    def carry(num_envs: int) -> ActCarry:
        """Zero state and action for N environments."""
        return empty_carry(world, num_envs, spec.action)

    def act(state, carry, obs, is_first, key, mode):
        """obs leaves [N, ...], is_first bool [N] -> action [N, A] in [-1, 1] or one-hot, carry."""
        nets = (world, parts.actor, parts.policy, state.params["model"], state.params["actor"])
        return act_by_policy(*nets, carry, (obs, is_first, key, mode), rules.explore)

    def model_loss(params, batch: Transition, key):
        posterior, prior = world.observe(params, batch, named_key(key, "observe"))
        losses = world.losses(params, posterior.features, batch)
        losses["loss/continue"] *= config.cont_scale
        losses["loss/kl"], kl = rules.kl(posterior, prior)
        total = sum(losses.values())
        return total, (posterior, losses | {"loss/model": total, "latent/kl": kl})

    def dream(actor, state: GroupState, posterior, batch, key):
        """Rollout and returns under this actor; gradients go through rewards, values, dynamics."""
        model = state.params["model"]
        start = last_states(posterior, config.last)
        start_alive = alive(batch.is_terminal, config.last)

        def policy(features, key):
            # The authors' programs cut the gradient here; V2 then learns the race more slowly.
            raw = parts.actor.apply(actor, features)
            return parts.policy.sample(raw, key), parts.policy.entropy(raw)

        def guard(latent):
            if config.dynamics_clip == 0:
                return latent
            mean = config.horizon * len(start_alive)  # the loss is a mean over so many returns
            return clip_cotangent(latent, config.dynamics_clip / mean)

        step = partial(world.imagine, model)
        path = rollout(step, policy, start, config.horizon, named_key(key, "imagine"), guard)
        features = path.states.features
        rewards, continues = world.rewards(model, features), world.continues(model, features)
        values = head.mean(parts.value.apply(state.slow, features))
        discounts = config.gamma * continues[1:]
        returns = lambda_returns(rewards[1:], discounts, values[1:], config.lambda_)
        weights = sg(survival_weights(discounts, start_alive))
        metrics = {
            "actor/entropy": jnp.mean(path.entropy),
            "imagined/return": jnp.mean(returns),
            "imagined/return_std": jnp.std(returns),
            "imagined/reward": jnp.mean(rewards[1:]),
            "imagined/value": jnp.mean(values),
            "imagined/continue": jnp.mean(continues[1:]),
        }
        return features[:-1], path.actions, returns, values[:-1], weights, metrics

    def actor_loss(actor, state: GroupState, posterior, batch, key):
        features, actions, returns, values, weights, metrics = dream(
            actor, state, posterior, batch, key
        )
        raw = parts.actor.apply(actor, sg(features))
        loss = -jnp.mean(weights * rules.objective(raw, sg(actions), returns, sg(values)))
        return loss, (sg((features, returns, weights)), metrics | {"loss/actor": loss})

    def value_loss(value, features, returns, weights):
        return jnp.mean(weights * head.loss(parts.value.apply(value, features), returns))

    def update(state: GroupState, batch: Transition, key) -> tuple[GroupState, Metrics]:
        """One update of everything: batch [T, B, ...]."""
        params, batch = state.params, batch.replace(reward=rules.reward(batch.reward))
        of_model, (posterior, metrics) = jax.grad(model_loss, has_aux=True)(
            params["model"], batch, key
        )
        of_actor, (dreamt, more) = jax.grad(actor_loss, has_aux=True)(
            params["actor"], state, posterior, batch, key
        )
        loss, of_value = jax.value_and_grad(value_loss)(params["value"], *dreamt)
        grads = {"model": of_model, "actor": of_actor, "value": of_value}
        params, opt, norms = descend(state, optimisers, grads)
        params["model"] = world.settle(params["model"], batch, state.step)
        slow = rules.slow(state.slow, params["value"], state.step + 1)
        new = GroupState(params, slow, opt, state.step + 1)
        return new, sg(metrics | more | norms | {"loss/value": loss})

    def report(state: GroupState, batch: Transition, key) -> dict[str, jax.Array]:
        """Reconstructions, open-loop predictions and imagined values, see `agents/pictures.py`."""
        model, batch = state.params["model"], batch.replace(reward=rules.reward(batch.reward))
        posterior, _ = world.observe(model, batch, named_key(key, "observe"))
        _, _, returns, values, _, _ = dream(state.params["actor"], state, posterior, batch, key)
        arrays = pictures.look(pictures.of(world, model), batch, posterior)
        return arrays | {"value": values, "return": returns}

    return Agent(init, carry, act, update, report, AXES, LOSSES + NORMS)
