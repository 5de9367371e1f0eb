"""The one rollout inside a world model."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from dreamer_jax.types import LatentState, Trajectory


def rollout(
    step: Callable,
    policy: Callable,
    start: LatentState,
    horizon: int,
    key: jax.Array,
    guard: Callable = lambda state: state,
) -> Trajectory:
    """Imagine `horizon` steps from `start`.

    Args:
      step: (state, action, key) -> state.
      policy: (features [B, F], key) -> (action [B, A], entropy [B]).
      start: leading axis [B].
      guard: an identity on the state; what returns from later steps to a state passes through
        its gradient, both by way of the dynamics and of the policy.

    Returns:
      Trajectory; gradients flow through step and action. Heads belong outside: evaluate them on
      the whole trajectory at once.
    """

    def body(state, key):
        state = guard(state)
        key_policy, key_step = jax.random.split(key)
        action, entropy = policy(state.features, key_policy)
        new = step(state, action, key_step)
        return new, (new, action, entropy)

    _, (states, actions, entropy) = jax.lax.scan(body, start, jax.random.split(key, horizon))
    states = jax.tree.map(lambda s, rest: jnp.concatenate([s[None], rest]), start, states)
    return Trajectory(states, actions, entropy)
