"""Environments that take their time, for ever or for a while."""

import time
from dataclasses import dataclass

from counting_env import CountingEnv


class HangingEnv(CountingEnv):
    """Sleeps `seconds` in `place` ("start", "reset", "step"), on seeds from `first_seed` on."""

    def __init__(self, place: str, seconds: float, first_seed: int):
        super().__init__()
        self.place, self.seconds, self.first_seed = place, seconds, first_seed
        self.seed = first_seed
        self._sleep("start")

    def reset(self, *, seed=None, options=None):
        result = super().reset(seed=seed)
        self._sleep("reset")
        return result

    def step(self, action):
        self._sleep("step")
        return super().step(action)

    def _sleep(self, place):
        if place == self.place and self.seed >= self.first_seed:
            time.sleep(self.seconds)


@dataclass(frozen=True)
class MakeHanging:
    """Picklable maker of `HangingEnv`."""

    place: str
    seconds: float = 1e6
    first_seed: int = 0

    def __call__(self):
        return HangingEnv(self.place, self.seconds, self.first_seed)
