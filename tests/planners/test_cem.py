"""The cross-entropy method: its refit by hand, and known optima."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer_jax.planners.cem import Belief, cem, refit, standard

KEY = jax.random.key(0)


def test_refit_by_hand():
    actions = jnp.array([1.0, 2.0, 3.0, 10.0, 20.0]).reshape(5, 1, 1)
    belief = refit(actions, jnp.array([5.0, 4.0, 6.0, jnp.nan, -1.0]), top=3)
    assert belief.mean.shape == (1, 1) and belief.mean[0, 0] == 2.0
    assert belief.std[0, 0] == pytest.approx((2 / 3) ** 0.5)  # of 1, 2, 3


def test_the_best_sequence_of_a_known_score():
    best = jnp.array([[0.3, -0.9], [2.0, 0.0], [-0.5, 0.7]])  # 2.0 lies outside of the bounds

    def score(actions):
        return -jnp.sum(jnp.square(actions - best), axis=(1, 2))

    belief = jax.jit(lambda key: cem(score, key, standard(3, 2), 15))(KEY)
    np.testing.assert_allclose(belief.mean, jnp.clip(best, -1, 1), atol=0.02)
    assert belief.std.max() < 0.05


def lqr(a, b, q, r, horizon, x0):
    """The optimal controls of x' = a x + b u with costs x'Qx + r u^2, by the Riccati recursion."""
    p, gains = q, []
    for _ in range(horizon):
        gain = np.linalg.solve(r + b.T @ p @ b, b.T @ p @ a)
        p = q + a.T @ p @ (a - b @ gain)
        gains.append(gain)
    x, controls = x0, []
    for gain in reversed(gains):
        u = -gain @ x
        controls.append(u)
        x = a @ x + b @ u
    return np.array(controls)


def test_the_optimal_control_of_a_double_integrator():
    """On the true model: a mass that is to stop at the origin."""
    a, b = np.array([[1.0, 0.2], [0.0, 1.0]]), np.array([[0.0], [0.2]])
    q, r, horizon, x0 = np.diag([1.0, 0.1]), np.array([[0.3]]), 12, np.array([0.5, -0.2])
    want = lqr(a, b, q, r, horizon, x0)
    assert np.abs(want).max() < 1  # within the bounds

    def score(actions):
        def step(x, u):
            x = x @ a.T + u @ b.T
            return x, jnp.sum(x @ q * x, -1) + r[0, 0] * jnp.sum(u * u, -1)

        start = jnp.broadcast_to(jnp.array(x0), (len(actions), 2))
        return -jax.lax.scan(step, start, actions.swapaxes(0, 1))[1].sum(axis=0)

    plan = jax.jit(lambda key: cem(score, key, standard(horizon, 1), 60, 2000, 200))(KEY).mean
    costs = [float(-score(jnp.asarray(u)[None])[0]) for u in (want, plan, 0 * want)]
    assert costs[0] <= costs[1] + 1e-6  # nothing beats the optimum
    assert costs[1] < costs[0] + 1e-3 * (costs[2] - costs[0])
    assert plan[0, 0] == pytest.approx(want[0, 0], abs=0.05)


def test_many_plans_at_once_are_those_of_each_alone():
    goals = jnp.array([-0.5, 0.1, 0.8])

    def plan(key, goal):
        return cem(lambda u: -jnp.abs(u - goal).sum((1, 2)), key, standard(2, 1), 5, 200, 20).mean

    keys = jax.random.split(KEY, 3)
    together = jax.vmap(plan)(keys, goals)
    for i in range(3):
        np.testing.assert_allclose(together[i], plan(keys[i], goals[i]), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(together[:, 0, 0], goals, atol=0.1)


def test_a_scan_is_the_loop():
    def score(u):
        return -jnp.square(u - 0.4).sum((1, 2))

    belief = Belief(jnp.zeros((2, 1)), jnp.ones((2, 1)))
    for key in jax.random.split(KEY, 4):
        noise = jax.random.normal(key, (50, 2, 1))
        actions = jnp.clip(belief.mean + belief.std * noise, -1, 1)
        order = np.argsort(-np.asarray(score(actions)))[:5]
        belief = Belief(actions[order].mean(0), actions[order].std(0))
    got = cem(score, KEY, standard(2, 1), 4, 50, 5)
    np.testing.assert_allclose(got.mean, belief.mean, rtol=1e-5)
    np.testing.assert_allclose(got.std, belief.std, rtol=1e-4)


@pytest.mark.parametrize("top", [0, 11])
def test_an_impossible_top_is_refused(top):
    with pytest.raises(ValueError, match="top="):
        cem(lambda u: u.sum((1, 2)), KEY, standard(2, 1), 1, 10, top)
