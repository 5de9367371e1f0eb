"""Frames to learn from: a car on the road and at speed, on tracks kept apart for test."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dreamer_jax.errors import UserError
from envs import RACE
from envs.drivers import TrackDriver
from envs.make import HELD_OUT, EpisodeSeeds, MakeEnv

SLOWEST = 5.0  # units/s; slower frames are kept in the first seconds of a track only
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
) -> np.ndarray:
    """Frames uint8 [number, H, W, 3] of `policy` driving `env`, a few decisions apart.

    Training tracks are those of `EpisodeSeeds`; with `test`, held-out ones. A frame is kept when
    a wheel is on the road and the car moves, or in the first second of an episode.
    """
    seeds = EpisodeSeeds(seed + 2**20) if not test else lambda i: TEST_TRACKS + i
    rng = np.random.default_rng([seed, int(test)])
    game = env()
    frames: list[np.ndarray] = []
    episode = 0
    while len(frames) < number:
        if test and episode >= HELD_OUT - TEST_TRACKS:
            raise UserError("--test-frames is larger than the held-out tracks can give; lower it")
        room = min(PER_TRACK, number - len(frames))
        frames += _episode(game, policy, seeds(episode), rng, room)
        episode += 1
        progress(len(frames))
    game.close()
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
            if _worth_keeping(racing.car, decisions):
                frames.append(np.array(image))
            gap = int(rng.integers(3, 8))
        gap -= 1
    return frames


def _worth_keeping(car: Any, decisions: int) -> bool:
    on_road = any(wheel.tiles for wheel in car.wheels)
    moving = math.hypot(*car.hull.linearVelocity) > SLOWEST
    return on_road and (moving or decisions < 13)


def save_frames(path: Path, train: np.ndarray, test: np.ndarray) -> None:
    """Both sets as one pickle-free file, written whole or not at all."""
    temporary = path.with_suffix(".tmp.npz")
    np.savez_compressed(temporary, train=train, test=test)
    temporary.replace(path)


def load_frames(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """What `save_frames` wrote. Raises UserError when it cannot be read."""
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            return file["train"], file["test"]
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(
            f"cannot read the frames in {path} ({error}); delete the file to collect them again"
        ) from error
