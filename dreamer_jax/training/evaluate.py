"""Playing held-out episodes with a fixed policy."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dreamer_jax.training.config import EnvConfig
from dreamer_jax.training.environments import PLAIN, make_env
from dreamer_jax.training.learner import Learner
from envs.make import HeldOutSeeds
from envs.vector import EnvironmentDied, VectorEnv

MOST_PARALLEL = 10
MOST_FRAMES = 5000  # of the video


class Played(NamedTuple):
    """Results of n episodes of S learners, in the order of the track seeds."""

    returns: np.ndarray  # [S, n]
    laps: np.ndarray  # bool [S, n]
    progress: np.ndarray  # [S, n] visited fraction of the track
    frames: np.ndarray  # int [S, n]
    video: np.ndarray  # uint8 [T, H, W, 3], learner 0 on the first track; T = 0 without pictures


def evaluate(
    learner: Learner,
    carry: Any,
    state: Any,
    config: EnvConfig,
    keys: jax.Array,
    episodes: int,
    first_seed: int = 0,
    mode: str = "eval",
) -> Played:
    """Play tracks first_seed .. first_seed + episodes - 1 under the rules of `config`.

    Episodes are not cut short as in training: returns are those of the rules alone. Args: `carry`
    is the agent's fresh carry for n environments as a function of n (see `Agent.carry`).
    """
    parallel = min(episodes, MOST_PARALLEL)
    seeds = [HeldOutSeeds(first_seed + n, parallel) for n in range(parallel)]
    learners = keys.shape[0]
    make = make_env(config, **PLAIN)
    try:
        env = VectorEnv(make, seeds * learners, timeout=config.timeout)
    except (OSError, ValueError) as error:  # out of memory or files: they could be made before
        raise EnvironmentDied(f"environments cannot be started: {error}") from error
    with env:
        acting = jax.tree.map(lambda x: jnp.broadcast_to(x, (learners, *x.shape)), carry(parallel))
        game = _Game(env, learners, episodes)
        step = 0
        while game.active.any():
            lead = (learners, parallel)
            step_keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, step)
            action, acting = learner.act(
                state,
                acting,
                {name: x.reshape(*lead, *x.shape[1:]) for name, x in game.obs.items()},
                game.is_first.reshape(lead),
                game.active.reshape(lead),
                step_keys,
                mode=mode,
            )
            game.step(np.asarray(jax.device_get(action)).reshape(env.num_envs, -1))
            step += 1
    return game.result()


class _Game:
    """Shares n episodes of each learner out to its environments and keeps the scores."""

    def __init__(self, env: VectorEnv, learners: int, episodes: int) -> None:
        self.env, self.learners, self.episodes = env, learners, episodes
        number = env.num_envs
        lane = np.arange(number) % (number // learners)
        self.rounds = -(-(episodes - lane) * learners // number)  # the first ones have one more
        self.obs = {
            name: np.zeros((number, *box.shape), box.dtype)
            for name, box in env.observation_space.items()
        }
        self.is_first = np.zeros(number, bool)
        self.active = np.ones(number, bool)
        self.done = np.zeros(number, int)
        self.scores = np.zeros((number, self.rounds.max(), 4))  # return, lap, progress, frames
        self.video: list[np.ndarray] = []

    def step(self, actions: np.ndarray) -> None:
        record = self.env.step(actions, self.active).copy()
        self.obs, self.is_first = record.observation, record.is_first
        if self.done[0] == 0 and len(self.video) < MOST_FRAMES:
            self.video += frames(self.obs)
        for e in np.flatnonzero(self.active):
            score = self.scores[e, self.done[e]]
            score[0] += record.reward[e]
            score[3] += record.frames[e]
            if record.is_last[e]:
                score[1:3] = record.lap_finished[e], record.progress[e]
                self.done[e] += 1
        self.active = self.done < self.rounds

    def result(self) -> Played:
        # [S, parallel, rounds] -> [S, rounds * parallel], the order of the seeds
        table = self.scores.reshape(self.learners, -1, *self.scores.shape[1:])
        table = np.swapaxes(table, 1, 2).reshape(self.learners, -1, 4)[:, : self.episodes]
        return Played(
            returns=table[..., 0],
            laps=table[..., 1] > 0,
            progress=table[..., 2],
            frames=table[..., 3].astype(int),
            video=np.stack(self.video) if self.video else np.zeros((0, 1, 1, 3), np.uint8),
        )


def frames(obs: dict[str, np.ndarray]) -> list[np.ndarray]:
    """The picture of the first environment, uint8 [H, W, 3], if it gives one in grey or colour."""
    image = obs.get("image", np.zeros(0))
    if image.ndim != 4 or image.shape[-1] not in (1, 3):
        return []
    return [np.broadcast_to(image[0].copy(), (*image.shape[1:3], 3))]  # alone: not a batch's view
