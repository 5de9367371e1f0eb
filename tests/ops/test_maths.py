import distrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dreamer_jax.ops import gaussian
from dreamer_jax.ops.keys import named_key
from dreamer_jax.ops.optimisers import clipped_adam, clipped_adamw, ema
from dreamer_jax.ops.transforms import symexp, symlog
from dreamer_jax.ops.trees import select


def test_symlog_goldens_and_inverse():
    # symlog(e - 1) = 1, symlog(-(e^2 - 1)) = -2
    x = jnp.array([0.0, np.e - 1.0, -(np.e**2 - 1.0)])
    np.testing.assert_allclose(symlog(x), [0.0, 1.0, -2.0], rtol=1e-6)
    y = jnp.linspace(-300.0, 900.0, 101)
    np.testing.assert_allclose(symexp(symlog(y)), y, rtol=1e-4, atol=1e-4)


def test_symlog_has_slope_one_at_zero():
    assert jax.grad(symlog)(1e-8) == 1.0 and jax.grad(symexp)(1e-8) == 1.0


def case():
    k = jax.random.split(jax.random.key(0), 4)
    mean = jax.random.normal(k[0], (5, 3)), jax.random.normal(k[1], (5, 3))
    std = 0.1 + jax.random.uniform(k[2], (5, 3)), 0.1 + jax.random.uniform(k[3], (5, 3))
    return mean[0], std[0], mean[1], std[1]


def test_kl_and_entropy_against_distrax():
    m0, s0, m1, s1 = case()
    p = distrax.Independent(distrax.Normal(m0, s0), 1)
    q = distrax.Independent(distrax.Normal(m1, s1), 1)
    np.testing.assert_allclose(gaussian.kl(m0, s0, m1, s1), p.kl_divergence(q), rtol=1e-5)
    np.testing.assert_allclose(gaussian.entropy(s0), p.entropy(), rtol=1e-5)


def test_kl_by_hand():
    # one dimension, N(1, 1) || N(0, 2): log 2 + (1 + 1) / 8 - 1/2
    one = jnp.ones((1,))
    want = np.log(2.0) + 0.25 - 0.5
    np.testing.assert_allclose(gaussian.kl(one, one, 0 * one, 2 * one), want, rtol=1e-6)


def test_free_nats_gradients_flow_one_way_each():
    m0, s0, m1, s1 = (x[0] for x in case())

    def terms(post_mean, prior_mean):
        dyn, rep, _ = gaussian.free_nats_kl((post_mean, s0), (prior_mean, s1), 1.0)
        return dyn, rep

    dyn_post, dyn_prior = jax.grad(lambda a, b: terms(a, b)[0], (0, 1))(m0, m1)
    rep_post, rep_prior = jax.grad(lambda a, b: terms(a, b)[1], (0, 1))(m0, m1)
    assert not dyn_post.any() and dyn_prior.any()
    assert rep_post.any() and not rep_prior.any()


def test_free_nats_stop_the_gradient_below_the_threshold():
    m0, s0, m1, s1 = (x[0] for x in case())

    def dyn(prior_mean):
        return gaussian.free_nats_kl((m0, s0), (prior_mean, s1), 1e6)[0]

    assert dyn(m1) == 1e6
    assert not jax.grad(dyn)(m1).any()


def test_clipped_adam_by_hand():
    # gradient (3, 4) has norm 5, clipped to 1: (0.6, 0.8); Adam's first step is lr g / (|g| + eps)
    tx = clipped_adam(0.1, eps=0.2, clip=1.0)
    params = jnp.zeros(2)
    updates, _ = tx.update(jnp.array([3.0, 4.0]), tx.init(params), params)
    want = [-0.1 * 0.6 / 0.8, -0.1 * 0.8 / 1.0]
    np.testing.assert_allclose(optax.apply_updates(params, updates), want, rtol=1e-4)


@pytest.mark.parametrize("rate", [0.1, 1e-4])
def test_the_decay_of_weights_by_hand(rate):
    """It takes its share whatever the step size."""
    tx = clipped_adamw(rate, eps=0.2, clip=1.0, decay=0.01)
    params = jnp.array([2.0, -3.0])
    updates, _ = tx.update(jnp.array([3.0, 4.0]), tx.init(params), params)
    step = np.array([-rate * 0.6 / 0.8, -rate * 0.8 / 1.0])
    np.testing.assert_allclose(updates, step - [0.02, -0.03], rtol=1e-4)


def test_ema_by_hand():
    got = ema({"w": jnp.array([1.0])}, {"w": jnp.array([3.0])}, 0.02)
    np.testing.assert_allclose(got["w"], [1.04], rtol=1e-6)


def test_named_keys_differ_and_repeat():
    key = jax.random.key(0)
    data = [jax.random.key_data(named_key(key, name)).tolist() for name in ("a", "b", "a")]
    assert data[0] == data[2] != data[1]


def test_a_mask_chooses_among_leaves_of_any_rank():
    mask = jnp.array([[True, False], [False, False]])
    new = {"a": jnp.ones((2, 2)), "b": jnp.ones((2, 2, 3))}
    got = select(mask, new, jax.tree.map(jnp.zeros_like, new))
    np.testing.assert_array_equal(got["a"], [[1, 0], [0, 0]])
    np.testing.assert_array_equal(got["b"][..., 2], [[1, 0], [0, 0]])
