"""The losses that every world model of the Dreamer family shares, by hand."""

from math import exp, log
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from dreamer_jax.ops.heads import gaussian_head
from dreamer_jax.types import Transition
from dreamer_jax.world_models.model import WorldModel

# Networks that answer their one weight, whatever they are shown.
ALWAYS = SimpleNamespace(
    apply=lambda weight, features: jnp.full((*features.shape[:-1], 1), weight),
)
BLIND = SimpleNamespace(
    apply=lambda weight, features: {"vector": jnp.full((len(features), 1), weight)}
)
WORLD = WorldModel(None, None, BLIND, ALWAYS, ALWAYS, gaussian_head(), fold=1, error_scale=0.5)
ENDS = np.zeros((4, 3), bool)
ENDS[3, 0] = ENDS[1, 2] = ENDS[2, 1] = True


def losses(terminal, **options):
    """Of 12 records without reward, at each of which 0 is seen."""
    nothing = np.zeros((4, 3), np.float32)
    batch = Transition({"place": nothing[..., None]}, None, nothing, None, terminal)
    params = {"decoder": 3.0, "reward": 4.0, "cont": 2.0}
    return WORLD.losses(params, jnp.zeros((4, 3, 5)), batch, **options)


@pytest.mark.parametrize("gamma", [0.8, 1.0])
def test_continue_predicts_gamma_where_no_episode_ends_and_zero_where_one_does(gamma):
    """A logit of 2 costs log(1 + e^2) - 2 y where y is true; 3 of 12 records are ends."""
    loss = losses(ENDS, gamma=gamma)["loss/continue"]
    assert float(loss) == pytest.approx(log(1 + exp(2)) - 2 * gamma * 9 / 12, rel=1e-6)


def test_gamma_is_left_to_the_returns_unless_asked_for():
    assert losses(ENDS)["loss/continue"] == losses(ENDS, gamma=1.0)["loss/continue"]


def test_what_is_seen_weighs_by_its_scale_and_the_reward_by_its_head():
    """Errors of 3 and 4: half their squares."""
    got = losses(ENDS)
    assert set(got) == {"loss/vector", "loss/reward", "loss/continue"}
    assert float(got["loss/vector"]) == pytest.approx(0.5 * 3**2)
    assert float(got["loss/reward"]) == pytest.approx(0.5 * 4**2)
