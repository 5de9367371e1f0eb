"""Acting with a recurrent world model and a policy; what several agents do alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from dreamer_jax.nn.blocks import MLP
from dreamer_jax.policies import Policy
from dreamer_jax.types import Params
from dreamer_jax.world_models.model import WorldModel


class ActCarry(NamedTuple):
    """What acting remembers, leading axis [N]."""

    state: Any
    action: jax.Array


def empty_carry(world: WorldModel, num_envs: int, action: int) -> ActCarry:
    """Zero state and action for N environments."""
    return ActCarry(world.dynamics.initial((num_envs,)), jnp.zeros((num_envs, action)))


def act_by_policy(
    world: WorldModel,
    actor: MLP,
    policy: Policy,
    model: Params,
    params: Params,
    carry: ActCarry,
    inputs: tuple[Any, jax.Array, jax.Array, str],
    explore: Callable[[jax.Array, jax.Array], jax.Array] = lambda action, key: action,
) -> tuple[jax.Array, ActCarry]:
    """Filter one observation, then act: sampled ("train") or most probable (any other mode).

    Latents are sampled in both, as the authors' programs do: the actor has seen no others.

    Args:
      model, params: of the world model and of the actor.
      inputs: (obs leaves [N, ...], is_first bool [N], key, mode).
      explore: (action [N, A], key) -> action, done to sampled ones.

    Returns:
      action [N, A] in [-1, 1] or one-hot, carry.
    """
    obs, is_first, key, mode = inputs
    chex.assert_rank(is_first, 1)
    key_latent, key_action, key_noise = jax.random.split(key, 3)
    state = world.filter(model, carry.state, carry.action, obs, is_first, key_latent)
    raw = actor.apply(params, state.features)
    if mode == "train":
        action = explore(policy.sample(raw, key_action), key_noise)
    else:
        action = policy.mode(raw)
    action = jnp.clip(action, -1.0, 1.0)
    return action, ActCarry(state, action)


def last_states(posterior: Any, number: int) -> Any:
    """Starts of imagination: the last `number` states of each sequence [T, B, ...], without
    gradient, as [number * B, ...], time first."""
    flat = jax.tree.map(lambda x: x[-number:].reshape(-1, *x.shape[2:]), posterior)
    return jax.lax.stop_gradient(flat)


def alive(is_terminal: jax.Array, number: int) -> jax.Array:
    """1 where such a start is no end, 0 where it is: bool [T, B] -> float32 [number * B]."""
    return 1.0 - is_terminal[-number:].reshape(-1).astype(jnp.float32)
