"""What an update moves, what it does not, and that it learns; on a network of a few neurons."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_world import Line
from tiny import AGENT, BATCH, CONFIG, LENGTH, SPEC, paint, play, update

from dreamer_jax.agents import dlc_v1
from dreamer_jax.agents.dlc_v1 import Dream, make_dlc_v1, update_actor
from dreamer_jax.agents.dlc_v1_config import DLCConfig
from dreamer_jax.agents.dlc_v1_parts import make_optimisers, make_parts
from dreamer_jax.agents.pictures import CONTEXT
from dreamer_jax.nn.conv import fold
from dreamer_jax.ops.optimisers import ema
from dreamer_jax.ops.transforms import symlog
from dreamer_jax.types import LatentState, Spec
from dreamer_jax.world_models.rssm import initial_state, observe

KEY = jax.random.key(7)
# All that can change without another compilation; the defaults are those of the settings.
KNOBS = ["model_lr", "actor_lr", "critic_lr", "entropy_scale"]
KNOBS += ["target_rate", "gamma", "actor_warmup"]
act = jax.jit(AGENT.act, static_argnames="mode")
report = jax.jit(AGENT.report)


def step(state, batch, key=KEY, **changes):
    return update(state, batch, key, {name: getattr(CONFIG, name) for name in KNOBS} | changes)


@pytest.fixture(scope="module")
def fresh():
    return jax.jit(AGENT.init)(jax.random.key(0))


@pytest.fixture(scope="module")
def batch():
    return play(0)


def changed(one, other):
    """Whether any leaf differs."""
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return any(not np.array_equal(a, b) for a, b in pairs)


def with_last_layer(params, kernel=0.0, bias=0.0):
    """A head whose last layer is constant."""
    last = max(name for name in params["params"] if name.startswith("Linear"))
    layer = {
        "kernel": jnp.full_like(params["params"][last]["kernel"], kernel),
        "bias": jnp.full_like(params["params"][last]["bias"], bias),
    }
    return {"params": params["params"] | {last: layer}}


# ---------------------------------------------------------------- what moves


def test_model_and_critic_move_always_and_the_actor_every_second_time(fresh, batch):
    state = fresh
    for number in range(4):
        new, metrics = step(state, batch)
        assert int(new.step) == number + 1
        for part in ("encoder", "rssm", "decoder", "reward", "cont"):
            assert changed(new.model[part], state.model[part])
        assert changed(new.critic, state.critic)
        assert changed(new.actor, state.actor) == (number % 2 == 1)
        assert changed(new.actor_opt, state.actor_opt) == (number % 2 == 1)
        assert np.isfinite(metrics["grad_norm/actor"]) == (number % 2 == 1)
        state = new


def test_the_step_sizes_fall_to_a_tenth():
    """By hand: on equal gradients Adam steps by its step size; every second is the actor's."""
    optimisers = make_optimisers(DLCConfig(lr_anneal=8))
    for part, peak, updates in (("model", 6e-4, 8), ("critic", 6e-4, 8), ("actor", 1e-4, 4)):
        adam, one = getattr(optimisers, part), jnp.ones(3)
        opt, sizes = adam.init(one), []
        for _ in range(updates + 2):
            moved, opt = adam.update(one, opt, one)
            sizes.append(-float(moved[0]))
        want = peak * np.maximum(1 - 0.9 * np.arange(updates + 2) / updates, 0.1)
        np.testing.assert_allclose(sizes, want, rtol=1e-3)


def test_the_actor_waits_for_the_model(fresh, batch):
    for number, moves in ((1, False), (3, False), (4, False), (5, True)):
        state = fresh.replace(step=jnp.int32(number))
        assert changed(step(state, batch, actor_warmup=4)[0].actor, fresh.actor) == moves


def test_the_target_is_the_moving_average_and_nothing_else(fresh, batch):
    assert not changed(fresh.target, fresh.critic)
    state = step(fresh, batch, critic_lr=1e-2)[0]
    new = step(state, batch, critic_lr=1e-2, target_rate=0.3)[0]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-8),
        new.target,
        ema(state.target, new.critic, 0.3),
    )
    assert not changed(step(state, batch, target_rate=0.0)[0].target, state.target)


def test_actor_and_critic_teach_the_model_nothing(fresh, batch):
    state = step(fresh, batch)[0]  # the next update is one of the actor
    one, other = (
        step(state, batch, **changes)[0]
        for changes in ({}, {"entropy_scale": 9.0, "actor_lr": 1.0, "critic_lr": 1.0, "gamma": 0.1})
    )
    assert changed(one.actor, other.actor) and changed(one.critic, other.critic)
    assert not changed(one.model, other.model) and not changed(one.model_opt, other.model_opt)


def test_the_model_moves_by_its_own_optimiser_only(fresh, batch):
    new = step(fresh, batch, model_lr=0.0)[0]
    assert not changed(new.model, fresh.model) and changed(new.critic, fresh.critic)


def actor_gradient(state, batch):
    """Its norm in the coming update, the entropy apart."""
    return step(state, batch, model_lr=0.0, entropy_scale=0.0)[1]["grad_norm/actor"]


def test_the_actor_learns_through_the_dynamics(fresh, batch):
    state = fresh.replace(step=jnp.int32(1))
    assert actor_gradient(state, batch) > 1e-4
    # Rewards of 0 (the values are still 0) leave nothing to learn, whatever the continue head says,
    blind = state.model | {"reward": with_last_layer(state.model["reward"])}
    assert actor_gradient(state.replace(model=blind), batch) == 0.0
    # and so do dynamics that ignore the action.
    rssm = state.model["rssm"]["params"]
    kernel = rssm["input"]["kernel"].at[CONFIG.stoch :].set(0.0)
    deaf = {"params": rssm | {"input": rssm["input"] | {"kernel": kernel}}}
    assert actor_gradient(state.replace(model=state.model | {"rssm": deaf}), batch) == 0.0


def test_the_values_behind_the_horizon_teach_the_actor(fresh, batch):
    """Rewards are 0 here, so that values are all there is to gain."""
    target = fresh.target["params"]
    random = jax.random.normal(KEY, target["Linear_1"]["kernel"].shape)
    steep = {"params": target | {"Linear_1": target["Linear_1"] | {"kernel": random}}}
    blind = fresh.model | {"reward": with_last_layer(fresh.model["reward"])}
    state = fresh.replace(step=jnp.int32(1), model=blind)
    assert actor_gradient(state, batch) == 0.0
    assert actor_gradient(state.replace(target=steep), batch) > 0.0


@pytest.mark.parametrize(("clip", "passed"), [(0.0, 3.0), (0.5, 0.5), (3.1, 3.0)])
def test_later_returns_pass_through_a_state_with_a_gradient_of_bounded_norm(
    monkeypatch, clip, passed
):
    """On a line, from x = 1, with actions k x, k = 0.5, and rewards x: x' = 1.5, x'' = 2.25, and
    the returns are x' + x'' and x''. Their slope by k is 2 x' = 3 by way of the second action, 1 by
    x' itself, and what x'' hands back to x', 2 (1 + k) = 3. The last alone is cut. The bound is for
    the sum over 6 starts and 2 steps, of which the loss is the mean."""
    line = lambda rssm, params, *inputs: Line().imagine(params, *inputs)  # noqa: E731
    monkeypatch.setattr(dlc_v1, "imagine_step", line)

    def answers(function):
        return SimpleNamespace(apply=lambda params, features: function(params, features[..., :1]))

    sure = lambda k, x: jnp.concatenate([jnp.arctanh(k * x), 0 * x - 50.0], -1)  # noqa: E731
    parts = SimpleNamespace(
        rssm=None,
        actor=answers(sure),
        reward=answers(lambda _, x: symlog(x)),
        cont=answers(lambda _, x: 0 * x + 50.0),
        critic=answers(lambda _, x: 0 * x),
    )
    config = DLCConfig(
        horizon=2, starts=6, dynamics_clip=clip, gamma=1.0, lambda_=1.0,
        actor_min_std=0.0, entropy_scale=0.0,
    )  # fmt: skip
    x = jnp.ones((6, 1))
    model = {"rssm": None, "reward": None, "cont": None}
    dream = Dream(parts, config, model, None, LatentState(x, x, x, x), jnp.ones(6), KEY)
    loss, slope = jax.jit(jax.value_and_grad(lambda k: dream.run(k)[0]))(0.5)
    assert float(loss) == pytest.approx(-6 * ((1.5 + 2.25) + 2.25) / 12, rel=1e-5)
    assert float(slope) == pytest.approx(-6 * (3 + 1 + passed) / 12, rel=1e-5)


def test_terminal_starts_teach_neither_actor_nor_critic(fresh, batch):
    over = batch.replace(is_terminal=np.ones((LENGTH, BATCH), bool))
    new, metrics = step(fresh.replace(step=jnp.int32(1)), over)
    assert not changed(new.actor, fresh.actor) and not changed(new.critic, fresh.critic)
    assert metrics["loss/actor"] == metrics["loss/critic"] == 0.0


# ---------------------------------------------------------------- targets of the losses


def test_a_time_limit_is_no_end(fresh, batch):
    # Continue logits are 2 everywhere. 48 states, 3 of them terminal:
    # [45 log(1 + e^-2) + 3 log(1 + e^2)] / 48; an episode cut by a time limit has none
    model = fresh.model | {"cont": with_last_layer(fresh.model["cont"], bias=2.0)}
    state = fresh.replace(model=model)
    ends = np.zeros((LENGTH, BATCH), bool)
    ends[4, :3] = True
    loss = step(state, batch.replace(is_terminal=ends))[1]["loss/continue"]
    want = (45 * np.log(1 + np.exp(-2.0)) + 3 * np.log(1 + np.exp(2.0))) / 48
    np.testing.assert_allclose(loss, want, rtol=1e-5)
    loss = step(state, batch)[1]["loss/continue"]
    np.testing.assert_allclose(loss, np.log(1 + np.exp(-2.0)), rtol=1e-5)


def test_rewards_are_learned_as_symlog(fresh, batch):
    # A head that says log(1 + 3) everywhere is right about a reward of 3,
    model = fresh.model | {"reward": with_last_layer(fresh.model["reward"], bias=np.log(4.0))}
    state, threes = fresh.replace(model=model), np.full((LENGTH, BATCH), 3.0, np.float32)
    assert step(state, batch.replace(reward=threes))[1]["loss/reward"] < 1e-10
    # and imagines a reward of 3.
    assert np.isclose(step(state, batch, model_lr=0.0)[1]["imagined/reward"], 3.0)
    # The rewards of -3 it misses by 2 log 4.
    loss = step(state, batch.replace(reward=-threes))[1]["loss/reward"]
    np.testing.assert_allclose(loss, (2 * np.log(4.0)) ** 2, rtol=1e-5)


def test_values_are_learned_as_symlog(fresh, batch):
    # Reward 1 for ever, no end, values 0 (a fresh critic), lambda = 0.95, gamma = 1, H = 3:
    # R_2 = 1, R_1 = 1 + 0.95, R_0 = 1 + 0.95 (1 + 0.95); the critic says 0, target symlog(R)
    heads = {
        "reward": with_last_layer(fresh.model["reward"], bias=np.log(2.0)),
        "cont": with_last_layer(fresh.model["cont"], bias=50.0),
    }
    state = fresh.replace(model=fresh.model | heads)
    metrics = step(state, batch, model_lr=0.0, gamma=1.0)[1]
    returns = np.array([1.0, 1.95, 1 + 0.95 * 1.95])
    np.testing.assert_allclose(metrics["imagined/return"], returns.mean(), rtol=1e-5)
    want = np.mean(np.log1p(returns) ** 2)
    np.testing.assert_allclose(metrics["loss/critic"], want, rtol=1e-5)


def test_reported_predictions_are_those_the_losses_are_about(fresh, batch):
    figures, seen = step(fresh, batch)[1], report(fresh, batch, KEY)
    error = np.square(symlog(seen["reward_prediction"]) - symlog(batch.reward)).mean()
    np.testing.assert_allclose(figures["loss/reward"], error, rtol=1e-4)
    assert seen["reconstruction"].shape == (LENGTH, *SPEC.image)
    np.testing.assert_array_equal(seen["truth"], batch.obs["image"][:, 0] / np.float32(255))


# ---------------------------------------------------------------- learning


SLOPES = {"model_lr": 3e-3, "critic_lr": 3e-3, "actor_lr": 3e-3, "entropy_scale": 1e-3}


def train(state, batches, updates, **changes):
    """`updates` updates; all metrics of the first and the last."""
    history = []
    for number in range(updates):
        data = batches[number % len(batches)]
        state, metrics = step(state, data, jax.random.key(number), **(SLOPES | changes))
        history.append(metrics)
    return state, history[0], history[-1]


def test_one_batch_can_be_learned_by_heart(fresh, batch):
    _, first, last = train(fresh, [batch], 200, model_lr=1e-2)
    assert last["loss/image"] < first["loss/image"] / 20
    assert last["loss/reward"] < first["loss/reward"] / 10


@pytest.mark.parametrize("slope", [1.0, -1.0], ids=["downhill", "uphill"])
def test_the_policy_walks_to_where_the_reward_is(fresh, slope):
    """Reward is -|x|: from the left go right, from the right go left; uphill it does the reverse.

    An actor step of the other sign is what a wrong sign in the actor's loss would give.
    """
    state, _, _ = train(fresh, [play(s) for s in range(50)], 300, actor_lr=slope * 3e-3)
    x = np.array([-0.9, -0.5, 0.5, 0.9])
    action, _ = act(state, AGENT.carry(4), {"image": paint(x)}, np.ones(4, bool), KEY, mode="eval")
    assert np.all(-slope * np.sign(x) * action[:, 0] > 0.3)


# ---------------------------------------------------------------- acting


def images(seed, number=3):
    return paint(np.random.default_rng(seed).uniform(-1, 1, number))


def test_evaluation_is_deterministic_and_training_is_not(fresh):
    def action(key, mode):
        carry = AGENT.carry(3)
        seen, first = {"image": images(0)}, np.ones(3, bool)
        return act(fresh, carry, seen, first, jax.random.key(key), mode=mode)[0]

    assert action(0, "eval").shape == (3, 2)
    np.testing.assert_array_equal(action(0, "eval"), action(1, "eval"))
    np.testing.assert_array_equal(action(0, "train"), action(0, "train"))
    assert np.all(action(0, "train") != action(1, "train"))
    for mode in ("eval", "train"):
        far = [np.abs(action(key, mode)).max() for key in range(20)]
        assert max(far) <= 1.0 and (mode == "eval" or max(far) == 1.0)  # clipped, not squashed


def test_acting_filters_like_learning(fresh, monkeypatch):
    """The same records one by one: the same posteriors, where both draw no noise."""
    data = play(3)
    is_first = data.is_first.copy()
    is_first[5, 1] = True
    carry, means = AGENT.carry(BATCH), []
    for t in range(LENGTH):
        carry = carry._replace(action=data.prev_action[t])
        _, carry = act(fresh, carry, {"image": data.obs["image"][t]}, is_first[t], KEY, mode="eval")
        means.append(carry.state.mean)
    parts = make_parts(CONFIG, SPEC)
    flat = data.obs["image"].reshape(-1, *SPEC.image)
    embed = parts.encoder.apply(fresh.model["encoder"], fold(flat, CONFIG.fold) / 255.0)
    monkeypatch.setattr(jax.random, "normal", lambda key, shape: jnp.zeros(shape))
    states, _ = observe(
        parts.rssm,
        fresh.model["rssm"],
        embed.reshape(LENGTH, BATCH, -1),
        data.prev_action,
        is_first,
        initial_state(parts.rssm, (BATCH,)),
        KEY,
    )
    np.testing.assert_allclose(np.stack(means), states.mean, rtol=1e-4, atol=1e-5)


def test_an_action_is_remembered_until_the_next_observation(fresh):
    first, later = np.ones(3, bool), np.zeros(3, bool)
    action, carry = act(fresh, AGENT.carry(3), {"image": images(0)}, first, KEY, mode="train")
    np.testing.assert_array_equal(carry.action, action)
    other = carry._replace(action=-action)
    means = [
        act(fresh, c, {"image": images(1)}, later, KEY, mode="eval")[1].state.mean
        for c in (carry, other)
    ]
    assert np.all(np.abs(means[0] - means[1]).max(-1) > 0)


def test_a_first_observation_forgets_what_was_before(fresh):
    carry = jax.tree.map(lambda x: x + 5.0, AGENT.carry(3))
    first = np.array([True, False, True])
    used = act(fresh, carry, {"image": images(0)}, first, KEY, mode="eval")
    new = act(fresh, AGENT.carry(3), {"image": images(0)}, np.ones(3, bool), KEY, mode="eval")
    for one, other in zip(jax.tree.leaves(used), jax.tree.leaves(new), strict=True):
        np.testing.assert_array_equal(one[first], other[first])
    assert np.any(used[0][1] != new[0][1])


# ---------------------------------------------------------------- the report


def test_shapes_of_the_report(fresh, batch):
    rows = (6, LENGTH, *SPEC.image)
    shapes = {
        "truth": (LENGTH, *SPEC.image),
        "reconstruction": (LENGTH, *SPEC.image),
        "open_truth": rows,
        "open_prediction": rows,
        "reward": (LENGTH, BATCH),
        "reward_prediction": (LENGTH, BATCH),
        "value": (CONFIG.horizon, CONFIG.starts),
        "return": (CONFIG.horizon, CONFIG.starts),
    }
    seen = report(fresh, batch, KEY)
    assert {name: value.shape for name, value in seen.items()} == shapes
    assert all(np.isfinite(value).all() for value in seen.values())
    np.testing.assert_array_equal(
        seen["open_truth"], np.swapaxes(batch.obs["image"], 0, 1) / np.float32(255)
    )


def test_open_loop_sees_the_context_only_and_follows_the_actions(fresh, batch):
    def open_loop(**changes):
        return np.array(report(fresh, batch.replace(**changes), KEY)["open_prediction"])

    before = open_loop()
    image = batch.obs["image"].copy()
    image[CONTEXT:] = 255 - image[CONTEXT:]
    np.testing.assert_array_equal(open_loop(obs={"image": image}), before)
    image = batch.obs["image"].copy()
    image[CONTEXT - 1] = 255 - image[CONTEXT - 1]
    assert np.all(
        np.any(open_loop(obs={"image": image}) != before, axis=(2, 3, 4))[:, CONTEXT - 1 :]
    )
    action = batch.prev_action.copy()
    action[CONTEXT] = -action[CONTEXT]
    moved = np.any(open_loop(prev_action=action) != before, axis=(0, 2, 3, 4))
    assert not moved[:CONTEXT].any() and moved[CONTEXT:].all()


def test_open_loop_sees_the_frame_that_begins_an_episode(fresh, batch):
    first = batch.is_first.copy()
    first[CONTEXT + 1, 0] = True
    seen = report(fresh, batch.replace(is_first=first), KEY)
    apart = np.abs(seen["open_prediction"][0] - seen["reconstruction"]).max(axis=(1, 2, 3))
    # decoded in batches of two sizes, which round apart on some processors
    assert list(np.flatnonzero(apart < 1e-6)) == [*range(CONTEXT), CONTEXT + 1]
    assert np.sum(apart > 1e-4) == len(apart) - CONTEXT - 1, apart


# ---------------------------------------------------------------- building


def test_losses_are_metrics_and_shared_parts_are_marked(fresh, batch):
    metrics = step(fresh, batch)[1]
    assert {"grad_norm/model", "grad_norm/critic"} < set(AGENT.losses) <= set(metrics)
    assert all(value.shape == () for value in metrics.values())
    assert AGENT.axes.step is None and AGENT.axes.model == 0


@pytest.mark.parametrize(("weight", "step"), [(0.0, 1), (0.0, 0), (4.0, 1)])
def test_an_actor_gradient_that_is_not_finite_shows_in_its_loss(weight, step):
    """The square root at 0 is finite, its gradient is not; an update without a gradient is."""
    config = SimpleNamespace(actor_interval=2, actor_warmup=0)
    metrics = jnp.zeros(3), jnp.zeros(3), {"loss/actor": jnp.sqrt(weight)}
    dream = SimpleNamespace(config=config, run=lambda actor: (jnp.sqrt(actor), metrics))
    tx, actor = optax.sgd(0.1), jnp.array(weight)
    state = SimpleNamespace(actor=actor, actor_opt=tx.init(actor), step=jnp.int32(step))
    got = update_actor(dream, state, tx)[-1]["loss/actor"]
    assert np.isnan(got) if step and not weight else got == np.sqrt(weight)


@pytest.mark.parametrize(
    ("changes", "text"),
    [({"fold": 7}, "agent.fold=7"), ({"decoder": ((5, 1, 1),)}, "agent.decoder must end with 432")],
)
def test_sizes_that_do_not_fit_are_named(changes, text):
    with pytest.raises(ValueError, match=text):
        make_dlc_v1(DLCConfig(**{"fold": 12, **changes}), SPEC)


def test_the_published_networks_have_their_sizes():
    def count(tree):
        return sum(leaf.size for leaf in jax.tree.leaves(tree))

    agent = make_dlc_v1(DLCConfig(), Spec({"image": ((96, 96, 3), "uint8")}, 2))
    state = jax.eval_shape(agent.init, KEY)
    # 230 features -> 400 -> 400 -> 1: three layers with a bias, two LayerNorms
    assert count(state.critic) == 231 * 400 + 401 * 400 + 2 * 800 + 401
    # the actor has one hidden layer more and 2 means, 2 deviations
    assert count(state.actor) == 231 * 400 + 2 * 401 * 400 + 3 * 800 + 4 * 401
    assert count(state.target) == count(state.critic)
