"""Frames to learn from: a car on the road and at speed, on tracks kept apart for test."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ddim_jax import npz
from dreamer_jax.errors import UserError
from envs import RACE
from envs.drivers import TrackDriver
from envs.make import HELD_OUT, EpisodeSeeds, MakeEnv

SLOWEST = 5.0  # units/s; slower frames are kept in the first second of a track only
FRAME = (96, 96, 3)  # of every race
PER_SECOND = 50  # frames that the race simulates; a decision spans some of them
PER_TRACK = 40  # most frames of one episode
TEST_TRACKS = HELD_OUT // 2  # test frames come from the held-out seeds from here on


class TrackPolicy:
    """`TrackDriver` with another speed and another wobble on each track; needs no pictures."""

    sees = False
    env = MakeEnv(RACE)

    def begin(self, rng: np.random.Generator) -> None:
        """A new episode."""
        self._driver = TrackDriver(rng.uniform(30, 100), rng.uniform(0, 0.6), rng.integers(2**31))

    def act(self, env: Any, image: np.ndarray) -> np.ndarray:
        """The next action, float32 [2]."""
        return self._driver.act(env)


def collect(
    number: int,
    env: MakeEnv,
    policy: Any,
    seed: int,
    test: bool,
    progress: Callable[[int], None] = lambda n: None,
    stop: Callable[[], bool] = lambda: False,
) -> np.ndarray | None:
    """Frames uint8 [number, H, W, 3] of `policy` driving `env`, a few decisions apart.

    Training tracks are those of `EpisodeSeeds`; with `test`, held-out ones. A frame is kept when
    a wheel is on the road and the car moves, or in the first second of an episode. None if `stop`,
    asked before every episode, says so. Raises UserError when the held-out tracks do not suffice.
    """
    seeds = EpisodeSeeds(seed + 2**20) if not test else lambda i: TEST_TRACKS + i
    rng = np.random.default_rng([seed, int(test)])
    frames: list[np.ndarray] = []
    episode = 0
    with contextlib.closing(env()) as game:
        while len(frames) < number:
            if stop():
                return None
            if test and episode >= HELD_OUT - TEST_TRACKS:
                raise UserError(
                    "--test-frames is larger than the held-out tracks can give; lower it"
                )
            room = min(PER_TRACK, number - len(frames))
            frames += _episode(game, policy, seeds(episode), rng, room)
            episode += 1
            progress(len(frames))
    return np.stack(frames)


def _episode(game: Any, policy: Any, seed: int, rng, room: int) -> list[np.ndarray]:
    """At most `room` frames of one track."""
    image, _ = game.reset(seed=seed)
    racing = game.unwrapped
    policy.begin(rng)
    frames: list[np.ndarray] = []
    gap, decisions, ended = int(rng.integers(0, 8)), 0, False
    while not ended and len(frames) < room:
        action = policy.act(game, image)
        draw = policy.sees or gap == 0
        if draw:
            image, _, terminated, truncated, _ = racing.step(action)
        else:
            _, terminated, truncated, _ = racing.simulate(action)
        decisions += 1
        ended = terminated or truncated
        if gap == 0:
            if _worth_keeping(racing.car, decisions * racing.action_repeat / PER_SECOND):
                frames.append(np.array(image))
            gap = int(rng.integers(3, 8))
        gap -= 1
    return frames


def _worth_keeping(car: Any, seconds: float) -> bool:
    on_road = any(wheel.tiles for wheel in car.wheels)
    moving = math.hypot(*car.hull.linearVelocity) > SLOWEST
    return on_road and (moving or seconds < 1.0)


def save_frames(path: Path, train: np.ndarray, test: np.ndarray | None) -> None:
    """The sets, uint8 [n, H, W, 3], as one pickle-free file, written whole or not at all.

    test: None while it is still to be collected.
    """
    npz.write(path, train=train, **({} if test is None else {"test": test}))


def load_frames(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """What `save_frames` wrote. Raises UserError when it cannot be read."""
    try:
        arrays = npz.read(path)
        return arrays["train"], arrays.get("test")
    except (OSError, KeyError, ValueError) as error:
        raise UserError(
            f"cannot read the frames in {path} ({error}); delete the file to collect them again"
        ) from error
