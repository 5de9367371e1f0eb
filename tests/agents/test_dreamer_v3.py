"""DreamerV3: which loss moves what, its replay value by hand, and that it learns a small game."""

from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from games import CONTINUOUS, DISCRETE, greedy, learn, paid, play, seen

from dreamer_jax.agents.acting import last_states
from dreamer_jax.agents.annealing import with_annealed_temperature
from dreamer_jax.agents.dreamer_v3 import Imagined, View, make_dreamer_v3
from dreamer_jax.agents.dreamer_v3_config import SIZES, DreamerV3Config, first_form, sized
from dreamer_jax.agents.dreamer_v3_dynamics import DynamicsView, make_by_gradient
from dreamer_jax.agents.dreamer_v3_parts import init_state, make_optimiser, make_parts
from dreamer_jax.nn.blocks import NormSiLU, RMSNormSiLU
from dreamer_jax.nn.precision import computing_in
from dreamer_jax.ops.optimisers import dreamer_v3_optimiser
from dreamer_jax.types import Spec, Transition

KEY = jax.random.key(5)
CONFIG = DreamerV3Config(
    deter=16, blocks=2, latents=4, classes=4, hidden=16, units=16, layers=1, horizon=4, last=4,
    bins=41, discount_horizon=5.0, lr=3e-3, warmup=0,
)  # fmt: skip


@pytest.fixture(scope="module")
def made():
    """View, state and batch; the zero-initialised heads are filled so that gradients can flow."""
    parts = make_parts(CONFIG, DISCRETE)
    optimiser = dreamer_v3_optimiser()
    state = jax.jit(lambda key: init_state(parts, DISCRETE, key, optimiser))(KEY)
    noisy = jax.tree.map(
        lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), state.params
    )
    return View(parts, CONFIG), state.replace(params=noisy), play(DISCRETE, 0)


@pytest.fixture(scope="module")
def gradients(made):
    """Of each loss, by part of the model and by the slow copy."""
    view, state, batch = made

    def losses(params, slow):
        _, (*_, metrics) = view.loss(params, slow, state.returns, batch, KEY)
        names = ("actor", "value", "replay_value", "reward", "dynamics", "representation")
        return {n: metrics[f"loss/{n}"] for n in names}

    by = jax.jit(jax.jacrev(losses, argnums=(0, 1)))(state.params, state.slow)
    return {name: params | {"slow": slow} for name, (params, slow) in by.items()}


@pytest.mark.parametrize(
    ("loss", "parts"),
    [
        ("actor", {"actor"}),
        ("value", {"value"}),
        ("replay_value", {"value", "encoder", "dynamics"}),
        ("reward", {"reward", "encoder", "dynamics"}),
        ("dynamics", {"dynamics", "encoder"}),
        ("representation", {"dynamics", "encoder"}),
    ],
)
def test_a_loss_moves_these_parts_and_no_others(gradients, loss, parts):
    moved = {p for p, tree in gradients[loss].items() if any(map(np.any, jax.tree.leaves(tree)))}
    assert moved == parts


def test_the_loss_is_the_sum_of_its_terms(made):
    view, state, batch = made
    total, (*_, metrics) = jax.jit(view.loss)(state.params, state.slow, state.returns, batch, KEY)
    terms = [v for k, v in metrics.items() if k.startswith("loss/") and k != "loss/total"]
    assert float(total) == pytest.approx(float(sum(terms)), rel=1e-5)


def test_replayed_returns_stop_at_the_end_of_an_episode(made):
    """Two episodes in one window; gamma 0.8, lambda 0.95, worked out by hand."""
    view, state, _ = made
    reward = jnp.array([0.0, 1.0, 2.0, 0.0, 3.0])[:, None]
    first = jnp.array([False, False, False, True, False])[:, None]
    terminal = jnp.array([False, False, True, False, False])[:, None]
    boot = jnp.array([9.0, 10.0, 50.0, 20.0, 30.0])[:, None]
    seen = {}

    class Watched(View):
        def value_loss(self, params, slow, features, returns):
            seen["returns"] = returns
            return jnp.zeros_like(returns)

    batch = Transition({}, None, reward, first, terminal)
    posterior = type("P", (), {"features": jnp.zeros((5, 1, 2))})
    Watched(view.parts, replace(CONFIG, last=5)).replay_value_loss(
        state.params, state.slow, posterior, batch, boot[:, 0]
    )
    gamma, lam = 0.8, 0.95
    second = 2.0  # arrives at a terminal state: no future, whatever was imagined there
    firstly = 1.0 + gamma * ((1 - lam) * 10.0 + lam * second)
    fourth = 3.0 + gamma * 30.0
    np.testing.assert_allclose(seen["returns"][jnp.array([0, 1, 3]), 0], [firstly, second, fourth])


def test_a_truncated_episode_bootstraps_from_its_last_state(made):
    view, state, _ = made
    seen = {}

    class Watched(View):
        def value_loss(self, params, slow, features, returns):
            seen["returns"] = returns
            return jnp.ones_like(returns)

    reward = jnp.array([0.0, 1.0, 0.0, 0.0])[:, None]
    first = jnp.array([True, False, True, False])[:, None]
    batch = Transition({}, None, reward, first, jnp.zeros_like(first))
    posterior = type("P", (), {"features": jnp.zeros((4, 1, 2))})
    loss = Watched(view.parts, CONFIG).replay_value_loss(
        state.params, state.slow, posterior, batch, jnp.array([1.0, 10.0, 1000.0, 0.0])
    )
    assert float(seen["returns"][0, 0]) == pytest.approx(1.0 + 0.8 * 10.0)
    # The step from one episode to the next teaches nothing: two of three entries count.
    assert float(loss["loss/replay_value"]) == pytest.approx(0.3 * 2 / 3)


def test_replayed_returns_are_those_of_the_last_records(made):
    """Five records of two sequences, the last three count; gamma 0.8, lambda 1/2.

    Left, an episode has ended at record 1, before all that counts; right, a time limit cuts one
    off behind record 3. Record 2 goes on to record 3, with its reward and what was imagined there,
    record 3 to record 4, where all is bootstrapped."""
    view, state, _ = made
    reward = jnp.array([[91.0, 92.0], [93.0, 94.0], [95.0, 96.0], [1.0, 3.0], [2.0, 0.0]])
    first = jnp.zeros((5, 2), bool).at[2, 0].set(True).at[4, 1].set(True)
    terminal = jnp.zeros((5, 2), bool).at[1, 0].set(True)
    imagined = jnp.array([97.0, 98.0, 10.0, 30.0, 20.0, 40.0])  # of records 2, 3, 4, time first
    seen = {}

    class Watched(View):
        def value_loss(self, params, slow, features, returns):
            seen["features"], seen["returns"] = features, returns
            return jnp.array([[1.0, 2.0], [4.0, 8.0]])

    batch = Transition({}, None, reward, first, terminal)
    posterior = SimpleNamespace(features=jnp.arange(10.0).reshape(5, 2, 1))
    config = replace(CONFIG, last=3, lambda_=0.5)
    loss = Watched(view.parts, config).replay_value_loss(
        state.params, state.slow, posterior, batch, imagined
    )
    np.testing.assert_array_equal(seen["features"][..., 0], [[4.0, 5.0], [6.0, 7.0]])
    left = 2.0 + 0.8 * 20.0
    want = [[1.0 + 0.8 * (0.5 * 10.0 + 0.5 * left), 3.0 + 0.8 * 30.0], [left, 0.0 + 0.8 * 40.0]]
    np.testing.assert_allclose(seen["returns"], want, rtol=1e-6)
    # The step from one episode to the next, of error 8, teaches nothing.
    assert float(loss["loss/replay_value"]) == pytest.approx(0.3 * (1 + 2 + 4) / 4)


@pytest.mark.parametrize(
    ("spec", "least", "products"),
    [(DISCRETE, 2.5, "float32"), (CONTINUOUS, 1.5, "float32"), (CONTINUOUS, 1.5, "bfloat16")],
)
def test_it_learns_which_action_is_rewarded(spec, least, products):
    """A wrong sign drives the policy the other way, a missing stop-gradient moves the model."""
    agent = make_dreamer_v3(CONFIG, spec)
    with computing_in(products):
        state, metrics = learn(agent, spec, 300, KEY)
    assert metrics["loss/reward"][-10:].mean() < 0.5 * metrics["loss/reward"][:10].mean()
    assert np.mean(greedy(agent, spec, state, KEY)[:, -1]) > 0.8
    # gamma is 0.8 and the best reward 1 a step, chance gives 1/3 or 0: returns rise towards 5.
    assert least < metrics["imagined/return"][-10:].mean() < 5.5
    assert np.all(np.isfinite(metrics["loss/total"]))


@pytest.mark.parametrize("name", ["gumbel_softmax", "straight_through_gumbel"])
def test_the_other_estimators_train_too(name):
    """Posterior samples are on the simplex, one-hot or not, and the loss falls."""
    config = replace(CONFIG, estimator=name, temperature=0.7)
    agent = make_dreamer_v3(config, DISCRETE)
    state, metrics = learn(agent, DISCRETE, 60, KEY)
    assert metrics["loss/total"][-5:].mean() < metrics["loss/total"][:5].mean()
    world = make_parts(config, DISCRETE).world
    posterior, _ = jax.jit(world.observe)(state.params, play(DISCRETE, 3), KEY)
    stoch = posterior.stoch.reshape(posterior.logits.shape)
    np.testing.assert_allclose(stoch.sum(-1), 1.0, rtol=1e-5)
    assert (np.max(stoch, -1).min() < 0.9) == (name == "gumbel_softmax")


def test_zero_heads_say_zero_at_first():
    """Reward and value of a fresh agent are exactly 0, so that they cannot mislead it."""
    agent = make_dreamer_v3(CONFIG, CONTINUOUS)
    state = jax.jit(agent.init)(KEY)
    arrays = jax.jit(agent.report)(state, play(CONTINUOUS, 1), KEY)
    assert not np.any(arrays["value"]) and not np.any(arrays["reward_prediction"])
    assert "truth" not in arrays  # no pictures, none to look at


def test_act_resets_where_an_episode_begins():
    agent = make_dreamer_v3(CONFIG, DISCRETE)
    state = jax.jit(agent.init)(KEY)
    act = jax.jit(agent.act, static_argnames="mode")
    obs = {"place": jnp.ones((2, 1))}
    fresh = agent.carry(2)
    worn = jax.tree.map(lambda x: x + 3.0, fresh)
    first = jnp.array([True, False])
    action, after = act(state, worn, obs, first, KEY, mode="eval")
    _, expected = act(state, fresh, obs, jnp.ones(2, bool), KEY, mode="eval")
    np.testing.assert_allclose(after.state.deter[0], expected.state.deter[0], rtol=1e-5)
    assert np.any(after.state.deter[1] != expected.state.deter[1])
    assert np.array_equal(action.sum(-1), [1, 1]) and set(np.unique(action)) == {0.0, 1.0}


@pytest.mark.parametrize("least", [0.1, 0.02])
def test_calm_is_the_most_probable_action_in_a_sampled_latent(least):
    config = replace(CONFIG, actor_min_std=least)
    agent, parts = make_dreamer_v3(config, CONTINUOUS), make_parts(config, CONTINUOUS)
    state = jax.jit(agent.init)(KEY)
    act = jax.jit(agent.act, static_argnames="mode")
    inputs = (state, agent.carry(300), {"place": jnp.zeros((300, 1))}, jnp.ones(300, bool))
    calm, after = act(*inputs, KEY, mode="calm")
    raw = parts.actor.apply(state.params["actor"], after.state.features)
    np.testing.assert_allclose(calm, parts.policy.mode(raw), atol=1e-6)
    assert len(np.unique(after.state.stoch, axis=0)) > 1
    wild, same = act(*inputs, KEY, mode="eval")
    assert np.array_equal(same.state.stoch, after.state.stoch) and np.std(wild - calm) > 0.2
    narrow = raw.at[:, CONTINUOUS.action :].set(-50.0)
    assert np.std(parts.policy.sample(narrow, KEY) - calm) == pytest.approx(least, rel=0.1)


def test_soft_samples_are_stored_whole():
    """A window that begins after acting goes on from the sample, not from its largest class."""
    config = replace(CONFIG, estimator="gumbel_softmax")
    agent, storage = make_dreamer_v3(config, DISCRETE), make_parts(config, DISCRETE).storage
    state = jax.jit(agent.init)(KEY)
    obs, first = {"place": jnp.ones((9, 1))}, jnp.ones(9, bool)
    act = jax.jit(agent.act, static_argnames="mode")
    _, carry = act(state, agent.carry(9), obs, first, KEY, mode="train")
    assert float(carry.state.stoch.max()) < 0.99
    back = storage.unpack(agent.context(carry))
    np.testing.assert_allclose(back.features, carry.state.features, atol=1e-3)
    _, _, context = jax.jit(agent.update)(state, play(DISCRETE, 0), KEY)
    stoch = storage.unpack(context).stoch
    assert float(jnp.abs(stoch - jnp.round(stoch)).max()) > 0.01


def test_an_update_moves_the_slow_value_and_the_range_of_returns(made):
    view, state, batch = made
    config = replace(CONFIG, slow_rate=0.25, range_rate=0.5)
    agent, opt = make_dreamer_v3(config, DISCRETE), make_optimiser(config).init(state.params)
    new, *_ = jax.jit(agent.update)(state.replace(opt=opt), batch, KEY)
    want = jax.tree.map(lambda a, b: a + 0.25 * (b - a), state.slow, new.params["value"])
    for old, moved, slow in zip(*map(jax.tree.leaves, (state.slow, want, new.slow)), strict=True):
        np.testing.assert_allclose(slow, moved, atol=1e-6)
        assert np.abs(slow - old).max() > 1e-3
    posterior, _ = view.observe(state.params, batch, KEY)
    starts = last_states(posterior, config.last)
    *_, imagined = jax.jit(view.imagine)(state.params, starts, batch, KEY)
    low, high = np.percentile(imagined.returns, [5, 95])
    np.testing.assert_allclose(new.returns, [low / 2, high / 2, 0.5], rtol=1e-3)


def test_networks_of_the_final_form():
    """What its docstring says of norm, head and mixture reaches the modules."""
    parts = make_parts(DreamerV3Config(), DISCRETE)
    rssm = parts.world.dynamics.module
    assert rssm.norm is RMSNormSiLU and parts.actor.norm is RMSNormSiLU
    assert parts.value.norm is RMSNormSiLU and parts.world.reward.norm is RMSNormSiLU
    assert parts.head.outputs == parts.value.out == parts.world.reward.out == 255
    assert (rssm.latents, rssm.classes, rssm.blocks) == (32, 16, 8)
    small = make_parts(CONFIG, DISCRETE)
    rssm = small.world.dynamics.module
    sure = jnp.array([1e3, 0.0, 0.0])
    one = jax.nn.one_hot(1, 3)
    assert float(jnp.exp(small.policy.log_prob(sure, one))) == pytest.approx(0.01 / 3, rel=1e-3)
    params = rssm.init(KEY, jnp.ones((1, 16)), jnp.ones((1, 3)))
    loud = jax.tree.map(lambda x: 1e3 * x, params)
    logits = rssm.apply(loud, jnp.ones((5, 16)), method=rssm.prior)
    np.testing.assert_allclose(jnp.exp(logits).min(), 0.01 / 4, rtol=1e-2)
    plain = make_parts(replace(CONFIG, norm="layer", unimix=0.0, numbers="gaussian"), DISCRETE)
    assert plain.world.dynamics.module.norm is NormSiLU and plain.head.outputs == 1


def test_published_sizes():
    """The widths of table B.1; the final form's networks of these widths, 64 x 64 pixels and six
    actions, in millions of weights."""
    spec = Spec({"image": ((64, 64, 3), "uint8")}, 6, True)
    assert SIZES == {
        "xs": (256, 256, 24, 1),
        "s": (512, 512, 32, 2),
        "m": (1024, 640, 48, 3),
        "l": (2048, 768, 64, 4),
        "xl": (4096, 1024, 96, 5),
    }
    weights = {}
    for name in SIZES:
        shapes = jax.eval_shape(make_dreamer_v3(sized(name), spec).init, KEY).params
        weights[name] = round(sum(x.size for x in jax.tree.leaves(shapes)) / 1e6, 1)
    assert weights == {"xs": 8.2, "s": 17.3, "m": 33.7, "l": 64.9, "xl": 155.6}


def test_the_form_of_2023():
    """An Adam for each group, at its own step size; LayerNorm with a bias in every layer."""
    config = replace(first_form(CONFIG), lr=1e-2, behaviour_lr=3e-3)
    parts, optimiser = make_parts(config, DISCRETE), make_optimiser(config)
    state = jax.jit(lambda key: init_state(parts, DISCRETE, key, optimiser))(KEY)
    ones = jax.tree.map(jnp.ones_like, state.params)
    updates, _ = jax.jit(optimiser.update)(ones, state.opt, state.params)
    steps = {name: jax.tree.leaves(updates[name])[0].ravel()[0] for name in updates}
    # The first step of Adam is the step size, whatever the clip has left of the gradient.
    want = {name: 3e-3 if name in ("actor", "value") else 1e-2 for name in updates}
    assert {n: -float(s) for n, s in steps.items()} == pytest.approx(want, rel=1e-2)
    norms = state.params["dynamics"]["params"]["cell"]["NormSiLU_0"]["LayerNorm_0"]
    assert set(norms) == {"scale", "bias"}
    assert (config.blocks, config.replay_value_scale, config.stored_latents) == (1, 0.0, False)
    deep = first_form(replace(CONFIG, layers=3))
    assert make_parts(deep, DISCRETE).world.reward.layers == 4 and deep.numbers == "symlog_two_hot"
    agent = make_dreamer_v3(config, DISCRETE)
    state, metrics = learn(agent, DISCRETE, 400, KEY)
    assert np.mean(greedy(agent, DISCRETE, state, KEY)[:, -1]) > 0.8
    assert np.all(np.isfinite(metrics["loss/total"]))


def test_the_actor_may_be_led_through_the_dynamics():
    """Its loss moves the actor alone; not at all where nothing that is predicted, or nothing of
    the action, comes through."""
    config = replace(CONFIG, actor_gradient="dynamics", horizon=2, entropy_scale=0.0)
    parts, batch = make_parts(config, CONTINUOUS), play(CONTINUOUS, 0)
    state = init_state(parts, CONTINUOUS, KEY, make_optimiser(config))
    loud = jax.tree.map(
        lambda x: x + 0.3 * jax.random.normal(jax.random.key(x.size), x.shape), state.params
    )

    def largest(view):
        def loss(params):
            _, (*_, metrics) = view.loss(params, state.slow, state.returns, batch, KEY)
            return metrics["loss/actor"]

        gradient = jax.jit(jax.grad(loss))
        return lambda params: {
            name: max(float(jnp.abs(x).max()) for x in jax.tree.leaves(tree))
            for name, tree in gradient(params).items()
        }

    led, reinforced = largest(DynamicsView(parts, config)), largest(View(parts, config))
    moved = led(loud)
    assert moved.pop("actor") > 1e-4 and not any(moved.values())
    mute = {name: jax.tree.map(jnp.zeros_like, loud[name]) for name in ("reward", "value", "cont")}
    assert led(loud | mute)["actor"] == 0.0
    cell = loud["dynamics"]["params"]
    blank = jax.tree.map(jnp.zeros_like, cell["inputs_2"])  # the layer of the action
    deaf = loud | {"dynamics": {"params": cell | {"inputs_2": blank}}}
    assert led(deaf)["actor"] == 0.0 and reinforced(deaf)["actor"] > 1e-4


def test_the_gradient_through_the_dynamics_is_that_of_small_steps():
    """One step ahead, in soft latents, of actions within their bounds: where nothing is cut."""
    config = replace(
        CONFIG, actor_gradient="dynamics", estimator="gumbel_softmax", horizon=1, numbers="gaussian"
    )
    parts, batch = make_parts(config, CONTINUOUS), play(CONTINUOUS, 0)
    wide = parts.policy
    narrow = wide._replace(sample=lambda raw, key: 0.2 * wide.sample(raw, key))
    view = DynamicsView(parts._replace(policy=narrow), config)
    state = init_state(parts, CONTINUOUS, KEY, make_optimiser(config))
    loud = jax.tree.map(
        lambda x: x + 0.3 * jax.random.normal(jax.random.key(x.size), x.shape), state.params
    )
    starts = last_states(view.observe(loud, batch, KEY)[0], config.last)
    first, *others = jax.tree.leaves(loud["actor"])
    structure = jax.tree.structure(loud["actor"])
    along = jax.random.normal(KEY, first.shape)

    @jax.jit
    def loss(step):
        actor = jax.tree.unflatten(structure, [first + step * along, *others])
        moved = loud | {"actor": actor}
        features, actions, value, imagined = view.imagine(moved, starts, batch, KEY)
        losses = view.behaviour_losses(
            moved, state.slow, state.returns, features, actions, value, imagined
        )
        return losses["loss/actor"]

    slope, steps = float(jax.grad(loss)(0.0)), [float(loss(h)) for h in (-1e-2, 1e-2)]
    assert abs(slope) > 1e-3
    assert slope == pytest.approx((steps[1] - steps[0]) / 2e-2, rel=0.02)


def test_led_through_the_dynamics_it_learns_from_what_it_sees():
    """Half the episodes ask for the opposite action: 0.0 without sight, and below it with a wrong
    sign. Discrete actions are learnt by REINFORCE whatever the setting says."""
    config = replace(first_form(CONFIG), lr=1e-2, behaviour_lr=3e-3)
    agent = make_by_gradient(config, CONTINUOUS)
    state, metrics = learn(agent, CONTINUOUS, 800, KEY, seen)
    assert paid(agent, CONTINUOUS, state, KEY) > 0.7
    assert np.all(np.isfinite(metrics["loss/total"]))
    batch, state = play(DISCRETE, 0), jax.jit(make_dreamer_v3(config, DISCRETE).init)(KEY)
    same = [
        jax.jit(make(config, DISCRETE).update)(state, batch, KEY)[1]["loss/actor"]
        for make in (make_by_gradient, make_dreamer_v3)
    ]
    assert same[0] == same[1]


def test_the_step_sizes_of_adam_may_fall_too():
    """By hand: on equal gradients Adam steps by its step size."""
    config = replace(first_form(CONFIG), lr=1e-2, behaviour_lr=3e-3, lr_anneal=4)
    optimiser, ones = make_optimiser(config), {n: jnp.ones(3) for n in ("actor", "encoder")}
    opt, steps = optimiser.init(ones), []
    for _ in range(6):
        moved, opt = optimiser.update(ones, opt, ones)
        steps.append([-float(moved["actor"][0]), -float(moved["encoder"][0])])
    share = np.maximum(1 - 0.9 * np.arange(6) / 4, 0.1)
    np.testing.assert_allclose(steps, share[:, None] * [3e-3, 1e-2], rtol=1e-3)


def test_the_temperature_of_latents_falls_with_the_updates():
    config = replace(CONFIG, estimator="gumbel_softmax", temperature=2.0, final_temperature=0.25)
    agent = with_annealed_temperature(make_dreamer_v3, replace(config, anneal_updates=10), DISCRETE)
    batch, state = play(DISCRETE, 0), jax.jit(agent.init)(KEY)
    update = jax.jit(agent.update)
    for step, temperature in ((0, 2.0), (10, 0.25), (99, 0.25)):
        still = make_dreamer_v3(replace(config, temperature=temperature), DISCRETE)
        at = state.replace(step=jnp.int32(step))
        want, got = jax.jit(still.update)(at, batch, KEY)[1], update(at, batch, KEY)[1]
        assert float(got["loss/total"]) == pytest.approx(float(want["loss/total"]), rel=1e-4)
    early, late = (update(state.replace(step=jnp.int32(n)), batch, KEY)[1] for n in (0, 10))
    assert float(early["loss/total"]) != pytest.approx(float(late["loss/total"]), rel=1e-3)
    assert with_annealed_temperature(make_dreamer_v3, config, DISCRETE).context is not None


def test_the_slow_value_is_one_more_target(made):
    view, state, _ = made
    features = jax.random.normal(KEY, (3, view.parts.world.dynamics.size))

    def loss(scale, returns):
        scaled = View(view.parts, replace(CONFIG, slow_scale=scale))
        return scaled.value_loss(state.params, slow, features, returns)

    slow = jax.tree.map(lambda x: x + 0.3, state.params["value"])
    calm = view.parts.head.mean(view.parts.value.apply(slow, features))
    pull = loss(1.0, jnp.zeros(3)) - loss(0.0, jnp.zeros(3))
    np.testing.assert_allclose(pull, loss(0.0, calm), rtol=1e-4)


def test_a_policy_in_saturation_is_led_back_only_where_asked(made):
    """No action is better than another here: nothing else moves means, and by tanh hardly could."""
    parts = make_parts(CONFIG, CONTINUOUS)
    actor = SimpleNamespace(apply=lambda raw, features: jnp.tile(raw, (*features.shape[:-1], 1)))
    size = 2 * CONTINUOUS.action
    raw = jnp.zeros(size).at[0].set(5.0)
    features, actions = jnp.zeros((4, 6, 3)), jnp.zeros((3, 6, CONTINUOUS.action))
    weights = jnp.full((3, 6), 0.5)
    still = Imagined(jnp.zeros((4, 6)), jnp.zeros((3, 6)), weights, None, None)

    def slope(scale):
        config = replace(CONFIG, excess_scale=scale, entropy_scale=0.0)
        view = View(parts._replace(actor=actor), config)
        view = type("Calm", (View,), {"value_errors": lambda *_: jnp.zeros((3, 6))})(*view)
        loss = lambda raw: view.behaviour_losses(  # noqa: E731
            {"actor": raw}, None, made[1].returns, features, actions, jnp.zeros((4, 6)), still
        )["loss/actor"]
        return jax.grad(loss)(raw)

    np.testing.assert_array_equal(slope(0.0), jnp.zeros(size))
    np.testing.assert_allclose(slope(0.1), jnp.zeros(size).at[0].set(0.1 * 0.5 * 2 * 3), rtol=1e-6)


# ---------------------------------------------------------------- latents in the replay


@pytest.fixture(scope="module")
def acted(made):
    """Agent, state, an episode's batch [T, N] with what acting left, and acting's states [T]."""
    _, state, batch = made
    agent, act = make_dreamer_v3(CONFIG, DISCRETE), []
    step = jax.jit(lambda *args: agent.act(state, *args, mode="eval"))
    carry, contexts = agent.carry(6), []
    for t in range(len(batch.reward)):
        contexts.append(agent.context(carry))
        carry = carry._replace(action=batch.prev_action[t])
        obs = {name: x[t] for name, x in batch.obs.items()}
        _, carry = step(carry, obs, batch.is_first[t], KEY)
        act.append(carry.state)
    stack = lambda trees: jax.tree.map(lambda *x: jnp.stack(x), *trees)  # noqa: E731
    return agent, state, batch.replace(context=stack(contexts)), stack(act)


def test_a_window_that_begins_in_an_episode_goes_on_from_what_acting_knew(made, acted):
    """The deterministic state depends on what lies before the window only through the context."""
    view, state, _ = made
    _, _, batch, states = acted
    window = jax.tree.map(lambda x: x[4:], batch)
    known, _ = jax.jit(view.observe)(state.params, window, KEY)
    np.testing.assert_allclose(known.deter[0], states.deter[4], atol=2e-3)  # float16
    np.testing.assert_allclose(known.logits[0], states.logits[4], atol=1e-2)
    blank, _ = jax.jit(view.observe)(state.params, window.replace(context=None), KEY)
    assert np.abs(blank.deter[0] - states.deter[4]).max() > 0.05


def test_a_window_that_begins_an_episode_ignores_its_context(made, acted):
    view, state, _ = made
    batch = acted[2]
    other = jax.tree.map(jnp.ones_like, batch.context)
    observe = jax.jit(view.observe)
    want, _ = observe(state.params, batch, KEY)
    got, _ = observe(state.params, batch.replace(context=other), KEY)
    jax.tree.map(np.testing.assert_array_equal, want, got)


def test_an_update_returns_the_states_before_each_later_record(made, acted):
    view, _, _ = made
    agent, state, batch, _ = acted
    _, _, context = jax.jit(agent.update)(state, batch, KEY)
    posterior, _ = jax.jit(view.observe)(state.params, batch, KEY)
    before = view.parts.storage.unpack(context)
    np.testing.assert_allclose(before.deter, posterior.deter[:-1], atol=1e-3)
    np.testing.assert_allclose(before.stoch, posterior.stoch[:-1], atol=1e-6)


def test_latents_are_stored_only_where_asked(acted):
    plain = make_dreamer_v3(replace(CONFIG, stored_latents=False), DISCRETE)
    assert plain.context is None and acted[0].context is not None
    assert not first_form(CONFIG).stored_latents
