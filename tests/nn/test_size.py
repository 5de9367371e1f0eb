"""A norm divides by the size of what it gets; the networks must see sizes all the same.

Without a bias before the norm, 0.2 and 0.8 times one input are the same to a network for ever.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dreamer_jax.nn.blocks import MLP, NormSiLU, RMSNormSiLU
from dreamer_jax.nn.vision import Encoder, HalvingEncoder
from dreamer_jax.world_models.discrete_rssm import DiscreteRSSM, JoinedRSSM
from dreamer_jax.world_models.rssm import RSSM

SIZES = jnp.linspace(0.1, 1.0, 10)
NORMS = {"layer": NormSiLU, "rms": RMSNormSiLU}


def learn_size(module, method, *inputs, steps=300):
    """Squared error of a linear readout that guesses SIZES, in variances of them."""
    target = (SIZES - SIZES.mean()) / SIZES.std()
    params = module.init(jax.random.key(0), *inputs, method=method)
    out = module.apply(params, *inputs, method=method)
    readout = (jnp.zeros(out.shape[-1]), jnp.zeros(()))
    optimiser = optax.adam(1e-2)

    def loss(learnt):
        params, (weight, bias) = learnt
        seen = module.apply(params, *inputs, method=method)
        return jnp.mean((seen @ weight + bias - target) ** 2)

    def step(carry, _):
        learnt, opt = carry
        value, grads = jax.value_and_grad(loss)(learnt)
        updates, opt = optimiser.update(grads, opt)
        return (optax.apply_updates(learnt, updates), opt), value

    learnt = (params, readout)
    _, losses = jax.lax.scan(step, (learnt, optimiser.init(learnt)), None, length=steps)
    assert np.isfinite(losses).all()
    return float(losses[-1])


@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
def test_of_a_vector(norm):
    direction = jnp.array([0.6, -0.8, 0.3])
    assert learn_size(MLP(3, 16, 8, 1.0, norm), None, SIZES[:, None] * direction) < 0.05


@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
def test_of_an_action_in_categorical_dynamics(norm):
    rssm = DiscreteRSSM(deter=16, latents=3, classes=4, hidden=16, blocks=2, norm=norm)
    still = jnp.zeros((10, 16)), jnp.zeros((10, 12))
    action = SIZES[:, None] * jnp.array([0.9, -0.5])
    assert learn_size(rssm, rssm.recur, *still, action) < 0.05


@pytest.mark.parametrize(("kind", "seen"), [(DiscreteRSSM, False), (JoinedRSSM, True)])
def test_joined_with_the_latent_an_action_has_a_size_from_the_start(kind, seen):
    """Before any training: the gradient along the action itself."""
    rssm = kind(deter=16, latents=3, classes=4, hidden=16, blocks=2, norm=NormSiLU)
    action, latent = jnp.array([[0.5, -0.3]]), jnp.eye(12)[:1]
    inputs = jnp.zeros((1, 16)), latent, action
    params = rssm.init(jax.random.key(0), *inputs, method=rssm.recur)

    def along(size):
        return rssm.apply(params, *inputs[:2], size * action, method=rssm.recur)

    _, slope = jax.jvp(along, (jnp.ones(()),), (jnp.ones(()),))
    assert (np.abs(slope).max() > 1e-2) == seen


def test_of_an_action_in_gaussian_dynamics():
    rssm = RSSM(deter=16, stoch=4, hidden=16, posterior_layers=2, prior_layers=2, min_std=0.1)
    action = SIZES[:, None] * jnp.array([0.9, -0.5])
    assert learn_size(rssm, rssm.recur, jnp.zeros((10, 16)), jnp.zeros((10, 4)), action) < 0.05


@pytest.mark.parametrize(
    "encoder", [Encoder(((8, 4, 2), (8, 3, 2)), 16), HalvingEncoder(8)], ids=["folded", "halving"]
)
def test_of_the_light_of_an_even_picture(encoder):
    picture = 0.5 + 0.5 * SIZES[:, None, None, None] * jnp.ones((10, 16, 16, 3))
    assert learn_size(encoder, None, picture) < 0.05
