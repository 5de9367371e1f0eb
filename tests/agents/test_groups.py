"""One update of DreamerV1 and V2 in a world so small that it is known."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import optax
import pytest
from games import CONTINUOUS, play
from small_world import AS_IS, TIMES, Line

from dreamer_jax.agents.groups import GroupState, Parts, Rules, make_group_agent
from dreamer_jax.ops.heads import gaussian_head


def update(world, settings, rules, params, slow, batch, dynamics_clip=0.0):
    """One step of gradient descent of step size 1 from these weights, one for each group."""
    config = SimpleNamespace(horizon=2, last=1, dynamics_clip=dynamics_clip, **settings)
    optimisers = {name: optax.sgd(1.0) for name in params}
    parts = Parts(world, TIMES, TIMES, AS_IS, gaussian_head())
    agent = make_group_agent(parts, CONTINUOUS, config, optimisers, rules)
    params = {name: jnp.float32(x) for name, x in params.items()}
    opt = {name: optimisers[name].init(x) for name, x in params.items()}
    state = GroupState(params, jnp.float32(slow), opt, jnp.int32(0))
    return jax.jit(agent.update)(state, batch, jax.random.key(0))


def test_the_gradient_of_returns_goes_through_dynamics_and_actions():
    """With the actions k x, from x = 1: x' = 1 + k, x'' = (1 + k)^2. The return over two steps
    is their sum, of slope 1 + 2 (1 + k); the return from x' on is x'', of slope 2 (1 + k)."""
    rules = Rules(
        kl=lambda *_: (0.0, 0.0),
        objective=lambda raw, actions, returns, values: returns,
        slow=lambda old, new, _: old,
    )
    settings = dict(gamma=1.0, lambda_=1.0, cont_scale=1.0)
    k, params = 0.5, {"model": 0.0, "actor": 0.5, "value": 0.0}
    new, metrics = update(Line(), settings, rules, params, 0.0, play(CONTINUOUS, 0))
    first, second = 1 + 2 * (1 + k), 2 * (1 + k)
    assert float(metrics["loss/actor"]) == pytest.approx(-float((1.5 + 2.25) + 2.25) / 2)
    assert float(new.params["actor"] - k) == pytest.approx(float(first + second) / 2)


def test_later_returns_pass_through_a_state_with_a_gradient_of_bounded_norm():
    """As above, in three parts: 2 x' = 3 by way of the second action, 1 by x' itself, and what x''
    hands back to x', 2 (1 + k) = 3. The last alone is cut, to 0.5; a bound of 3.1 leaves it. The
    bound is for the sum over 6 starts and 2 steps, of which the objective is the mean."""
    rules = Rules(
        kl=lambda *_: (0.0, 0.0),
        objective=lambda raw, actions, returns, values: returns,
        slow=lambda old, new, _: old,
    )
    settings = dict(gamma=1.0, lambda_=1.0, cont_scale=1.0)
    params, batch = {"model": 0.0, "actor": 0.5, "value": 0.0}, play(CONTINUOUS, 0)
    for clip, passed in ((0.5, 0.5), (3.1, 3.0)):
        new, _ = update(Line(), settings, rules, params, 0.0, batch, dynamics_clip=clip)
        moved = float(new.params["actor"] - 0.5)
        assert moved == pytest.approx(6 * (3 + 1 + passed) / 12)


@pytest.fixture(scope="module")
def golden():
    """An update where values, discounts and continues count; one start of six is an end.

    With actions k x, k = 0.5, the states are x = 1, 1.5, 2.25. Continue is 0.4 x and gamma 0.5:
    discounts of the two steps are 0.3 and 0.45. The slow network values 2 x: 2, 3, 4.5.
    lambda 0.5:  R1 = 2.25 + 0.45 * 4.5 = 4.275,  R0 = 1.5 + 0.3 (0.5 * 3 + 0.5 R1) = 2.59125
    Weights are 1 and 0.3 for five starts and 0 for the end, so a mean over the 12 entries is 5/12
    of the weighted sum of two.
    """
    batch = play(CONTINUOUS, 0)
    ends = batch.is_terminal.copy()
    ends[-1, 2] = True
    rules = Rules(
        kl=lambda posterior, prior: (7.0 * prior, 0.5),
        objective=lambda raw, actions, returns, values: (
            returns - 2.0 * values + 3.0 * raw[..., 0] + 5.0 * actions[..., 0]
        ),
        slow=lambda old, new, _: old,
    )
    settings = dict(gamma=0.5, lambda_=0.5, cont_scale=10.0)
    params, world = {"model": 1.5, "actor": 0.5, "value": 1.0}, Line(lambda x: 0.4 * x)
    new, metrics = update(world, settings, rules, params, 2.0, batch.replace(is_terminal=ends))
    return {name: float(new.params[name] - x) for name, x in params.items()}, metrics


def test_returns_are_discounted_and_valued_by_the_slow_network(golden):
    _, metrics = golden
    assert float(metrics["imagined/return"]) == pytest.approx((2.59125 + 4.275) / 2)
    assert float(metrics["imagined/value"]) == pytest.approx((2 + 3 + 4.5) / 3)


def test_the_actor_climbs_its_objective(golden):
    """With u = 1 + k: R1 = u^2 + 0.4 u^4 and R0 = u + 0.2 u^2 + 0.1 u R1, so that R1' = 8.4 and
    R0' = 1 + 0.6 + 0.4275 + 1.26 = 3.2875. Of the rest raw alone, k x, has a slope, and that is x;
    weights, values, actions and the states that the actor answers have none."""
    moved, metrics = golden
    first = 2.59125 - 2 * 2 + (3 + 5) * 0.5
    second = 4.275 - 2 * 3 + (3 + 5) * 0.75
    assert float(metrics["loss/actor"]) == pytest.approx(-5 / 12 * (first + 0.3 * second))
    slopes = (3.2875 + 3 * 1) + 0.3 * (8.4 + 3 * 1.5)
    assert moved["actor"] == pytest.approx(5 / 12 * slopes, rel=1e-5)


def test_the_value_network_regresses_the_returns(golden):
    """It says x: 1 and 1.5. Half the squared error has the slope (x - R) x."""
    moved, metrics = golden
    errors = 0.5 * (1 - 2.59125) ** 2 + 0.3 * 0.5 * (1.5 - 4.275) ** 2
    assert float(metrics["loss/value"]) == pytest.approx(5 / 12 * errors)
    slopes = (1 - 2.59125) * 1 + 0.3 * (1.5 - 4.275) * 1.5
    assert moved["value"] == pytest.approx(-5 / 12 * slopes, rel=1e-5)


def test_the_model_descends_the_sum_of_its_losses(golden):
    """2 m of reward, 3 m of continue, which weighs ten times as much, and 7 m of KL at m = 1.5."""
    moved, metrics = golden
    assert float(metrics["loss/continue"]) == pytest.approx(10 * 3 * 1.5)
    assert float(metrics["loss/kl"]) == pytest.approx(7 * 1.5)
    assert float(metrics["loss/model"]) == pytest.approx((2 + 30 + 7) * 1.5)
    assert moved["model"] == pytest.approx(-(2 + 30 + 7))
    assert float(metrics["latent/kl"]) == 0.5
