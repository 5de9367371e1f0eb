"""DreamerV3 whose actor is led by the gradient through the dynamics, as in 2023 for continuous
actions.

The normalised advantage itself is maximised. Its gradient goes through rewards, values, continues,
latents and actions, to the actor alone; not from an action back to the state it was chosen in,
whose features the actor sees without gradient.
"""

from __future__ import annotations

from functools import partial

import jax

from dreamer_jax.agents.acting import alive
from dreamer_jax.agents.dreamer_v3 import Imagined, View, make_dreamer_v3
from dreamer_jax.agents.dreamer_v3_config import DreamerV3Config
from dreamer_jax.imagination import rollout
from dreamer_jax.ops.keys import named_key
from dreamer_jax.ops.returns import lambda_returns, survival_weights
from dreamer_jax.types import Agent, Params, Spec, Transition

sg = jax.lax.stop_gradient


def make_by_gradient(config: DreamerV3Config, spec: Spec) -> Agent:
    """DreamerV3 with the actor's gradient that its settings and the kind of action ask for."""
    through = config.actor_gradient == "dynamics" and not spec.discrete
    return make_dreamer_v3(config, spec, DynamicsView if through else View)


class DynamicsView(View):
    """The same losses but the actor's."""

    def imagine(self, params: Params, start, batch: Transition, key):
        """As in `View`; returns, values, rewards and continues have the actor's gradient here."""
        parts, world, fixed = self.parts, self.parts.world, sg(params)

        def policy(features, key):
            raw = parts.actor.apply(params["actor"], sg(features))
            return parts.policy.sample(raw, key), parts.policy.entropy(raw)

        step = partial(world.imagine, fixed)
        path = rollout(step, policy, sg(start), self.config.horizon, named_key(key, "imagine"))
        features = path.states.features
        rewards = world.rewards(fixed, features)
        continues = world.continues(fixed, features)
        values = parts.head.mean(parts.value.apply(fixed["value"], features))
        returns = lambda_returns(rewards[1:], continues[1:], values[1:], self.config.lambda_)
        weights = sg(survival_weights(continues[1:], alive(batch.is_terminal, self.config.last)))
        imagined = Imagined(values, returns, weights, rewards, continues)
        value = parts.value.apply(params["value"], sg(features))
        return sg(features), sg(path.actions), value, imagined

    def score(self, raw, actions, advantage) -> jax.Array:
        """The advantage itself, [H, B]."""
        return advantage
