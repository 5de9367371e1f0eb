"""The RSSM with categorical latents: scan against loop, resets, gradients, and a task to learn."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dreamer_jax.imagination import rollout
from dreamer_jax.nn.blocks import BlockLinear
from dreamer_jax.nn.recurrent import BlockGRU
from dreamer_jax.ops import categorical
from dreamer_jax.world_models.discrete_rssm import (
    DiscreteRSSM,
    imagine_step,
    initial_state,
    observe,
    observe_step,
    pack,
    unpack,
    whole,
)

T, B, E, A = 6, 3, 5, 2
PART = DiscreteRSSM(deter=8, latents=3, classes=4, hidden=8, blocks=2)


def setup(seed=0):
    k = jax.random.split(jax.random.key(seed), 3)
    params = PART.init(k[0], jnp.zeros((1, E)), jnp.zeros((1, A)))
    return params, jax.random.normal(k[1], (T, B, E)), jax.random.uniform(k[2], (T, B, A))


def run(params, embed, action, is_first, key):
    return observe(PART, params, embed, action, is_first, initial_state(PART, (B,)), key)


def firsts(*places):
    is_first = jnp.zeros((T, B), bool).at[0].set(True)
    for place in places:
        is_first = is_first.at[place].set(True)
    return is_first


def test_a_block_sees_its_block_only():
    layer = BlockLinear(6, 2)
    x = jax.random.normal(jax.random.key(0), (5, 4))
    params = layer.init(jax.random.key(1), x)
    jacobian = jax.jacobian(lambda v: layer.apply(params, v))(x[0])  # [6, 4]
    assert not jacobian[:3, 2:].any() and not jacobian[3:, :2].any()
    assert jacobian[:3, :2].all() and jacobian[3:, 2:].all()
    weights = params["params"]["kernel"]
    np.testing.assert_allclose(jacobian[3:, 2:], weights[1].T, rtol=1e-6)
    with pytest.raises(ValueError, match="no multiples of 4"):
        BlockLinear(6, 4).init(jax.random.key(1), x)


def test_the_cell_by_hand():
    """One block, all gates from known numbers: update = sigmoid(u - 1)."""
    cell = BlockGRU(2, 1)
    h, x = jnp.array([[0.5, -0.5]]), jnp.array([[1.0]])
    params = cell.init(jax.random.key(0), h, x)
    zero = jax.tree.map(jnp.zeros_like, params)
    keep = 1 - 1 / (1 + np.exp(1.0))
    np.testing.assert_allclose(cell.apply(zero, h, x), keep * h, rtol=1e-6)  # candidate 0
    opened = jax.tree.map(jnp.copy, zero)
    bias = opened["params"]["BlockLinear_1"]["bias"]
    opened["params"]["BlockLinear_1"]["bias"] = bias.at[2:4].set(3.0).at[4:].set(101.0)
    want = np.full((1, 2), np.tanh(0.5 * 3.0))  # reset gate one half, update gate open
    np.testing.assert_allclose(cell.apply(opened, h, x), want, rtol=1e-6)


def test_each_block_of_the_cell_has_gates_of_its_own():
    """Only biases, all different: block i takes its reset, candidate and update in this order."""
    cell = BlockGRU(6, 2)
    h, x = jnp.linspace(-1.0, 1.0, 6)[None], jnp.ones((1, 3))
    params = jax.tree.map(jnp.zeros_like, cell.init(jax.random.key(0), h, x))
    bias = jnp.linspace(-2.0, 2.0, 18)
    params["params"]["BlockLinear_1"]["bias"] = bias
    got = cell.apply(params, h, x).reshape(2, 3)
    for block, start in enumerate((0, 9)):
        reset, candidate, update = np.asarray(bias[start : start + 9]).reshape(3, 3)
        update = 1 / (1 + np.exp(1.0 - update))
        candidate = np.tanh(candidate / (1 + np.exp(-reset)))
        kept = (1 - update) * np.asarray(h).reshape(2, 3)[block]
        np.testing.assert_allclose(got[block], update * candidate + kept, rtol=1e-5)


def test_observe_equals_a_python_loop():
    params, embed, action = setup()
    is_first, key = firsts((3, 1)), jax.random.key(5)
    states, prior = run(params, embed, action, is_first, key)
    state, keys = initial_state(PART, (B,)), jax.random.split(key, T)
    for t in range(T):
        state = observe_step(PART, params, state, action[t], embed[t], is_first[t], keys[t])
        np.testing.assert_allclose(states.deter[t], state.deter, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(states.stoch[t], state.stoch, atol=1e-6)
        expected = PART.apply(params, state.deter, method=PART.prior)
        np.testing.assert_allclose(prior[t], expected, rtol=1e-4, atol=1e-5)


def test_samples_are_one_hot_and_distributions_sum_to_one_with_a_floor():
    params, embed, action = setup(1)
    states, prior = run(params, embed, action, firsts(), jax.random.key(0))
    sample = states.stoch.reshape(T, B, 3, 4)
    np.testing.assert_allclose(np.sort(sample)[..., -1], 1.0, atol=1e-6)
    for logits in (prior, states.logits):
        probs = jnp.exp(logits)
        np.testing.assert_allclose(probs.sum(-1), 1.0, rtol=1e-5)
        assert probs.min() >= 0.01 / 4 - 1e-7  # unimix
    assert states.features.shape == (T, B, 8 + 12)


def test_nothing_leaks_across_a_reset():
    params, embed, action = setup(2)
    is_first = firsts(4)

    def late(embed, action):
        states, _ = run(params, embed, action, is_first, jax.random.key(0))
        return jnp.sum(states.deter[4:] ** 2) + jnp.sum(states.stoch[4:] * jnp.arange(12.0))

    g_embed, g_action = jax.grad(late, (0, 1))(embed, action)
    assert not g_embed[:4].any() and g_embed[4:].any()
    assert not g_action[:5].any() and g_action[5:].any()


def test_gradients_reach_back_through_samples_and_imagination():
    params, embed, action = setup(3)
    states, _ = run(params, embed, action, firsts(), jax.random.key(0))
    start = jax.tree.map(lambda x: x[-1], states)

    def last(scale, draw):
        def policy(features, key):
            return jnp.tanh(scale * features[:, :A]), jnp.zeros(B)

        def step(state, action, key):
            return imagine_step(PART, params, state, action, key, draw)

        path = rollout(step, policy, start, 4, jax.random.key(1))
        return jnp.sum(path.states.stoch[-1] * jnp.arange(12.0))

    for draw in (categorical.straight_through, partial(categorical.gumbel_softmax, temperature=1)):
        assert jnp.abs(jax.grad(last)(0.5, draw)) > 0

    def detached(key, logits):
        return jax.lax.stop_gradient(categorical.straight_through(key, logits))

    first = jax.grad(lambda s: last(s, detached))(0.5)
    assert first == 0  # z is all that the last sum sees


def test_actions_beyond_the_bounds_are_scaled_back():
    params, _, _ = setup()
    state = initial_state(PART, (1,))
    one, far = (
        imagine_step(PART, params, state, jnp.full((1, A), a), jax.random.key(0))
        for a in (1.0, 9.0)
    )
    np.testing.assert_allclose(one.deter, far.deter, rtol=1e-6)


def test_the_prior_learns_to_foresee():
    """A counter modulo 4 that an action may hold: after learning the prior is sure of the next."""
    rssm = DiscreteRSSM(deter=16, latents=1, classes=4, hidden=32, blocks=2)
    k = jax.random.split(jax.random.key(0), 3)
    length, batch = 12, 16

    def game(key):
        hold = jax.random.bernoulli(key, 0.3, (length, batch))
        count = jnp.cumsum(~hold, axis=0) % 4
        return jax.nn.one_hot(count, 4), hold[..., None].astype(jnp.float32)

    is_first = jnp.zeros((length, batch), bool).at[0].set(True)
    start = initial_state(rssm, (batch,))

    def loss(params, key):
        keys = jax.random.split(key)
        embed, action = game(keys[0])
        states, prior = observe(rssm, params["rssm"], embed, action, is_first, start, keys[1])
        seen = states.features @ params["out"]
        image = -jnp.sum(embed * jax.nn.log_softmax(seen), -1).mean()
        dyn, rep, kl = categorical.free_nats_kl(states.logits, prior, 0.0)
        return image + dyn.mean() + 0.1 * rep.mean(), (image, kl[1:].mean(), states, prior)

    params = {
        "rssm": rssm.init(k[0], jnp.zeros((1, 4)), jnp.zeros((1, 1))),
        "out": 0.1 * jax.random.normal(k[1], (20, 4)),
    }
    optimiser = optax.adam(3e-3)

    @jax.jit
    def train(params, state, key):
        grads, aux = jax.grad(loss, has_aux=True)(params, key)
        updates, state = optimiser.update(grads, state)
        return optax.apply_updates(params, updates), state, aux[:2]

    state = optimiser.init(params)
    for i in range(600):
        params, state, (image, kl) = train(params, state, jax.random.fold_in(k[2], i))
    assert image < 0.1 and kl < 0.3  # nothing known: log 4 = 1.39 nats each


def test_a_state_is_packed_for_the_replay():
    """Classes from 1, 0 where nothing was drawn; a soft sample becomes its largest class."""
    rssm = DiscreteRSSM(2, 2, 3, 4, blocks=1)
    stoch = jnp.array([[0, 1, 0, 1, 0, 0], [0.2, 0.3, 0.5, 0, 0, 1], [0] * 6], jnp.float32)
    state = initial_state(rssm, (3,)).replace(stoch=stoch, deter=jnp.full((3, 2), 0.5))
    packed = pack(rssm, state)
    assert packed.chosen.tolist() == [[2, 1], [3, 3], [0, 0]]
    assert (packed.chosen.dtype, packed.deter.dtype) == (jnp.uint8, jnp.float16)
    back = unpack(rssm, packed)
    want = [[0, 1, 0, 1, 0, 0], [0, 0, 1, 0, 0, 1], [0] * 6]
    assert back.stoch.tolist() == want and back.deter.tolist() == [[0.5, 0.5]] * 3
    nothing = initial_state(rssm, (4,))
    jax.tree.map(np.testing.assert_array_equal, unpack(rssm, pack(rssm, nothing)), nothing)
    soft = whole(rssm)
    kept = soft.pack(state)
    assert kept.shape == (3, 2 + 6) and kept.dtype == jnp.float16
    np.testing.assert_allclose(soft.unpack(kept).features, state.features, atol=1e-3)
    jax.tree.map(np.testing.assert_array_equal, soft.unpack(soft.pack(nothing)), nothing)
    many = DiscreteRSSM(2, 1, 256, 4, blocks=1)
    assert pack(many, initial_state(many, ())).chosen.dtype == jnp.uint16
