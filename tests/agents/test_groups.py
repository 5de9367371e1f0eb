"""The actor's gradient of DreamerV1 and V2 in a world so small that it is known."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import optax
import pytest
from games import CONTINUOUS, play

from dreamer_jax.agents.groups import GroupState, Parts, Rules, make_group_agent
from dreamer_jax.ops.heads import gaussian_head
from dreamer_jax.policies import Policy
from dreamer_jax.types import LatentState


class Line:
    """The state is a point x, an action moves it, the reward of arriving at x is x."""

    dynamics = SimpleNamespace(size=1)

    def observe(self, params, batch, key):
        x = jnp.ones((*batch.reward.shape, 1))
        return LatentState(x, x, x, x), None

    def imagine(self, params, state, action, key):
        return state.replace(deter=state.deter + action[..., :1])

    def losses(self, params, features, batch):
        return {"loss/reward": 0.0 * params, "loss/continue": 0.0}

    def rewards(self, params, features):
        return features[..., 0]

    def continues(self, params, features):
        return jnp.ones(features.shape[:-1])


def test_the_gradient_of_returns_goes_through_dynamics_and_actions():
    """With the actions k x, from x = 1: x' = 1 + k, x'' = (1 + k)^2. The return over two steps
    is their sum, of slope 1 + 2 (1 + k); the return from x' on is x'', of slope 2 (1 + k)."""
    scale = SimpleNamespace(apply=lambda k, features: k * features)
    nothing = SimpleNamespace(apply=lambda params, features: 0.0 * params * features)
    policy = Policy(
        outputs=1,
        sample=lambda raw, key: raw,
        mode=lambda raw: raw,
        log_prob=lambda raw, action: raw[..., 0],
        entropy=lambda raw: 0 * raw[..., 0],
        excess=lambda raw: 0 * raw[..., 0],
    )
    config = SimpleNamespace(
        horizon=2, last=1, gamma=1.0, lambda_=1.0, cont_scale=1.0, dynamics_clip=0.0
    )
    rules = Rules(
        kl=lambda *_: (0.0, 0.0),
        objective=lambda raw, actions, returns, values: returns,
        slow=lambda old, new, _: old,
    )
    parts = Parts(Line(), scale, nothing, policy, gaussian_head())
    optimisers = {name: optax.sgd(1.0) for name in ("model", "actor", "value")}
    agent = make_group_agent(parts, CONTINUOUS, config, optimisers, rules)
    k, zero = jnp.float32(0.5), jnp.float32(0.0)
    params = {"model": zero, "actor": k, "value": zero}
    opt = {name: optimisers[name].init(x) for name, x in params.items()}
    state = GroupState(params, zero, opt, jnp.int32(0))
    new, metrics = agent.update(state, play(CONTINUOUS, 0), jax.random.key(0))
    first, second = 1 + 2 * (1 + k), 2 * (1 + k)
    assert float(metrics["loss/actor"]) == pytest.approx(-float((1.5 + 2.25) + 2.25) / 2)
    assert float(new.params["actor"] - k) == pytest.approx(float(first + second) / 2)
