"""An environment whose observation says which episode and step it belongs to."""

import os
import signal
import sys
import time
from dataclasses import dataclass

import gymnasium
import numpy as np
from gymnasium import spaces


class CountingEnv(gymnasium.Env):
    """Observation int32 [3]: seed, step in the episode, resets so far. Reward: step + action[0].

    An episode lasts 2 + seed % 3 steps; it terminates if the seed is even, else is truncated.
    """

    observation_space = spaces.Box(-(2**31), 2**31 - 1, (3,), np.int32)
    action_space = spaces.Box(-10.0, 10.0, (2,), np.float32)

    def __init__(self, fault: str = "", at_step: int = 2):
        if fault == "init":
            raise ValueError("fault: 'init' is not allowed here")
        self.fault, self.at_step, self.resets = fault, at_step, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if self.fault == "reset" and self.resets:
            raise OSError("no more tracks")
        self.seed, self.count, self.resets = seed, 0, self.resets + 1
        return self._observation(), {}

    def step(self, action):
        self.count += 1
        if self.count == self.at_step:
            self._fail()
        ends, odd = self.count >= 2 + self.seed % 3, bool(self.seed % 2)
        reward = self.count + float(action[0])
        info = {"frames": 3, "progress": self.count / 10, "lap_finished": ends}
        return self._observation(), reward, ends and not odd, ends and odd, info

    def _observation(self):
        return np.array([self.seed, self.count, self.resets], np.int32)

    def _fail(self):
        if self.fault == "step":
            raise ArithmeticError("wheel came off")
        if self.fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fault == "pipe":
            raise ConnectionResetError("the simulator hung up")
        if self.fault == "hang":
            time.sleep(60)
        if self.fault == "modules":
            raise RuntimeError(f"jax imported: {'jax' in sys.modules}")


@dataclass(frozen=True)
class MakeCounting:
    """Picklable maker of `CountingEnv`."""

    fault: str = ""
    at_step: int = 2

    def __call__(self):
        return CountingEnv(self.fault, self.at_step)


@dataclass(frozen=True)
class Numbered:
    """Episode i of environment e is seeded 100 e + i."""

    e: int

    def __call__(self, episode: int) -> int:
        return 100 * self.e + episode
