"""The environments that the settings of a run ask for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dreamer_jax.training.config import EnvConfig, RunConfig
from envs.make import EpisodeSeeds, MakeEnv
from envs.races import RaceStreams
from envs.vector import VectorEnv


def make_env(config: EnvConfig, **changes: Any) -> MakeEnv:
    """The environment of this configuration for one car, with some of its options changed."""
    options = {
        "action_repeat": config.action_repeat,
        "time_limit": config.time_limit,
        "idle_limit": config.idle_limit,
        "off_road_ends": config.off_road_ends,
        "backwards_ends": config.backwards_ends,
    }
    return MakeEnv(config.id, options | changes)


def make_race(config: EnvConfig, **changes: Any) -> MakeEnv:
    """Likewise with all its cars on one track."""
    options = {"cars": config.cars, "random_starts": config.random_starts}
    return MakeEnv("DreamerMultiCarRacing-v0", dict(make_env(config).kwargs) | options | changes)


def streams(config: RunConfig, seeds: Sequence[int]) -> VectorEnv | RaceStreams:
    """The environments of all learners, learner-major: each its own, or races of `env.cars`.

    A race is on the tracks that its first driver would have alone.
    """
    cars = config.env.cars
    tracks = [EpisodeSeeds(1024 * s + n) for s in seeds[::cars] for n in range(config.envs)]
    if cars == 1:
        return VectorEnv(make_env(config.env), tracks)
    return RaceStreams(make_race(config.env), tracks, groups=len(seeds) // cars)
