"""A trained agent as the driver that collects frames."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np

from dreamer_jax.errors import UserError
from dreamer_jax.ops.keys import named_key
from dreamer_jax.training.assess import load_agent
from dreamer_jax.training.config import check, from_dict
from dreamer_jax.training.environments import PLAIN, STOCK_ENDS, make_env
from dreamer_jax.training.run_folder import RunFolder
from envs import RACE


class AgentPolicy:
    """The newest checkpoint of the run in `path` (its first learner), acting with exploration.

    `env` makes the race that it was trained in: action repeat and steering, by stock's rules.
    Raises UserError when there is no run of the race or no whole checkpoint.
    """

    sees = True

    def __init__(self, path: Path, seed: int) -> None:
        with RunFolder.open(path, exclusive=False) as folder:
            config = from_dict(folder.load_config())
            if config.env.id != RACE:
                raise UserError(
                    f"--agent={path} was trained on {config.env.id}; give a run of {RACE}"
                )
            loaded = load_agent(folder.path, check(config))
        self.env = make_env(config.env, **PLAIN, **STOCK_ENDS)
        agent, self._state = loaded.agent, loaded.of(0)
        self._fresh = agent.carry(1)
        self._act = jax.jit(agent.act, static_argnames="mode")
        self._seed = named_key(jax.random.key(seed), "collect")

    def begin(self, rng: np.random.Generator) -> None:
        """A new episode, whose noise `rng` decides."""
        self._carry, self._first = self._fresh, True
        # Not a count over all episodes: test frames are the same with and without training's.
        self._key = jax.random.fold_in(self._seed, int(rng.integers(2**31)))
        self._steps = 0

    def act(self, env: Any, image: np.ndarray) -> np.ndarray:
        """The next action, float32 [2], for the picture uint8 [H, W, 3]."""
        key = jax.random.fold_in(self._key, self._steps)
        first = np.array([self._first])
        action, self._carry = self._act(
            self._state, self._carry, {"image": image[None]}, first, key, mode="train"
        )
        self._first, self._steps = False, self._steps + 1
        return np.asarray(action[0])
