"""Both recurrent models behind the same calls."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer_jax.world_models.discrete_rssm import DiscreteRSSM
from dreamer_jax.world_models.dynamics import discrete_dynamics, gaussian_dynamics
from dreamer_jax.world_models.rssm import RSSM

KINDS = [
    gaussian_dynamics(RSSM(8, 4, 8, 2, 2, 0.1)),
    discrete_dynamics(DiscreteRSSM(8, 3, 4, 8, 2)),
]
KEY = jax.random.key(3)


@pytest.mark.parametrize("dynamics", KINDS, ids=["gaussian", "discrete"])
def test_the_calls_agree_with_each_other(dynamics):
    length, batch = 5, 2
    embed = jax.random.normal(KEY, (length, batch, 6))
    action = jax.random.uniform(KEY, (length, batch, 2))
    first = jnp.zeros((length, batch), bool).at[0].set(True)
    params = jax.jit(dynamics.module.init)(KEY, embed[0], action[0])
    observe, imagine = jax.jit(dynamics.observe), jax.jit(dynamics.imagine)
    states, prior = observe(params, embed, action, first, dynamics.initial((batch,)), KEY)
    assert states.features.shape == (length, batch, dynamics.size)
    # The first state needs no memory: filtering that one record gives the same deterministic part.
    inputs = (params, dynamics.initial((batch,)), action[0], embed[0], first[0], None)
    one, again = jax.jit(dynamics.filter)(*inputs), jax.jit(dynamics.filter)(*inputs)
    np.testing.assert_allclose(one.deter, states.deter[0], rtol=1e-5)
    # Without a key nothing is random, with one it is, and imagination has the prior's memory.
    np.testing.assert_array_equal(one.features, again.features)
    start = jax.tree.map(lambda x: x[1], states)
    drawn = [imagine(params, start, action[2], k) for k in jax.random.split(KEY, 20)]
    np.testing.assert_allclose(drawn[0].deter, states.deter[2], rtol=1e-5)
    assert any(np.any(d.stoch != drawn[0].stoch) for d in drawn)
    calm = imagine(params, start, action[2], None)
    np.testing.assert_allclose(calm.deter, drawn[0].deter, rtol=1e-5)
    assert jax.tree.leaves(prior)[0].shape[:2] == (length, batch)


def test_without_a_key_the_latent_is_the_most_probable():
    dynamics = KINDS[1]
    params = jax.jit(dynamics.module.init)(KEY, jnp.ones((2, 6)), jnp.ones((2, 2)))
    state = jax.jit(dynamics.imagine)(params, dynamics.initial((2,)), jnp.ones((2, 2)), None)
    stoch = state.stoch.reshape(state.logits.shape)
    np.testing.assert_array_equal(stoch.argmax(-1), state.logits.argmax(-1))
    np.testing.assert_array_equal(stoch.sum(-1), 1.0)
