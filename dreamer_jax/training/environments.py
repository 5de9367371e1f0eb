"""The environments that the settings of a run ask for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dreamer_jax.training.config import EnvConfig, RunConfig
from dreamer_jax.training.rules import EPISODE_RULES
from dreamer_jax.types import Spec
from envs import MULTI_CAR_RACE, RACE
from envs.drivers import RandomDriver, SmoothDriver
from envs.make import EpisodeSeeds, MakeEnv
from envs.races import RaceStreams
from envs.records import entries
from envs.vector import VectorEnv

RULES = tuple(name.removeprefix("env.") for name in EPISODE_RULES)
# ends that evaluation keeps unless stock's rules are asked for
STOCK_ENDS = {"off_road_ends": False, "backwards_ends": False}
# What only training's episodes may have, as it is without: a new rule is one of these.
PLAIN = {name: getattr(EnvConfig(), name) for name in RULES if name not in STOCK_ENDS}
ACTIONS = {RACE: ("steer", "throttle")}  # names of the action's entries


def make_env(config: EnvConfig, **changes: Any) -> MakeEnv:
    """The environment of this configuration for one car, with some of its options changed.

    Rules of the races are left out of other environments, whose options are those of
    `envs.adapters.make`.

    Raises:
      ValueError: an option that the races have not, or the race of several cars by its own id.
    """
    if config.id == MULTI_CAR_RACE:
        raise ValueError(
            f"{config.id} has several drivers; use experiments/multi_car_racing.py --cars 2"
        )
    options = {"action_repeat": config.action_repeat, "time_limit": config.time_limit}
    views = {"pixels": config.pixels, "size": config.size}
    rules = {name: getattr(config, name) for name in ("steer_scale", *RULES)}
    if config.id == RACE:
        if given := [name for name, value in views.items() if value]:
            raise ValueError(f"--env.{given[0]} is not for {RACE}, which gives 96x96; leave it out")
        return MakeEnv(RACE, options | rules | changes)
    kept = {name: value for name, value in changes.items() if name not in rules}
    return MakeEnv(config.id, options | views | kept)


def make_race(config: EnvConfig) -> MakeEnv:
    """Likewise with all its cars on one track. Raises ValueError if it is no race."""
    if config.id != RACE:
        raise ValueError(f"--env.cars={config.cars} is for {RACE} alone, not {config.id}; use 1")
    options = {"cars": config.cars, "random_starts": config.random_starts}
    return MakeEnv(MULTI_CAR_RACE, dict(make_env(config).kwargs) | options)


def streams(config: RunConfig, seeds: Sequence[int]) -> VectorEnv | RaceStreams:
    """The environments of all learners, learner-major: each its own, or races of `env.cars`.

    A race is on the tracks that its first driver would have alone.
    """
    cars = config.env.cars
    tracks = [EpisodeSeeds(1024 * s + n) for s in seeds[::cars] for n in range(config.envs)]
    if cars == 1:
        return VectorEnv(make_env(config.env), tracks, timeout=config.env.timeout)
    groups = len(seeds) // cars
    return RaceStreams(make_race(config.env), tracks, groups, config.env.timeout)


def spec_of(env: Any) -> Spec:
    """What an agent must know of `env`: a Gymnasium environment, `VectorEnv` or `RaceStreams`."""
    named = entries(env.observation_space)
    obs = {name: (tuple(box.shape), box.dtype.name) for name, box in named.items()}
    return Spec(obs, env.action_space.shape[0], getattr(env, "discrete", False))


def make_driver(config: RunConfig, spec: Spec, seed: int) -> SmoothDriver | RandomDriver:
    """Who acts before training starts: on the races a driver, elsewhere chance."""
    if config.env.id == RACE:
        return SmoothDriver(config.envs, seed, config.env.steer_scale)
    return RandomDriver(config.envs, seed, spec.action, spec.discrete)
