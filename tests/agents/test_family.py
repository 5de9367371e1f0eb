"""DreamerV1, V2 and PlaNet: which loss moves what, their own rules, and that they learn."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from games import CONTINUOUS, DISCRETE, greedy, learn, paid, play, seen

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
    ("make", "config", "spec", "updates"),
    [
        (make_dreamer_v1, replace(V1, error_scale=20.0), CONTINUOUS, 800),
        (make_dreamer_v2, V2, DISCRETE, 1200),
        (make_dreamer_v2, replace(V2, reinforce=0.0), CONTINUOUS, 800),
        (
            make_dreamer_v3,
            replace(V3, bins=41, discount_horizon=5.0, lr=3e-3, warmup=0),
            DISCRETE,
            1200,
        ),
        (make_planet, PLANET, CONTINUOUS, 800),
    ],
    ids=["v1", "v2 reinforce", "v2 dynamics", "v3", "planet"],
)
def test_it_learns_to_act_by_what_it_sees(make, config, spec, updates):
    """Blind, it could make half of the rewards with discrete actions, none with continuous ones."""
    agent = make(config, spec)
    state, _ = learn(agent, spec, updates, KEY, seen)
    assert paid(agent, spec, state, KEY) > 0.7


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


def test_a_plan_is_scored_by_where_it_arrives(monkeypatch):
    """By hand: steps of 1, -1, 1 from 0 arrive at 0.5, 0 and 0.5, steps of 1 at 0.5, 1 and 1.5; a
    reward counts as far as the episodes went on after the states *before* its own."""

    class Fading(Line):
        def rewards(self, params, features):
            return 1.0 + features[..., 0]

        def continues(self, params, features):
            return 1.0 - 0.5 * features[..., 0]

    scores = []

    def look(score, key, start, iterations, number, top, low, high):
        scores.append(score(jnp.array([[1.0, -1.0, 1.0], [1.0, 1.0, 1.0]])[..., None]))
        return start

    monkeypatch.setattr(planet, "cem", look)
    config, one = PlaNetConfig(plan_horizon=3, candidates=2, top=1), jnp.zeros(1)
    state = LatentState(one, one[:0], one[:0], one[:0])
    planet.plan(Fading(0.0), config, Spec({}, 1), None, state, KEY)
    by_hand = [1.5 + 0.75 * 1.0 + 0.75 * 1.0 * 1.5, 1.5 + 0.75 * 2.0 + 0.75 * 0.5 * 2.5]
    np.testing.assert_allclose(scores[0], by_hand, rtol=1e-6)


@pytest.mark.parametrize("name", AGENTS)
def test_what_was_done_is_remembered_and_a_first_observation_forgets_it(name):
    make, config, spec = AGENTS[name]
    config = replace(config, iterations=1) if make is make_planet else config
    agent = make(config, spec)
    state = jax.jit(agent.init)(KEY)
    act = jax.jit(agent.act, static_argnames="mode")
    obs, later = {"place": jnp.ones((3, 1))}, jnp.zeros(3, bool)
    action, carry = act(state, agent.carry(3), obs, ~later, KEY, mode="train")
    np.testing.assert_array_equal(carry.action, action)
    other = carry._replace(action=jnp.roll(-carry.action, 1, axis=-1))
    deters = [act(state, c, obs, later, KEY, mode="eval")[1].state.deter for c in (carry, other)]
    assert np.all(np.abs(deters[0] - deters[1]).max(-1) > 0)
    again, after = act(state, carry, obs, jnp.array([True, False, True]), KEY, mode="eval")
    fresh, new = act(state, agent.carry(3), obs, ~later, KEY, mode="eval")
    for old, young in zip(
        jax.tree.leaves((again, after)), jax.tree.leaves((fresh, new)), strict=True
    ):
        np.testing.assert_allclose(old[::2], young[::2], atol=1e-6)
    assert np.any(after.state.deter[1] != new.state.deter[1])


def test_planet_explores_in_training_alone():
    """The same plans, with noise of the amount asked for, clipped; or so many random choices."""
    obs, first = {"place": jnp.zeros((400, 1))}, jnp.ones(400, bool)
    little = dict(iterations=1, candidates=8, top=8)  # eight random plans: means of about 0

    def actions(spec, amount):
        agent = make_planet(replace(PLANET, exploration=amount, **little), spec)
        act = jax.jit(agent.act, static_argnames="mode")
        state = jax.jit(agent.init)(KEY)
        return [act(state, agent.carry(400), obs, first, KEY, mode=m)[0] for m in ("eval", "train")]

    calm, wild = actions(CONTINUOUS, 0.2)
    assert np.std(wild - calm) == pytest.approx(0.2, rel=0.15)
    calm, wild = actions(CONTINUOUS, 2.0)
    assert np.abs(wild).max() == 1.0 > np.abs(calm).max()
    calm, wild = actions(DISCRETE, 0.6)
    changed = np.mean(np.any(wild != calm, axis=-1))
    assert changed == pytest.approx(0.6 * 2 / 3, abs=0.07)  # a third chooses the same


@pytest.mark.parametrize("make", [make_dreamer_v2, make_dreamer_v3])
def test_the_estimator_asked_for_draws_the_latents(make):
    """One-hot where it is straight through; of Gumbel-softmax soft, the softer the warmer."""
    config = V2 if make is make_dreamer_v2 else V3
    softest = {}
    for estimator, temperature in (
        ("straight_through", 1.0), ("gumbel_softmax", 0.1), ("gumbel_softmax", 3.0)
    ):  # fmt: skip
        chosen = replace(config, estimator=estimator, temperature=temperature)
        agent = make(chosen, CONTINUOUS)
        obs, first = {"place": jnp.zeros((20, 1))}, jnp.ones(20, bool)
        _, after = jax.jit(agent.act, static_argnames="mode")(
            jax.jit(agent.init)(KEY), agent.carry(20), obs, first, KEY, mode="train"
        )
        softest[estimator, temperature] = float(after.state.stoch.reshape(20, 4, 4).max(-1).min())
    assert softest["straight_through", 1.0] == 1.0
    assert softest["gumbel_softmax", 3.0] < min(0.5, softest["gumbel_softmax", 0.1])


def test_the_estimator_of_v2_is_the_one_asked_for_in_learning_too():
    batch = play(CONTINUOUS, 0)

    def program(**changes):
        agent = make_dreamer_v2(replace(V2, **changes), CONTINUOUS)
        return str(jax.make_jaxpr(lambda b: agent.update(agent.init(KEY), b, KEY))(batch))

    programs = [program(estimator=x) for x in ("straight_through", "gumbel_softmax")]
    assert programs[0] != programs[1] != program(estimator="gumbel_softmax", temperature=0.5)


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
    norms = []
    for scale in (1.0, 100.0):  # were any of it to move the model, it would move it more
        agent = make_planet(replace(base, free_nats=1e3, kl_scale=scale), CONTINUOUS)
        figures = jax.jit(lambda b: agent.update(agent.init(KEY), b, KEY)[1])(batch)  # noqa: B023
        norms.append(float(figures["grad_norm/model"]))
    assert norms[0] == norms[1] > 0


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

    # Two steps ahead means 1, 2, 3 become 4, 8, 12, three steps ahead 1, 2 become 8, 16.
    pairs = [(3.0, 4.0), (4.0, 8.0), (5.0, 12.0), (4.0, 8.0), (5.0, 16.0)]
    ones = jnp.ones(1)
    by_hand = [gaussian.kl(jnp.array([p]), ones, jnp.array([q]), ones) for p, q in pairs]
    assert float(kl(batch)) == pytest.approx(float(np.mean(by_hand)), rel=1e-5)
    # An episode that begins at record 3 leaves one prediction: from record 0 to record 2.
    cut = batch.replace(is_first=first.at[3].set(True))
    assert float(kl(cut)) == pytest.approx(float(by_hand[0]), rel=1e-5)
    # Of KLs 0.5, 8, 24.5, 8 and 60.5 a free nat for each leaves 1, 8, 24.5, 8 and 60.5.
    free = np.mean([1.0, 8.0, 24.5, 8.0, 60.5])
    assert float(kl(batch, replace(config, free_nats=1.0))) == pytest.approx(free, rel=1e-5)


@pytest.mark.parametrize("depth", [2, 4, 5])
def test_latent_overshooting_goes_by_the_actions_that_led_there(depth):
    """Against loops over starts and distances, in a world of mean <- 2 mean + action."""

    class Moved:
        def imagine(self, params, state, action, key):
            mean = 2.0 * state.mean + action
            return state.replace(mean=mean)

    length = 6
    mean, actions = jax.random.normal(KEY, (2, length, 3, 1))
    posterior = LatentState(mean, mean, mean, jnp.ones_like(mean))
    first = jnp.zeros((length, 3), bool).at[4, 1].set(True)
    batch = Transition({}, actions, jnp.zeros((length, 3)), first, first)
    config = replace(PLANET, overshooting=depth, free_nats=0.0)
    got = jax.jit(lambda b: planet.overshoot(Moved(), config, None, posterior, b, KEY))(batch)
    kls = []
    for start in range(length):
        for episode in range(3):
            reached = mean[start, episode, 0]
            for t in range(start + 1, min(length, start + depth + 1)):
                if first[t, episode]:
                    break
                reached = 2.0 * reached + actions[t, episode, 0]
                if t > start + 1:  # of Normals of variance 1
                    kls.append(0.5 * (mean[t, episode, 0] - reached) ** 2)
    assert float(got) == pytest.approx(float(np.mean(kls)), rel=1e-5)


def test_too_much_overshooting_is_refused():
    agent = make_planet(replace(PLANET, overshooting=8), CONTINUOUS)
    state = jax.eval_shape(agent.init, KEY)
    with pytest.raises(ValueError, match=r"agent\.overshooting=8"):
        jax.eval_shape(agent.update, state, play(CONTINUOUS, 0), KEY)
