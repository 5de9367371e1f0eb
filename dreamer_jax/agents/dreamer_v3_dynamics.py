"""DreamerV3 whose actor is led by the gradient through the dynamics, as in 2023 for continuous
actions.

The normalised advantage itself is maximised. Its gradient goes through rewards, values, continues,
latents and actions, to the actor alone; not from an action back to the state it was chosen in,
whose features the actor sees without gradient.
"""

from __future__ import annotations

from typing import Any

import jax

from dreamer_jax.agents.dreamer_v3 import View, make_dreamer_v3
from dreamer_jax.agents.dreamer_v3_config import DreamerV3Config
from dreamer_jax.types import Agent, Params, Spec

sg = jax.lax.stop_gradient


def make_by_gradient(config: DreamerV3Config, spec: Spec) -> Agent:
    """DreamerV3 with the actor's gradient that its settings and the kind of action ask for."""
    through = config.actor_gradient == "dynamics" and not spec.discrete
    return make_dreamer_v3(config, spec, DynamicsView if through else View)


class DynamicsView(View):
    """The same losses but the actor's."""

    def kept(self, tree: Any) -> Any:
        """All of it."""
        return tree

    def values(self, params: Params, features: jax.Array, value: jax.Array) -> jax.Array:
        """As in `View`, with the gradient through the states and none to the value network."""
        return self.parts.head.mean(self.parts.value.apply(sg(params["value"]), features))

    def score(self, raw, actions, advantage) -> jax.Array:
        """The advantage itself, [H, B]."""
        return advantage
