"""Dictionary observations: what is joined with what, and what the losses add up."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer_jax.nn.blocks import MLP
from dreamer_jax.nn.vision import Decoder, DoublingDecoder, HalvingEncoder, fitted, halvings
from dreamer_jax.types import Spec
from dreamer_jax.world_models.senses import (
    SenseDecoder,
    SenseEncoder,
    nothing_seen,
    prepare,
    reconstruction_losses,
)

SPEC = Spec(
    {
        "near": ((16, 16, 3), "uint8"),
        "far": ((16, 16, 1), "uint8"),
        "speed": ((1,), "float32"),
        "place": ((2,), "float32"),
    },
    2,
)


def test_kinds_are_joined_by_name_and_scaled():
    obs = {
        "near": jnp.full((2, 16, 16, 3), 255, jnp.uint8),
        "far": jnp.full((2, 16, 16, 1), 51, jnp.uint8),
        "speed": jnp.full((2, 1), np.e - 1),
        "place": jnp.full((2, 2), -(np.e**2 - 1)),
    }
    kinds = prepare(obs)
    assert set(kinds) == {"image", "vector"}
    np.testing.assert_allclose(kinds["image"][0, 5, 7], [0.2, 1.0, 1.0, 1.0], rtol=1e-6)
    np.testing.assert_allclose(kinds["vector"], [[-2.0, -2.0, 1.0]] * 2, rtol=1e-6)
    assert prepare(obs, 4)["image"].shape == (2, 4, 4, 64)
    assert set(prepare({"speed": obs["speed"]})) == {"vector"}


def test_encoder_and_decoder_fit_each_other():
    kinds = prepare(nothing_seen(SPEC, (5,)))
    encoder = SenseEncoder({"image": HalvingEncoder(4), "vector": MLP(2, 8, 6)})
    embed, _ = jax.jit(encoder.init_with_output)(jax.random.key(0), kinds)
    assert embed.shape == (5, 4 * 4 * 8 + 6)
    decoder = SenseDecoder({"image": DoublingDecoder(4, (16, 16, 4)), "vector": MLP(2, 8, 3)})
    made, _ = jax.jit(decoder.init_with_output)(jax.random.key(0), embed)
    assert {k: v.shape for k, v in made.items()} == {k: v.shape for k, v in kinds.items()}


def test_losses_sum_over_an_observation_and_average_over_the_batch():
    truth = {"image": jnp.zeros((2, 4, 4, 1)), "vector": jnp.zeros((2, 3))}
    made = {"image": jnp.full((2, 4, 4, 1), 0.5), "vector": jnp.array([[1.0, 2, 0], [0, 0, 0]])}
    losses = reconstruction_losses(made, truth)
    assert losses == {"loss/image": 16 * 0.25, "loss/vector": 2.5}


def test_halvings():
    assert halvings(24, (64, 64)) == [
        (24, (32, 32)),
        (48, (16, 16)),
        (96, (8, 8)),
        (192, (4, 4)),
    ]
    assert [size for _, size in halvings(8, (96, 96))] == [(48, 48), (24, 24), (12, 12), (6, 6)]
    with pytest.raises(ValueError, match="cannot be halved"):
        halvings(8, (50, 50))
    with pytest.raises(ValueError, match="too small"):
        halvings(8, (6, 6))


@pytest.mark.parametrize("side", [8, 12, 16, 13])
def test_a_fitted_decoder_paints_to_the_border(side):
    """What the border shows is no copy of what lies within."""
    base, layers = fitted((2, 8), ((8, 2, 2), (8, 2, 2), (192, 1, 1)), (side, side, 4))
    assert base == (-(-side // 4), 8) and layers == ((8, 2, 2), (8, 2, 2), (4, 1, 1))
    decoder = Decoder(base, layers, (side, side, 4))
    made, _ = decoder.init_with_output(jax.random.key(0), jnp.ones((1, 4)))
    assert made.shape == (1, side, side, 4)
    for edge, inner in ((made[:, 0], made[:, 1]), (made[:, -1], made[:, -2])):
        assert not np.allclose(edge, inner)
    assert fitted((3, 8), ((8, 5, 2), (8, 6, 3)), (12, 9, 2)) == ((3, 8), ((8, 5, 2), (2, 6, 3)))
    # Between what a kernel smaller than the stride paints there are gaps, and none behind it.
    assert fitted((3, 8), ((8, 1, 2), (8, 4, 4)), (24, 24, 1)) == ((4, 8), ((8, 1, 2), (1, 4, 4)))


def test_the_convolutions_overfit_one_picture():
    """A decoder that cannot place pixels where they belong would stay at the mean."""
    truth = jax.random.uniform(jax.random.key(1), (1, 16, 16, 3))
    decoder = DoublingDecoder(8, (16, 16, 3))
    x = jnp.ones((1, 4))
    params = jax.jit(decoder.init)(jax.random.key(0), x)

    @jax.jit
    def step(params):
        loss, grads = jax.value_and_grad(
            lambda p: jnp.mean(jnp.square(decoder.apply(p, x) - truth))
        )(params)
        return jax.tree.map(lambda p, g: p - 2.0 * g, params, grads), loss

    for _ in range(150):
        params, loss = step(params)
    assert loss < 0.3 * jnp.var(truth)
