"""A world so small that all of it is known: a point on a line."""

from types import SimpleNamespace

import jax.numpy as jnp

from dreamer_jax.policies import Policy
from dreamer_jax.types import LatentState


class Line:
    """The state is a point x, an action moves it, the reward of arriving at x is x.

    cont: of x, the probability that the episode goes on from there. Every batch begins at x = 1.
    """

    dynamics = SimpleNamespace(size=1)

    def __init__(self, cont=jnp.ones_like):
        self.cont = cont

    def observe(self, params, batch, key):
        x = jnp.ones((*batch.reward.shape, 1))
        return LatentState(x, x, x, x), params

    def imagine(self, params, state, action, key):
        return state.replace(deter=state.deter + action[..., :1])

    def losses(self, params, features, batch):
        return {"loss/reward": 2.0 * params, "loss/continue": 3.0 * params}

    def settle(self, params, batch, step):
        return params

    def rewards(self, params, features):
        return features[..., 0]

    def continues(self, params, features):
        return self.cont(features[..., 0])


TIMES = SimpleNamespace(apply=lambda k, features: k * features)  # a network of one weight
AS_IS = Policy(
    outputs=1,
    sample=lambda raw, key: raw,
    mode=lambda raw: raw,
    log_prob=lambda raw, action: raw[..., 0],
    entropy=lambda raw: 0 * raw[..., 0],
    excess=lambda raw: 0 * raw[..., 0],
)
