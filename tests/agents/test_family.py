"""DreamerV1, V2 and PlaNet: which loss moves what, their own rules, and that they learn."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from games import CONTINUOUS, DISCRETE, greedy, learn, play

from dreamer_jax.agents import planet
from dreamer_jax.agents.dreamer_v1 import make_dreamer_v1
from dreamer_jax.agents.dreamer_v1_config import DreamerV1Config
from dreamer_jax.agents.dreamer_v2 import make_dreamer_v2
from dreamer_jax.agents.dreamer_v2_config import DreamerV2Config
from dreamer_jax.agents.dreamer_v3 import make_dreamer_v3
from dreamer_jax.agents.dreamer_v3_config import DreamerV3Config
from dreamer_jax.agents.networks import mlp
from dreamer_jax.agents.planet import make_planet
from dreamer_jax.agents.planet_config import PlaNetConfig
from dreamer_jax.nn.blocks import NormSiLU
from dreamer_jax.ops import gaussian
from dreamer_jax.policies import one_hot, tanh_normal
from dreamer_jax.types import LatentState, Spec, Transition

KEY = jax.random.key(5)
TINY = dict(units=16, layers=1, deter=16, hidden=16)
V1 = DreamerV1Config(
    **TINY, stoch=4, horizon=4, last=4, gamma=0.8, free_nats=0.1,
    model_lr=3e-3, actor_lr=3e-3, value_lr=3e-3,
)  # fmt: skip
V2 = DreamerV2Config(
    **TINY, latents=4, classes=4, horizon=4, last=4, gamma=0.8, slow_every=10,
    model_lr=3e-3, actor_lr=3e-3, value_lr=3e-3, entropy_scale=1e-2,
)  # fmt: skip
PLANET = PlaNetConfig(
    **TINY, stoch=4, free_nats=0.1, model_lr=3e-3, plan_horizon=3, iterations=4, candidates=60,
    top=6, overshooting=3,
)  # fmt: skip

V3 = DreamerV3Config(**TINY, latents=4, classes=4, blocks=2, horizon=4, last=4)

AGENTS = {
    "v1 continuous": (make_dreamer_v1, V1, CONTINUOUS),
    "v1 discrete": (make_dreamer_v1, V1, DISCRETE),
    "v2 reinforce": (make_dreamer_v2, V2, DISCRETE),
    "v2 dynamics": (make_dreamer_v2, replace(V2, reinforce=0.0), CONTINUOUS),
    "planet continuous": (make_planet, PLANET, CONTINUOUS),
    "planet discrete": (make_planet, PLANET, DISCRETE),
}


@pytest.mark.parametrize("name", AGENTS)
def test_it_learns_which_action_is_rewarded(name):
    """A wrong sign in the actor's loss or the planner drives the actions the other way."""
    make, config, spec = AGENTS[name]
    agent = make(config, spec)
    state, metrics = learn(agent, spec, 300, KEY)
    assert metrics["loss/reward"][-10:].mean() < 0.5 * metrics["loss/reward"][:10].mean()
    assert {name for name in metrics if name.startswith("grad_norm/")} < set(agent.losses)
    assert all(np.all(np.isfinite(metrics[loss])) for loss in agent.losses)
    assert np.mean(greedy(agent, spec, state, KEY)[:, -1]) > 0.8


@pytest.mark.parametrize(
    ("make", "config"),
    [(make_dreamer_v1, V1), (make_dreamer_v2, replace(V2, weight_decay=0.0))],
)
def test_each_group_learns_at_its_own_rate(make, config):
    """With the others' step sizes at (nearly) zero, one group alone moves."""
    batch, rates = play(DISCRETE, 0), ("model_lr", "actor_lr", "value_lr")

    @jax.jit
    def step(values):
        agent = make(replace(config, **dict(zip(rates, values, strict=True))), DISCRETE)
        state = agent.init(KEY)
        return state.params, agent.update(state, batch, KEY)[0].params

    for index, group in enumerate(("model", "actor", "value")):
        before, after = step(jnp.zeros(3).at[index].set(1e-3))
        moved = set()
        for name in before:
            pairs = zip(jax.tree.leaves(before[name]), jax.tree.leaves(after[name]), strict=True)
            if any(np.any(a != b) for a, b in pairs):
                moved.add(name)
        assert moved == {group}


def test_the_slow_value_of_v2_is_a_copy_every_so_many_updates():
    agent = make_dreamer_v2(replace(V2, slow_every=3), DISCRETE)
    state = jax.jit(agent.init)(KEY)
    update, batch = jax.jit(agent.update), play(DISCRETE, 0)
    expected = state.slow
    for number in range(1, 5):
        state, _ = update(state, batch, KEY)
        if number == 3:
            expected = state.params["value"]
        same = jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), state.slow, expected)
        assert all(jax.tree.leaves(same)), number


def test_v1_values_returns_by_the_value_network_itself():
    agent = make_dreamer_v1(V1, CONTINUOUS)
    state, _ = jax.jit(agent.update)(jax.jit(agent.init)(KEY), play(CONTINUOUS, 0), KEY)
    same = jax.tree.map(lambda a, b: np.array_equal(a, b), state.slow, state.params["value"])
    assert all(jax.tree.leaves(same))


def test_exploration_is_for_training_alone():
    for config, spec in ((replace(V1, exploration=1.0), DISCRETE), (V1, CONTINUOUS)):
        agent = make_dreamer_v1(config, spec)
        state = jax.jit(agent.init)(KEY)
        act = jax.jit(agent.act, static_argnames="mode")
        obs, first = {"place": jnp.zeros((300, 1))}, jnp.ones(300, bool)
        calm, after = act(state, agent.carry(300), obs, first, KEY, mode="eval")
        wild, _ = act(state, agent.carry(300), obs, first, KEY, mode="train")
        policy = one_hot(spec.action, 0.0) if spec.discrete else tanh_normal(spec.action)
        actor = mlp(config, policy.outputs, NormSiLU)
        raw = actor.apply(state.params["actor"], after.state.features)
        np.testing.assert_allclose(calm, policy.mode(raw), atol=1e-6)
        if spec.discrete:  # nothing but random actions
            np.testing.assert_allclose(wild.mean(0), 1 / 3, atol=0.1)
            assert set(np.unique(wild)) == {0.0, 1.0}
        assert np.std(wild) > 0.2 and np.abs(wild).max() <= 1.0


@pytest.mark.parametrize(
    "name", ["v1 continuous", "v2 reinforce", "v2 dynamics", "planet continuous"]
)
def test_latents_are_sampled_in_evaluation_too(name):
    """As in training; most probable ones are a habit that actor and planner never met."""
    make, config, spec = AGENTS[name]
    agent = make(config, spec)
    state = jax.jit(agent.init)(KEY)
    obs, first = {"place": jnp.zeros((50, 1))}, jnp.ones(50, bool)
    act = jax.jit(agent.act, static_argnames="mode")
    action, after = act(state, agent.carry(50), obs, first, KEY, mode="eval")
    assert np.std(after.state.stoch, axis=0).max() > 0.1
    calm, same = act(state, agent.carry(50), obs, first, KEY, mode="calm")
    np.testing.assert_array_equal(action, calm)
    np.testing.assert_array_equal(after.state.stoch, same.state.stoch)


class Line:
    """A known world: the state is a point, an action moves it, the reward is -(x - goal)^2."""

    def __init__(self, goal):
        self.goal = goal

    def imagine(self, params, state, action, key):
        return state.replace(deter=state.deter + 0.5 * action)

    def rewards(self, params, features):
        return -jnp.square(features[..., 0] - self.goal)

    def continues(self, params, features):
        return jnp.ones(features.shape[:-1])


@pytest.mark.parametrize("goal", [-0.7, 0.2, 3.0])
def test_the_planner_finds_the_optimum_of_a_known_world(goal):
    """From 0 with steps of at most 0.5: straight to the goal, or as far as a step goes."""
    config = PlaNetConfig(plan_horizon=3, iterations=10, candidates=300, top=30)
    one = jnp.zeros(1)
    state = LatentState(one, one[:0], one[:0], one[:0])
    action = planet.plan(Line(goal), config, Spec({}, 1), None, state, KEY)
    assert float(action[0]) == pytest.approx(np.clip(goal / 0.5, -1, 1), abs=0.1)


def test_the_planner_chooses_among_discrete_actions():
    class Choice(Line):
        def imagine(self, params, state, action, key):
            return state.replace(deter=state.deter + action @ jnp.array([[-0.5], [0.0], [0.5]]))

    config = PlaNetConfig(plan_horizon=3, iterations=5, candidates=200, top=20)
    one = jnp.zeros(1)
    state = LatentState(one, one[:0], one[:0], one[:0])
    for goal, best in ((-2.0, 0), (0.0, 1), (2.0, 2)):
        action = planet.plan(Choice(goal), config, Spec({}, 3, True), None, state, KEY)
        np.testing.assert_array_equal(action, np.eye(3)[best])


def test_the_planner_shuns_an_end():
    """Every step pays 1, left of -0.2 the episode ends: from 0 the best step is to the right."""

    class Cliff(Line):
        def rewards(self, params, features):
            return jnp.ones(features.shape[:-1])

        def continues(self, params, features):
            return jax.nn.sigmoid(20.0 * (features[..., 0] + 0.2))

    config = PlaNetConfig(plan_horizon=3, iterations=10, candidates=300, top=30)
    one = jnp.zeros(1)
    state = LatentState(one, one[:0], one[:0], one[:0])
    action = planet.plan(Cliff(0.0), config, Spec({}, 1), None, state, KEY)
    assert float(action[0]) > 0.1
    choose = Spec({}, 2, True)

    class Choice(Cliff):
        def imagine(self, params, state, action, key):
            return state.replace(deter=state.deter + action @ jnp.array([[-0.5], [0.5]]))

    action = planet.plan(Choice(0.0), config, choose, None, state, KEY)
    np.testing.assert_array_equal(action, [0.0, 1.0])


def test_the_planner_has_no_favourite_among_discrete_actions():
    """Where nothing matters, each of 18 is chosen about as often as any other."""

    class Idle(Line):
        def imagine(self, params, state, action, key):
            return state

    config = PlaNetConfig(plan_horizon=1, iterations=1, candidates=20, top=2)
    one = jnp.zeros(1)
    state = LatentState(one, one[:0], one[:0], one[:0])
    spec, keys = Spec({}, 18, True), jax.random.split(KEY, 1800)
    plan = jax.jit(jax.vmap(lambda key: planet.plan(Idle(0), config, spec, None, state, key)))
    shares = np.mean(plan(keys), axis=0)
    assert shares.shape == (18,) and np.abs(shares - 1 / 18).max() < 0.03


def loss(agent, batch, name):
    """One figure of a first update; what it does not need is not compiled."""
    figure = jax.jit(lambda b: agent.update(agent.init(KEY), b, KEY)[1][f"loss/{name}"])
    return float(figure(batch))


def test_reward_weighs_ten_times_as_much_in_planet():
    agents = [make_planet(replace(PLANET, reward_scale=x), CONTINUOUS) for x in (1.0, 10.0)]
    one, ten = (loss(agent, play(CONTINUOUS, 0), "reward") for agent in agents)
    assert ten == pytest.approx(10 * one) and PlaNetConfig().reward_scale == 10


def test_free_nats_of_planet_are_free_for_each_state():
    """At the mean KL as the limit some states lie above it and some below: only these are raised.

    Nothing above the largest KL moves the model."""
    batch, base = play(CONTINUOUS, 0), replace(PLANET, overshooting=0)
    kl = loss(make_planet(replace(base, free_nats=0.0), CONTINUOUS), batch, "kl")
    clipped = loss(make_planet(replace(base, free_nats=kl), CONTINUOUS), batch, "kl")
    assert clipped > 1.02 * kl > 0
    assert loss(make_planet(replace(base, free_nats=1e3), CONTINUOUS), batch, "kl") == 1e3


@pytest.mark.parametrize(
    ("make", "config", "share"),
    [
        (make_dreamer_v1, V1, 0.5),
        (make_dreamer_v2, V2, 0.5),
        (make_planet, PLANET, 0.5),
        (make_dreamer_v3, V3, 1.0),
    ],
)
def test_what_is_seen_is_a_gaussian_of_variance_1(make, config, share):
    """Half the squared error, as of rewards; DreamerV3 takes the whole."""
    batch = play(CONTINUOUS, 0)
    far = np.full_like(batch.obs["place"], np.expm1(30.0))
    batch = batch.replace(obs={"place": far})
    got = loss(make(config, CONTINUOUS), batch, "vector")
    assert got == pytest.approx(share * 30.0**2, rel=0.15)  # an untrained network answers near 0
    thrice = loss(make(replace(config, error_scale=3 * share), CONTINUOUS), batch, "vector")
    assert thrice == pytest.approx(3 * got)


def test_rho_and_entropy_of_v2_follow_the_kind_of_action():
    v2 = replace(V2, entropy_scale=None)
    for spec, rho, eta in ((DISCRETE, 1.0, 1e-3), (CONTINUOUS, 0.0, 1e-4)):
        batch = play(spec, 0)

        def program(**changes):
            agent = make_dreamer_v2(replace(v2, **changes), spec)  # noqa: B023
            return str(jax.make_jaxpr(lambda b: agent.update(agent.init(KEY), b, KEY))(batch))  # noqa: B023

        own = program()
        assert own == program(reinforce=rho, entropy_scale=eta)
        assert own != program(reinforce=1 - rho, entropy_scale=eta)


def test_v2_may_learn_the_tanh_of_rewards():
    batch = play(DISCRETE, 0)
    batch = batch.replace(reward=5.0 * batch.reward)
    plain, agent = (
        make_dreamer_v2(replace(V2, reward_transform=kind), DISCRETE) for kind in ("none", "tanh")
    )
    got = loss(agent, batch, "reward")
    squashed = batch.replace(reward=np.tanh(batch.reward))
    assert got == pytest.approx(loss(plain, squashed, "reward"), rel=1e-4)
    assert got < 0.1 * loss(plain, batch, "reward")


def test_latent_overshooting_by_hand():
    """A world that doubles its mean each step; one step ahead is the ordinary KL, not counted."""

    class Doubling:
        def imagine(self, params, state, action, key):
            mean = 2.0 * state.mean
            return LatentState(state.deter, mean, mean, jnp.ones_like(mean))

    mean = jnp.array([1.0, 2.0, 3.0, 4.0, 5.0])[:, None, None]
    posterior = LatentState(mean, mean, mean, jnp.ones_like(mean))
    first = jnp.zeros((5, 1), bool)
    batch = Transition({}, jnp.zeros((5, 1, 1)), jnp.zeros((5, 1)), first, first)
    config = replace(PLANET, overshooting=3, free_nats=0.0)

    @partial(jax.jit, static_argnums=1)
    def kl(batch, config=config):
        return planet.overshoot(Doubling(), config, None, posterior, batch, KEY)

    # Starts 0 and 1: means 1, 2 become 4, 8 two steps and 8, 16 three steps ahead.
    pairs = [(3.0, 4.0), (4.0, 8.0), (4.0, 8.0), (5.0, 16.0)]
    ones = jnp.ones(1)
    by_hand = [gaussian.kl(jnp.array([p]), ones, jnp.array([q]), ones) for p, q in pairs]
    assert float(kl(batch)) == pytest.approx(float(np.mean(by_hand)), rel=1e-5)
    # An episode that begins at record 3 leaves one prediction: from record 0 to record 2.
    cut = batch.replace(is_first=first.at[3].set(True))
    assert float(kl(cut)) == pytest.approx(float(by_hand[0]), rel=1e-5)
    # Of KLs 0.5, 8, 8 and 60.5 a free nat for each leaves 1, 8, 8 and 60.5.
    free = np.mean([1.0, 8.0, 8.0, 60.5])
    assert float(kl(batch, replace(config, free_nats=1.0))) == pytest.approx(free, rel=1e-5)


def test_too_much_overshooting_is_refused():
    agent = make_planet(replace(PLANET, overshooting=8), CONTINUOUS)
    state = jax.eval_shape(agent.init, KEY)
    with pytest.raises(ValueError, match=r"agent\.overshooting=8"):
        jax.eval_shape(agent.update, state, play(CONTINUOUS, 0), KEY)
