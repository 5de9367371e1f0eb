"""An environment that shows one space of every kind."""

from dataclasses import dataclass

import gymnasium
import numpy as np
from gymnasium import spaces

from envs.adapters import Adapted


class DictEnv(gymnasium.Env):
    """Counts its steps k in every entry; rewards k; terminates after `length` steps.

    Action: float64 [2, 2], of which the first row is bounded and the last entry is not.
    """

    observation_space = spaces.Dict(
        {
            "image": spaces.Box(0, 255, (4, 6, 3), np.uint8),
            "grey": spaces.Box(0, 255, (4, 6), np.uint8),
            "arm": spaces.Dict({"angle": spaces.Box(-9, 9, (2, 2), np.float64)}),
            "level": spaces.Discrete(4, start=3),
            "doors": spaces.MultiBinary(3),
            "dials": spaces.MultiDiscrete([2, 3]),
            "pair": spaces.Tuple([spaces.Box(-9, 9, (), np.float32), spaces.Discrete(2)]),
        }
    )
    low, high = [[0.0, -3.0], [-1.0, -np.inf]], [[10.0, -1.0], [1.0, np.inf]]
    action_space = spaces.Box(np.array(low), np.array(high), dtype=np.float64)

    def __init__(self, length: int = 5):
        self.length = length

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return self._observation(), {}

    def step(self, action):
        self.action = action
        self.count += 1
        ends = self.count >= self.length
        return self._observation(), float(self.count), ends, False, {"frames": "of another kind"}

    def _observation(self):
        k = self.count
        return {
            "image": np.full((4, 6, 3), k, np.uint8),
            "grey": np.full((4, 6), 10 * k, np.uint8),
            "arm": {"angle": np.array([[k, k + 0.25], [-k, 0.0]])},
            "level": 3 + k % 4,
            "doors": np.array([k % 2, 1, 0], np.int8),
            "dials": np.array([k % 2, k % 3]),
            "pair": (np.float32(k / 2), k % 2),
        }


@dataclass(frozen=True)
class MakeDict:
    """Picklable maker of an adapted `DictEnv`."""

    length: int = 5

    def __call__(self):
        return Adapted(DictEnv(self.length))
