"""Pictures about their mean: by hand, and what becomes of it in every agent."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer_jax.agents.dreamer_v1 import make_dreamer_v1
from dreamer_jax.agents.dreamer_v1_config import DreamerV1Config
from dreamer_jax.agents.dreamer_v2 import make_dreamer_v2
from dreamer_jax.agents.dreamer_v2_config import DreamerV2Config
from dreamer_jax.agents.dreamer_v3 import make_dreamer_v3
from dreamer_jax.agents.dreamer_v3_config import DreamerV3Config
from dreamer_jax.agents.planet import make_planet
from dreamer_jax.agents.planet_config import PlaNetConfig
from dreamer_jax.nn.centred import CentredDecoder, CentredEncoder, learnt, settled
from dreamer_jax.nn.conv import unfold
from dreamer_jax.types import Spec, Transition
from dreamer_jax.world_models import model

KEY = jax.random.key(3)
SPEC = Spec({"image": ((16, 16, 1), "uint8"), "speed": ((2,), "float32")}, 2)
TINY = dict(
    units=16, layers=1, deter=16, hidden=16, centre="mean", vision="folded", fold=4,
    encoder=((8, 1, 1),), embed=16, decoder_base=(4, 8), decoder=((16, 1, 1),),
)  # fmt: skip
GAUSSIAN = dict(stoch=4)
DREAMS = dict(horizon=2, last=2)
DISCRETE = dict(latents=2, classes=2, blocks=1)
AGENTS = {
    "v1": (make_dreamer_v1, DreamerV1Config(**TINY, **GAUSSIAN, **DREAMS)),
    "v2": (make_dreamer_v2, DreamerV2Config(**TINY, **DISCRETE, **DREAMS, weight_decay=0.1)),
    "v3": (make_dreamer_v3, DreamerV3Config(**TINY, **DISCRETE, **DREAMS)),
    "planet": (
        make_planet,
        PlaNetConfig(
            **TINY, **GAUSSIAN, plan_horizon=2, iterations=1, candidates=4, top=2, overshooting=2
        ),
    ),
}


class AsIs(nn.Module):
    """What comes in goes out."""

    def __call__(self, x):
        return x


def test_the_encoder_sees_the_difference_from_the_mean():
    x = jnp.array([0.0, 0.25, 1.0]).reshape(1, 1, 1, 3)
    encoder = CentredEncoder(AsIs())
    fresh = encoder.init(KEY, x)
    np.testing.assert_array_equal(encoder.apply(fresh, x), x)
    mean = jnp.array([0.0, 0.75, 0.5]).reshape(1, 1, 3)
    seen = encoder.apply({"mean": {"picture": mean}}, x)
    np.testing.assert_allclose(seen.ravel(), [0.5, 0.0, 1.0])


def test_the_decoder_adds_the_means_logits():
    logits = jnp.array([-3.0, 0.0, 0.0, 2.0, 0.0]).reshape(1, 1, 1, 5)
    painted = jax.nn.sigmoid(logits)
    decoder = CentredDecoder(AsIs())
    fresh = decoder.init(KEY, painted)
    np.testing.assert_allclose(decoder.apply(fresh, painted), painted, rtol=1e-6)
    mean = jnp.array([0.3, 0.3, 0.9, 0.6, 0.0])
    made = decoder.apply({"mean": {"picture": mean.reshape(1, 1, 5)}}, painted)
    bounded = jnp.clip(mean, 0.02, 0.98)
    want = jax.nn.sigmoid(logits.ravel() + jnp.log(bounded / (1 - bounded)))
    np.testing.assert_allclose(made.ravel(), want, rtol=1e-5)


def test_the_mean_moves_by_its_weight_and_has_no_gradient():
    pictures = jnp.array([0.2, 0.6]).reshape(2, 1, 1, 1)
    encoder = CentredEncoder(nn.Dense(1))
    fresh = encoder.init(KEY, pictures)
    moved = settled(fresh, pictures, 0.25)
    assert moved["mean"]["picture"].item() == pytest.approx(0.5 + 0.25 * (0.4 - 0.5))
    assert moved["params"] is fresh["params"]
    grads = jax.grad(lambda v: encoder.apply(v, pictures).sum())(moved)
    assert grads["mean"]["picture"].item() == 0.0
    assert np.any(grads["params"]["network"]["kernel"] != 0)
    plain = {"params": fresh["params"]}
    assert settled(plain, pictures, 0.25) is plain


def test_all_is_learnt_but_mean_pictures():
    """By the name of the collection: a weight's own name may have the word in it."""
    x = jnp.zeros((1, 2, 2, 1))
    params = {
        "encoder": CentredEncoder(nn.Dense(1)).init(KEY, x),
        "layers": (x, {"mean": {"a": x, "b": [x, x]}, "means": x}),
    }
    assert learnt(params) == {
        "encoder": {
            "mean": {"picture": False},
            "params": {"network": {"kernel": True, "bias": True}},
        },
        "layers": (True, {"mean": {"a": False, "b": [False, False]}, "means": True}),
    }


def batch(seed):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (4, 3, 16, 16, 1), np.uint8)
    obs = {"image": image, "speed": np.zeros((4, 3, 2), np.float32)}
    ends = np.zeros((4, 3), bool)
    return Transition(
        obs, np.zeros((4, 3, 2), np.float32), np.zeros((4, 3), np.float32), ends, ends
    )


@pytest.mark.parametrize("name", AGENTS)
def test_agents_settle_on_the_mean_of_their_first_updates(name, monkeypatch):
    """And stay there, though the optimiser has these leaves too."""
    monkeypatch.setattr(model, "SETTLED", 2)
    make, config = AGENTS[name]
    agent = make(config, SPEC)
    state = agent.init(KEY)
    batches = [batch(seed) for seed in range(3)]
    update = jax.jit(agent.update)
    for one in batches:
        state = update(state, one, KEY)[0]
    params = getattr(state, "params", None) or {"model": state.model}
    params = params.get("model", params)
    want = np.mean([one.obs["image"] for one in batches[:2]], axis=(0, 1, 2)) / 255.0
    for part in ("encoder", "decoder"):
        (mean,) = jax.tree.leaves(params[part]["mean"])
        np.testing.assert_allclose(unfold(mean, 4), want, atol=1e-6, err_msg=part)
