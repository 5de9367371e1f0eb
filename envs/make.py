"""What a worker process is given: how to make an environment, and which seeds it plays."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np

from envs import MULTI_CAR_RACE, RACE, adapters

HELD_OUT = 10_000  # episode seeds below are for evaluation only; training never draws them


@dataclass(frozen=True)
class MakeEnv:
    """Picklable `make_env`: a registered id and its keyword arguments.

    The races of this package are made as they are, all else through `envs.adapters.make`.
    """

    env_id: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self) -> gymnasium.Env:
        """Raises whatever the environment's constructor raises, ValueError for a bad option."""
        if self.env_id not in (RACE, MULTI_CAR_RACE):
            return adapters.make(self.env_id, **self.kwargs)
        return gymnasium.make(self.env_id, disable_env_checker=True, **self.kwargs)


@dataclass(frozen=True)
class EpisodeSeeds:
    """Training seeds: episode i -> a seed in [HELD_OUT, 2**31), the same for the same `base`.

    Hashing (base, i) instead of adding them keeps the tracks of neighbouring bases apart: with
    base + i, environment 0's second track would be environment 1's first.

    Raises:
        ValueError: base is negative.
    """

    base: int

    def __post_init__(self):
        if self.base < 0:
            raise ValueError(f"EpisodeSeeds: base is {self.base}; use a number from 0 upwards.")

    def __call__(self, episode: int) -> int:
        word = np.random.SeedSequence([self.base, episode]).generate_state(1, np.uint64)[0]
        return HELD_OUT + int(word) % (2**31 - HELD_OUT)


@dataclass(frozen=True)
class HeldOutSeeds:
    """Evaluation seeds: episode i -> first + stride * i, which must lie in [0, HELD_OUT).

    N environments share the first tracks out with first = e, stride = N for environment e.

    Raises:
        ValueError: first, stride or the seed asked for is out of range.
    """

    first: int
    stride: int = 1

    def __post_init__(self):
        if self.stride < 1:
            raise ValueError(f"HeldOutSeeds: stride is {self.stride}; use at least 1.")
        self(0)

    def __call__(self, episode: int) -> int:
        seed = self.first + self.stride * episode
        if not 0 <= seed < HELD_OUT:
            raise ValueError(
                f"HeldOutSeeds: seed {seed} (episode {episode}) is outside [0, {HELD_OUT}); "
                "evaluate fewer episodes or choose a smaller first seed or stride."
            )
        return seed
