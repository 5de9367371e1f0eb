import jax
import jax.numpy as jnp
import numpy as np

from dreamer_jax.imagination import rollout
from dreamer_jax.world_models.rssm import RSSM, imagine_step, initial_state, observe, observe_step

T, B, E, A = 7, 3, 5, 2
PART = RSSM(deter=6, stoch=4, hidden=8, posterior_layers=2, prior_layers=2, min_std=0.1)


def setup(seed=0):
    k = jax.random.split(jax.random.key(seed), 3)
    params = PART.init(k[0], jnp.zeros((1, E)), jnp.zeros((1, A)))
    return params, jax.random.normal(k[1], (T, B, E)), jax.random.uniform(k[2], (T, B, A))


def run(params, embed, action, is_first, key):
    start = initial_state(PART, (embed.shape[1],))
    return observe(PART, params, embed, action, is_first, start, key)


def test_observe_equals_a_python_loop():
    params, embed, action = setup()
    is_first = jnp.zeros((T, B), bool).at[0].set(True).at[3, 1].set(True)
    key = jax.random.key(5)
    states, _ = run(params, embed, action, is_first, key)
    noise = jax.random.normal(key, (T, B, PART.stoch))
    state = initial_state(PART, (B,))
    for t in range(T):
        state = observe_step(PART, params, state, action[t], embed[t], is_first[t], noise[t])
        np.testing.assert_allclose(states.deter[t], state.deter, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(states.stoch[t], state.stoch, rtol=1e-5, atol=1e-6)


def test_a_reset_equals_two_separate_sequences():
    params, embed, action = setup(1)
    key, cut = jax.random.key(6), 4
    is_first = jnp.zeros((T, B), bool).at[0].set(True).at[cut].set(True)
    whole, _ = run(params, embed, action, is_first, key)
    noise = jax.random.normal(key, (T, B, PART.stoch))
    state = initial_state(PART, (B,))
    for t in range(cut, T):  # the second episode alone, with the same noise
        first = jnp.full((B,), t == cut)
        state = observe_step(PART, params, state, action[t], embed[t], first, noise[t])
    np.testing.assert_allclose(whole.deter[-1], state.deter, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(whole.mean[-1], state.mean, rtol=1e-5, atol=1e-6)


def test_nothing_leaks_across_a_reset():
    params, embed, action = setup(2)
    is_first = jnp.zeros((T, B), bool).at[0].set(True).at[4].set(True)

    def late(embed, action):
        return run(params, embed, action, is_first, jax.random.key(0))[0].stoch[4:].sum()

    g_embed, g_action = jax.grad(late, (0, 1))(embed, action)
    assert not g_embed[:4].any() and g_embed[4:].any()
    assert not g_action[:5].any() and g_action[5:].any()  # the action that led to the reset is void


def test_the_prior_does_not_see_the_present():
    params, embed, action = setup(3)
    is_first = jnp.zeros((T, B), bool).at[0].set(True)

    def prior_at(embed, t):
        return run(params, embed, action, is_first, jax.random.key(0))[1][0][t].sum()

    grad = jax.grad(prior_at)(embed, 3)
    assert grad[:3].any() and not grad[3:].any()


def test_rollout_equals_a_python_loop_and_carries_gradients():
    params, _, _ = setup(4)
    start = initial_state(PART, (B,))
    start = start.replace(stoch=jax.random.normal(jax.random.key(1), start.stoch.shape))

    def step(state, action, key):
        noise = jax.random.normal(key, state.stoch.shape)
        return imagine_step(PART, params, state, action, noise)

    def policy_for(weight):
        def policy(features, key):
            action = jnp.tanh(features[:, :A] * weight + jax.random.normal(key, (B, A)))
            return action, jnp.zeros(B)

        return policy

    key = jax.random.key(2)
    trajectory = rollout(step, policy_for(0.5), start, 5, key)
    assert trajectory.states.deter.shape == (6, B, PART.deter)
    state = start
    for t, k in enumerate(jax.random.split(key, 5)):
        k_policy, k_step = jax.random.split(k)
        action, _ = policy_for(0.5)(state.features, k_policy)
        state = step(state, action, k_step)
        np.testing.assert_allclose(trajectory.actions[t], action, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(
            trajectory.states.stoch[t + 1], state.stoch, rtol=1e-4, atol=1e-5
        )

    last = lambda w: rollout(step, policy_for(w), start, 5, key).states.deter[-1].sum()  # noqa: E731
    assert abs(jax.grad(last)(0.5)) > 0.0
