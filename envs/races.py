"""Races as environments of several streams, and as streams of one car each."""

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from envs.multi_car_racing import MultiCarRacing
from envs.records import Record
from envs.vector import VectorEnv
from envs.worker import PLAYERS


class RaceEnv(gymnasium.Env):
    """MultiCarRacing as one Gymnasium environment of C cars; takes its options as keywords.

    Observation: uint8 [C, 96, 96, 3]. Action: float32 [C, 2]; rows of ended cars are not looked at.

    `info`: arrays [C] `given` (bool: the car was live in this step, so its entries are new),
    `frames` (int), `progress`, `lap_finished` and `end` (str). A car that ended earlier has reward
    and frames 0; its observation, flags and the rest of `info` stay as they were at its end.

    Raises:
        ValueError: an option or an action as in MultiCarRacing.
        ResetNeeded: a step before the first reset or after the last car's end.
    """

    def __init__(self, **options: Any):
        self.race = MultiCarRacing(**options)
        self.metadata, self.render_mode = self.race.metadata, self.race.render_mode
        cars = len(self.race.possible_agents)
        setattr(self, PLAYERS, (cars,))
        shape = (cars, *self.race.observation_space("car_0").shape)
        self.observation_space = spaces.Box(0, 255, shape, np.uint8)
        self.action_space = spaces.Box(-1.0, 1.0, (cars, 2), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict | None = None
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Starts an episode -> (observation uint8 [C, 96, 96, 3], info)."""
        views, infos = self.race.reset(seed=seed, options=options)
        self._observation = np.stack(list(views.values()))
        self._infos = [info | {"given": True} for info in infos.values()]
        self._reward = np.zeros(len(infos))
        self._terminated, self._truncated = np.zeros((2, len(infos)), bool)
        return self._observation.copy(), self._info()

    def step(self, actions: np.ndarray) -> tuple:
        """float32 [C, 2] -> (observation, reward [C], terminated [C], truncated [C], info)."""
        results = self._decide(actions, draws=True)
        return self._observation.copy(), *results

    def simulate(self, actions: np.ndarray) -> tuple:
        """`step` without drawing: float32 [C, 2] -> (reward, terminated, truncated, info)."""
        return self._decide(actions, draws=False)

    def _decide(self, actions: np.ndarray, draws: bool):
        agents, actions = self.race.possible_agents, np.asarray(actions, np.float32)
        if actions.shape != self.action_space.shape:
            raise ValueError(
                f"actions: shape is {actions.shape}; pass {self.action_space.shape}, "
                "[steer, throttle/brake] for every car."
            )
        results = self.race.decide(dict(zip(agents, actions, strict=True)), draws)
        views, rewards, terminations, truncations, infos = results
        for car, agent in enumerate(agents):
            self._infos[car] |= {"frames": 0} | infos.get(agent, {}) | {"given": agent in infos}
            self._reward[car] = rewards.get(agent, 0.0)
            self._terminated[car] = terminations.get(agent, self._terminated[car])
            self._truncated[car] = truncations.get(agent, self._truncated[car])
            self._observation[car] = views.get(agent, self._observation[car])
        values = (self._reward, self._terminated, self._truncated)
        return *(value.copy() for value in values), self._info()

    def _info(self) -> dict[str, np.ndarray]:
        return {name: np.array([i[name] for i in self._infos]) for name in self._infos[0]}

    def render(self) -> np.ndarray | None:
        """The view from above, uint8 [600, 600, 3], with the render mode "rgb_array", else None."""
        return self.race.render()


class RaceStreams:
    """R races of C cars as E = R * C streams, to be used like a `VectorEnv` of E environments.

    Races come in groups of N with the same C drivers: stream (g, c, n), in that order, is car c of
    race n of group g. A race goes on while any of its cars is active; one that has ended early
    gets no record (`given`) until the next race begins for all.

    Args:
        make_env: makes a `RaceEnv`, see `VectorEnv`.
        seeds: one function per race, episode -> seed; R = groups * N of them.
        groups: see above.
        timeout: seconds, see `VectorEnv`.
    """

    def __init__(
        self,
        make_env: Callable[[], gymnasium.Env],
        seeds: Sequence[Callable],
        groups: int,
        timeout: float = 120.0,
    ):
        self._races = VectorEnv(make_env, seeds, timeout=timeout)
        inner = self._races
        self.cars = inner.action_space.shape[0]
        self._lead = (groups, len(seeds) // groups, self.cars)
        self.num_envs = len(seeds) * self.cars
        boxes = inner.observation_space.items()
        self.observation_space = spaces.Dict(
            {name: spaces.Box(x.low[0], x.high[0], dtype=x.dtype) for name, x in boxes}
        )
        self.action_space = spaces.Box(-1.0, 1.0, inner.action_space.shape[1:], np.float32)
        self.discrete = inner.discrete

    @property
    def record(self) -> Record:
        """As of `VectorEnv`, but a copy."""
        return self._by_stream(self._races.record)

    def step(
        self,
        actions: np.ndarray,
        active: np.ndarray | None = None,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> Record:
        """float32 [E, A], bool [E] (None: all) -> the records, see `VectorEnv.step`."""
        active = np.ones(self.num_envs, bool) if active is None else np.asarray(active, bool)
        racing = self._by_race(active).any(axis=1)
        return self._by_stream(self._races.step(self._by_race(actions), racing, meanwhile))

    def snapshot(self) -> list[dict[str, Any]]:
        """Per race, see `VectorEnv.snapshot`."""
        return self._races.snapshot()

    def restore(self, snapshot: Sequence[dict[str, Any]]) -> Record:
        """See `VectorEnv.restore`."""
        return self._by_stream(self._races.restore(snapshot))

    def close(self) -> None:
        self._races.close()

    def _by_stream(self, record: Record) -> Record:
        """[R, C, ...] -> [E, ...]"""
        return record.map(
            lambda x: x.reshape(*self._lead, *x.shape[2:]).swapaxes(1, 2).reshape(-1, *x.shape[2:])
        )

    def _by_race(self, x: np.ndarray) -> np.ndarray:
        """[E, ...] -> [R, C, ...]"""
        groups, races, cars = self._lead
        x = np.asarray(x).reshape(groups, cars, races, *x.shape[1:])
        return x.swapaxes(1, 2).reshape(-1, cars, *x.shape[3:])
