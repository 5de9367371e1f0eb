"""Losses of DreamerV1, V2, V3 and PlaNet by hand: values, signs, and what they may move."""

from math import log
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from games import CONTINUOUS, DISCRETE, play
from small_world import AS_IS, TIMES, Line

from dreamer_jax.agents import dreamer_v1, dreamer_v2, planet
from dreamer_jax.agents.dreamer_v1 import make_dreamer_v1
from dreamer_jax.agents.dreamer_v1_config import DreamerV1Config
from dreamer_jax.agents.dreamer_v2 import make_dreamer_v2
from dreamer_jax.agents.dreamer_v2_config import DreamerV2Config
from dreamer_jax.agents.dreamer_v3 import Imagined, View
from dreamer_jax.agents.dreamer_v3_config import DreamerV3Config
from dreamer_jax.agents.dreamer_v3_parts import Parts, make_parts
from dreamer_jax.agents.planet_config import PlaNetConfig
from dreamer_jax.ops.heads import gaussian_head
from dreamer_jax.ops.moments import Range
from dreamer_jax.policies import one_hot
from dreamer_jax.types import DiscreteState, LatentState, Spec, Transition

KEY = jax.random.key(5)
TWO = Spec({"place": ((1,), "float32")}, 2, True)

# A choice of two with odds 1 to 3 and its entropy, whose slope by the first logit is
# -1/4 (log 1/4 + ENTROPY), by the second the opposite.
ODDS = jnp.array([0.0, log(3.0)])
ENTROPY = log(4.0) - 0.75 * log(3.0)
BENDS = 0.1875 * log(3.0)

# KL[N(1, 1) || N(0, 2)] = log 2 + (1 + 1) / 8 - 1/2; the other way round 2 - log 2.
APART = log(2.0) - 0.25
# KL[1/4, 3/4 || 1/2, 1/2] = log 2 - ENTROPY = 0.13; the other way round 0.14.
UNEVEN = log(2.0) - ENTROPY


def gaussians(mean, std):
    """States [N] of one latent."""
    mean, std = (jnp.array(x, jnp.float32)[:, None] for x in (mean, std))
    return LatentState(mean, mean, mean, std)


# ---------------------------------------------------------------- DreamerV1 and V2


@pytest.fixture
def rules(monkeypatch):
    """What an agent hands to the program that V1 and V2 share."""
    for module in (dreamer_v1, dreamer_v2):
        monkeypatch.setattr(module, "make_group_agent", lambda *args: args[-1])
    return lambda make, config: make(config, TWO)


@pytest.mark.parametrize(("free", "moves"), [(0.0, 1.0), (0.3, 0.0)])
def test_kl_of_v1_is_from_posterior_to_prior_and_its_mean_has_free_nats(rules, free, moves):
    """One state at APART = 0.44 and one at 0, on average 0.22; the means' slope is 1 / 4 each."""
    kl = rules(make_dreamer_v1, DreamerV1Config(kl_scale=2.0, free_nats=free)).kl
    posterior, prior = gaussians([1.0, 0.0], [1.0, 2.0]), (jnp.zeros((2, 1)), jnp.full((2, 1), 2.0))
    loss, nats = kl(posterior, prior)
    assert float(loss) == pytest.approx(2 * max(APART / 2, free), rel=1e-5)
    assert float(nats) == pytest.approx(APART / 2, rel=1e-5)
    up, (down, _) = jax.grad(lambda *args: kl(*args)[0], (0, 1))(posterior, prior)
    np.testing.assert_allclose(up.mean[:, 0], [moves * 2 / 2 / 4, 0.0], rtol=1e-5)
    np.testing.assert_allclose(down, -up.mean, rtol=1e-5)


@pytest.mark.parametrize(("free", "moves"), [(0.0, 1.0), (0.1, 0.0)])
def test_kl_of_v2_is_balanced_and_its_mean_has_free_nats(rules, free, moves):
    """One state at UNEVEN = 0.13 and one at 0. The slopes of KL[p || q] are q - p by the prior's
    logits, p (log p / q - KL) by the posterior's."""
    config = DreamerV2Config(kl_scale=0.5, kl_balance=0.8, free_nats=free)
    kl = rules(make_dreamer_v2, config).kl
    post = jnp.stack([ODDS, jnp.zeros(2)])[:, None]
    state, even = DiscreteState(post, post, post), jnp.zeros((2, 1, 2))
    loss, nats = kl(state, even)
    assert float(loss) == pytest.approx(0.5 * max(UNEVEN / 2, free), rel=1e-5)
    assert float(nats) == pytest.approx(UNEVEN / 2, rel=1e-5)
    of_post, of_prior = jax.grad(lambda *args: kl(*args)[0], (0, 1))(state, even)
    up = 0.25 * (log(0.5) - UNEVEN)
    want = moves * 0.5 / 2 * np.array([[0.2 * up, -0.2 * up], [0.8 * 0.25, -0.8 * 0.25]])
    np.testing.assert_allclose([of_post.logits[0, 0], of_prior[0, 0]], want, rtol=1e-4)
    assert np.abs(of_post.logits[1]).max() < 1e-7 and np.abs(of_prior[1]).max() < 1e-7


def test_objective_of_v2_by_hand(rules):
    """rho 1/4, entropy's weight 0.1; the second action is taken, its return 5 was valued at 3."""
    config = DreamerV2Config(reinforce=0.25, entropy_scale=0.1)
    objective = rules(make_dreamer_v2, config).objective
    action = jnp.array([0.0, 1.0])
    inputs = ODDS, jnp.float32(5.0), jnp.float32(3.0)
    got, (raw, returns) = jax.value_and_grad(
        lambda raw, returns, values: objective(raw, action, returns, values), (0, 1)
    )(*inputs)
    by_hand = 0.25 * log(0.75) * (5 - 3) + 0.75 * 5 + 0.1 * ENTROPY
    assert float(got) == pytest.approx(by_hand, rel=1e-5)
    assert float(returns) == 0.75  # REINFORCE takes the advantage for a number
    first = 0.25 * (5 - 3) * -0.25 + 0.1 * BENDS
    np.testing.assert_allclose(raw, [first, -first], rtol=1e-5)


# ---------------------------------------------------------------- DreamerV3


def test_kls_of_v3_move_the_prior_ten_times_as_much_as_the_posterior():
    """Slopes as those of V2. No free nats: the KL here is smaller than the published one."""
    view = View(None, DreamerV3Config(free_nats=0.0))
    post = ODDS[None]
    state = DiscreteState(post, post, post)
    losses = view.kl_losses(state, jnp.zeros((1, 2)))
    want = {"loss/dynamics": UNEVEN, "loss/representation": 0.1 * UNEVEN}
    assert {n: float(x) for n, x in losses.items()} == pytest.approx(want, rel=1e-5)
    slopes = jax.jacrev(view.kl_losses, (0, 1))(state, jnp.zeros((1, 2)))
    (post, prior), up = slopes["loss/dynamics"], 0.25 * (log(0.5) - UNEVEN)
    np.testing.assert_allclose(prior[0], [0.25, -0.25], rtol=1e-5)
    assert not np.any(post.logits)
    post, prior = slopes["loss/representation"]
    np.testing.assert_allclose(post.logits[0], [0.1 * up, -0.1 * up], rtol=1e-4)
    assert not np.any(prior)


def test_each_kl_of_v3_moves_its_own_network():
    """Of one record: from a second on, a posterior's samples reach the next prior."""
    config = DreamerV3Config(
        deter=16, blocks=2, latents=4, classes=4, hidden=16, units=16, layers=1, free_nats=0.0
    )
    parts = make_parts(config, DISCRETE)
    batch = jax.tree.map(lambda x: x[:1], play(DISCRETE, 0))
    view = View(parts, config)

    def losses(dynamics, params):
        return view.kl_losses(*view.observe(params | {"dynamics": dynamics}, batch, KEY))

    params = jax.jit(lambda key: parts.world.init(key, DISCRETE))(KEY)
    slopes = jax.jit(jax.jacrev(losses))(params["dynamics"], params)
    for name, own in (("dynamics", "prior"), ("representation", "post")):
        layers = slopes[f"loss/{name}"]["params"]
        moved = {n for n, tree in layers.items() if any(map(np.any, jax.tree.leaves(tree)))}
        assert f"{own}_out" in moved
        assert {n.split("_")[0] for n in moved} & {"prior", "post"} == {own}


def test_imagination_of_v3_by_hand():
    """States 1, 1.5, 2.25 as actions are 0.5 x; continue, gamma in it, 0.4 x: 0.4, 0.6, 0.9.

    Values 2 x are 2, 3, 4.5, lambda 0.5: R1 = 2.25 + 0.9 * 4.5, R0 = 1.5 + 0.6 (1.5 + R1 / 2). The
    second start is an end and counts for nothing."""
    parts = Parts(Line(lambda x: 0.4 * x), None, TIMES, TIMES, AS_IS, gaussian_head())
    view = View(parts, DreamerV3Config(horizon=2, last=1, lambda_=0.5))
    batch = Transition({}, None, None, None, jnp.array([[False, True]]))
    params = {"actor": jnp.float32(0.5), "value": jnp.float32(2.0)}
    _, actions, _, imagined = view.imagine(params, gaussians([1, 1], [1, 1]), batch, KEY)
    np.testing.assert_allclose(actions[:, 0, 0], [0.5, 0.75], rtol=1e-6)
    np.testing.assert_allclose(imagined.values[:, 0], [2.0, 3.0, 4.5], rtol=1e-6)
    np.testing.assert_allclose(imagined.returns[:, 0], [4.29, 6.3], rtol=1e-6)
    np.testing.assert_allclose(imagined.weights, [[1.0, 0.0], [0.6, 0.0]], rtol=1e-6)


def test_behaviour_losses_of_v3_by_hand():
    """Returns 6 and 3 valued at 2 and 1, their range 4: advantages 1 and 1/2, weights 1 and 1/4.

    The second action is taken, then the first. The value network says 5 and 1, its slow copy 2."""
    actor = SimpleNamespace(apply=lambda raw, features: jnp.tile(raw, (*features.shape[:-1], 1)))
    parts = Parts(None, None, actor, TIMES, one_hot(2, 0.0), gaussian_head())
    view = View(parts, DreamerV3Config(entropy_scale=0.5, slow_scale=3.0))
    values, returns, weights = ([[2.0], [1.0], [50.0]], [[6.0], [3.0]], [[1.0], [0.25]])
    imagined = Imagined(*map(jnp.array, (values, returns, weights)), None, None)
    features, actions = jnp.ones((3, 1, 1)), jnp.array([[[0.0, 1.0]], [[1.0, 0.0]]])
    said, slow = jnp.array([5.0, 1.0, 50.0])[:, None, None], jnp.float32(2.0)
    scale = Range(jnp.float32(1.0), jnp.float32(3.0), jnp.float32(0.5))  # 2 by half the weight

    def losses(raw, said):
        params = {"actor": raw, "value": None}
        return view.behaviour_losses(params, slow, scale, features, actions, said, imagined)

    got = losses(ODDS, said)
    gain = (log(0.75) + 0.5 * ENTROPY) + 0.25 * (0.5 * log(0.25) + 0.5 * ENTROPY)
    assert float(got["loss/actor"]) == pytest.approx(-gain / 2, rel=1e-5)
    error = (0.5 * 1 + 3 * 0.5 * 9) + 0.25 * (0.5 * 4 + 3 * 0.5 * 1)
    assert float(got["loss/value"]) == pytest.approx(error / 2, rel=1e-5)
    slopes = jax.jacrev(losses, (0, 1))(ODDS, said)
    first = (-0.25 + 0.5 * BENDS) + 0.25 * (0.5 * 0.75 + 0.5 * BENDS)
    np.testing.assert_allclose(slopes["loss/actor"][0], [-first / 2, first / 2], rtol=1e-5)
    by_value = [(-1 + 3 * 3) / 2, 0.25 * (-2 + 3 * -1) / 2, 0.0]
    np.testing.assert_allclose(slopes["loss/value"][1].ravel(), by_value, rtol=1e-5)


# ---------------------------------------------------------------- PlaNet


class Apart:
    """Every posterior is N(1, 1), every prior N(0, 2); each number is a parameter."""

    def init(self, key, spec):
        return {n: jnp.float32(x) for n, x in dict(mean=1, std=1, to_mean=0, to_std=2).items()}

    def observe(self, params, batch, key):
        mean, std, *prior = (
            jnp.full((*batch.reward.shape, 1), params[n])
            for n in ("mean", "std", "to_mean", "to_std")
        )
        return LatentState(mean, mean, mean, std), tuple(prior)

    def losses(self, params, features, batch):
        return {"loss/reward": jnp.zeros(())}

    def settle(self, params, batch, step):
        return params


def test_kl_of_planet_is_from_posterior_to_prior_and_brings_them_together(monkeypatch):
    """Its slopes by the posterior's mean and std are 1/4 and 1/4 - 1, by the prior's -1/4 and
    1/2 - (1 + 1) / 8. Adam's first step is the step size against each."""
    monkeypatch.setattr(planet, "make_world", lambda *_: Apart())
    config = PlaNetConfig(kl_scale=0.5, free_nats=0.1, model_lr=0.01)
    agent = planet.make_planet(config, CONTINUOUS)
    state = agent.init(KEY)
    new, metrics = jax.jit(agent.update)(state, play(CONTINUOUS, 0), KEY)
    assert float(metrics["loss/kl"]) == pytest.approx(0.5 * APART, rel=1e-5)
    assert float(metrics["loss/model"]) == pytest.approx(0.5 * APART, rel=1e-5)
    assert float(metrics["latent/kl"]) == pytest.approx(APART, rel=1e-5)
    norm = 0.5 * np.linalg.norm([1 / 4, -3 / 4, -1 / 4, 1 / 4])
    assert float(metrics["grad_norm/model"]) == pytest.approx(norm, rel=1e-5)
    moved = {name: float(new.model[name] - x) for name, x in state.model.items()}
    want = dict(mean=-0.01, std=0.01, to_mean=0.01, to_std=-0.01)
    assert moved == pytest.approx(want, rel=1e-2)


def test_latent_overshooting_leaves_its_targets_where_they_are():
    """A world that doubles mean and std each step, two steps ahead: from N(1, 1) and N(2, 1/2) to
    N(4, 4) and N(8, 2), where N(3, 2) and N(4, 3) were found. KL[found || predicted] has the slopes
    (predicted - found) / std^2 and 1 / std - (found std^2 + distance^2) / std^3, four times that
    by the starts, and half of it in the mean."""

    class Doubling:
        def imagine(self, params, state, action, key):
            return state.replace(mean=2.0 * state.mean, std=2.0 * state.std)

    posterior = jax.tree.map(lambda x: x[:, None], gaussians([1, 2, 3, 4], [1, 0.5, 2, 3]))
    first = jnp.zeros((4, 1), bool)
    batch = Transition({}, jnp.zeros((4, 1, 1)), jnp.zeros((4, 1)), first, first)
    config = PlaNetConfig(overshooting=2, free_nats=0.0)

    def kl(posterior):
        return planet.overshoot(Doubling(), config, None, posterior, batch, KEY)

    got, slopes = jax.jit(jax.value_and_grad(kl))(posterior)
    nearer = log(4 / 2) + (4 + 1) / 32 - 0.5
    farther = log(2 / 3) + (9 + 16) / 8 - 0.5
    assert float(got) == pytest.approx((nearer + farther) / 2, rel=1e-5)
    by_mean, by_std = ([1 / 8, 2.0, 0.0, 0.0], [11 / 32, -5.25, 0.0, 0.0])
    np.testing.assert_allclose(slopes.mean.ravel(), by_mean, rtol=1e-5)
    np.testing.assert_allclose(slopes.std.ravel(), by_std, rtol=1e-5)
