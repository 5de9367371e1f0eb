"""A DLC-V1 as small as it can be, and a game for it: shared by the tests."""

from dataclasses import replace

import jax
import numpy as np

from dreamer_jax.agents.dlc_v1 import make_dlc_v1
from dreamer_jax.agents.dlc_v1_config import DLCConfig
from dreamer_jax.types import Spec, Transition

SPEC = Spec({"image": ((24, 24, 3), "uint8")}, 2)
CONFIG = DLCConfig(
    fold=12,
    encoder=((16, 1, 1),),
    embed=16,
    decoder_base=(2, 16),
    decoder=((432, 1, 1),),
    deter=16,
    stoch=4,
    hidden=16,
    prior_layers=2,
    head=16,
    head_layers=2,
    actor_layers=2,
    horizon=3,
    starts=16,
)
AGENT = make_dlc_v1(CONFIG, SPEC)
LENGTH, BATCH = 8, 6


@jax.jit
def update(state, batch, key, changes):
    """One update with other numbers in the settings, none of which needs another compilation."""
    return make_dlc_v1(replace(CONFIG, **changes), SPEC).update(state, batch, key)


def paint(x):
    """Positions in [-1, 1] -> images uint8 [..., 24, 24, 3]: white to the left of x."""
    white = np.arange(24) < (np.asarray(x)[..., None] + 1) * 12
    return np.broadcast_to(white[..., None, :, None] * np.uint8(255), (*np.shape(x), *SPEC.image))


def play(seed, length=LENGTH, batch=BATCH):
    """Random play [T, B]: action 0 moves x, action 1 does nothing, reward = -|x|."""
    rng = np.random.default_rng(seed)
    action = rng.uniform(-1, 1, (length, batch, 2)).astype(np.float32)
    is_first = np.zeros((length, batch), bool)
    is_first[0] = True
    action[0] = 0.0
    x = np.zeros((length, batch), np.float32)
    x[0] = rng.uniform(-1, 1, batch)
    for t in range(1, length):
        x[t] = np.clip(x[t - 1] + 0.5 * action[t, :, 0], -1, 1)
    reward = np.where(is_first, 0.0, -np.abs(x)).astype(np.float32)
    return Transition({"image": paint(x).copy()}, action, reward, is_first, np.zeros_like(is_first))
