import jax.numpy as jnp
import numpy as np
import pytest
import rlax

from dreamer_jax.ops.returns import lambda_returns, survival_weights


def test_golden_by_hand():
    # r = 1, 2, 3; d = 0.5; v_{t+1} = 10, 20, 30; lambda = 0.5
    # R_2 = 3 + 0.5 (0.5 * 30 + 0.5 * 30)    = 18
    # R_1 = 2 + 0.5 (0.5 * 20 + 0.5 * 18)    = 11.5
    # R_0 = 1 + 0.5 (0.5 * 10 + 0.5 * 11.5)  = 6.375
    got = lambda_returns(
        jnp.array([1.0, 2.0, 3.0]), jnp.full(3, 0.5), jnp.array([10.0, 20.0, 30.0]), 0.5
    )
    np.testing.assert_allclose(got, [6.375, 11.5, 18.0], rtol=1e-6)


def random_case(seed=0, shape=(7, 3)):
    rng = np.random.default_rng(seed)
    return (
        rng.normal(size=shape).astype(np.float32),
        rng.uniform(0, 1, shape).astype(np.float32),
        rng.normal(size=shape).astype(np.float32),
    )


def test_equals_a_python_loop():
    r, d, v = random_case()
    want, future = np.zeros_like(r), v[-1]
    for t in reversed(range(len(r))):
        future = r[t] + d[t] * (0.05 * v[t] + 0.95 * future)
        want[t] = future
    np.testing.assert_allclose(lambda_returns(r, d, v, 0.95), want, rtol=1e-5)


def test_lambda_zero_is_the_one_step_target():
    r, d, v = random_case(1)
    np.testing.assert_allclose(lambda_returns(r, d, v, 0.0), r + d * v, rtol=1e-6)


def test_lambda_one_is_the_discounted_sum_with_a_bootstrap():
    r, _, v = random_case(2)
    gamma = 0.9
    got = lambda_returns(r, jnp.full_like(r, gamma), v, 1.0)[0]
    want = sum(gamma**t * r[t] for t in range(len(r))) + gamma ** len(r) * v[-1]
    np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.parametrize("lambda_", [0.0, 0.3, 0.95, 1.0])
def test_agrees_with_rlax(lambda_):
    r, d, v = random_case(3, (9,))
    want = rlax.lambda_returns(jnp.array(r), jnp.array(d), jnp.array(v), lambda_)
    np.testing.assert_allclose(lambda_returns(r, d, v, lambda_), want, rtol=1e-5)


def test_termination_cuts_the_future():
    r, d, v = random_case(4)
    d[2] = 0.0
    before = lambda_returns(r, d, v, 0.95)
    r[3:], v[2:] = 100.0, 100.0
    np.testing.assert_array_equal(lambda_returns(r, d, v, 0.95)[:3], before[:3])


def test_survival_weights_by_hand():
    continues = jnp.array([[1.0, 0.5], [0.5, 0.5], [0.0, 0.5]])
    got = survival_weights(continues, jnp.array([1.0, 0.0]))
    np.testing.assert_allclose(got, [[1.0, 0.0], [1.0, 0.0], [0.5, 0.0]])


def test_shapes_are_checked():
    with pytest.raises(AssertionError):
        lambda_returns(jnp.zeros((3, 2)), jnp.zeros((3, 2)), jnp.zeros((3, 1)), 0.9)
