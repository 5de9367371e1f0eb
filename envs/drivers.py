"""Scripted drivers: one that sees nothing, for the first experience; one that knows the track;
and chance, for other environments than the races.
"""

import math
from typing import Any

import numpy as np

DECISIONS_PER_SECOND = 12.5  # 50 frames/s, repeat 4


class SmoothDriver:
    """Smooth random driving, blind to what the cars do; for the first episodes of a replay.

    Steering is an AR(1) process that returns to the middle; the throttle opens for the launch,
    then wanders around a small positive mean with a brake now and then. How bold, how quick and
    how fast is drawn anew for every episode, so some stay on the road and some leave it at speed.
    The same seed and the same `is_first`, `active` give the same actions. The cars steer the same
    at any `steer_scale` of the races.
    """

    def __init__(self, num_envs: int, seed: int, steer_scale: float = 1.0):
        self.num_envs = num_envs
        self.steer_scale = steer_scale
        self._rngs = [np.random.default_rng([seed, e]) for e in range(num_envs)]
        self._styles = [_draw_style(rng) for rng in self._rngs]

    def act(self, is_first: np.ndarray, active: np.ndarray | None = None) -> np.ndarray:
        """Flags of the records last seen, bool [E] each (None: all) -> actions float32 [E, 2].

        Inactive environments get zeros and their processes stand still.
        """
        active = np.ones(self.num_envs, bool) if active is None else active
        actions = np.zeros((self.num_envs, 2), np.float32)
        for e in np.flatnonzero(active):
            if is_first[e]:
                self._styles[e] = _draw_style(self._rngs[e])
            actions[e] = _advance(self._styles[e], self._rngs[e])
        actions[:, 0] = np.clip(actions[:, 0] / self.steer_scale, -1.0, 1.0)
        return actions

    def get_state(self) -> dict[str, Any]:
        """All that decides the actions to come, as JSON types."""
        return {
            "rngs": [rng.bit_generator.state for rng in self._rngs],
            "styles": [dict(style) for style in self._styles],
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues from what `get_state` gave.

        Raises:
            ValueError: the state is of another number of environments.
        """
        _check_number(state, self.num_envs)
        for rng, saved in zip(self._rngs, state["rngs"], strict=True):
            rng.bit_generator.state = saved
        self._styles = [dict(style) for style in state["styles"]]


def _check_number(state: dict[str, Any], num_envs: int) -> None:
    if len(state["rngs"]) != num_envs:
        raise ValueError(
            f"state: of {len(state['rngs'])} environments, this driver has {num_envs}; "
            "make it for as many."
        )


def _draw_style(rng: np.random.Generator) -> dict[str, float]:
    """One episode's habits and the processes' start."""
    seconds = rng.uniform(0.4, 1.2)
    return {
        "steer": 0.0,
        "steer_keep": math.exp(-1.0 / (seconds * DECISIONS_PER_SECOND)),
        "steer_width": rng.uniform(0.03, 0.3),
        "steer_middle": rng.normal(0.0, 0.05),
        "launch": int(rng.integers(4, 20)),  # decisions
        "launch_throttle": rng.uniform(0.5, 1.0),
        "throttle": 0.0,
        "throttle_mean": rng.uniform(0.02, 0.2),
        "brake": 0,  # decisions of braking left
        "brake_chance": rng.uniform(0.0, 0.06),
        "brake_force": 0.0,
    }


def _advance(style: dict[str, float], rng: np.random.Generator) -> tuple[float, float]:
    """Moves one environment's processes by a decision -> (steer, throttle or brake)."""
    noise, throttle_noise = rng.standard_normal(2)
    chance, force = rng.uniform(size=2)  # drawn always: one stream, whatever happens
    keep = style["steer_keep"]
    middle, width = style["steer_middle"], style["steer_width"]
    style["steer"] = middle + keep * (style["steer"] - middle)
    style["steer"] += width * math.sqrt(1.0 - keep**2) * noise
    style["throttle"] = 0.8 * style["throttle"] + 0.6 * 0.12 * throttle_noise
    steer = min(max(style["steer"], -1.0), 1.0)
    if style["launch"] > 0:
        style["launch"] -= 1
        return steer, style["launch_throttle"]
    if style["brake"] == 0 and chance < style["brake_chance"]:
        style["brake"], style["brake_force"] = 1 + int(force * 4), 0.1 + 0.6 * force
    if style["brake"] > 0:
        style["brake"] -= 1
        return steer, -style["brake_force"]
    return steer, min(max(style["throttle_mean"] + style["throttle"], -0.2), 1.0)


class RandomDriver:
    """Actions drawn evenly from all there are: uniform in [-1, 1], or one of A, one-hot.

    The same seed and the same `active` give the same actions.
    """

    def __init__(self, num_envs: int, seed: int, size: int, discrete: bool):
        self.num_envs, self.size, self.discrete = num_envs, size, discrete
        self._rngs = [np.random.default_rng([seed, e]) for e in range(num_envs)]

    def act(self, is_first: np.ndarray, active: np.ndarray | None = None) -> np.ndarray:
        """As of `SmoothDriver`: actions float32 [E, A], zeros for inactive environments."""
        active = np.ones(self.num_envs, bool) if active is None else active
        actions = np.zeros((self.num_envs, self.size), np.float32)
        for e in np.flatnonzero(active):
            if self.discrete:
                actions[e, self._rngs[e].integers(self.size)] = 1.0
            else:
                actions[e] = self._rngs[e].uniform(-1.0, 1.0, self.size)
        return actions

    def get_state(self) -> dict[str, Any]:
        """All that decides the actions to come, as JSON types."""
        return {"rngs": [rng.bit_generator.state for rng in self._rngs]}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues from what `get_state` gave.

        Raises:
            ValueError: the state is of another number of environments.
        """
        _check_number(state, self.num_envs)
        for rng, saved in zip(self._rngs, state["rngs"], strict=True):
            rng.bit_generator.state = saved


class TrackDriver:
    """Steers along the middle of the road; reads the simulator, so it is no agent to compare with.

    For tests, and for collecting frames of a car on the road at speed. `speed` (units/s) is what it
    aims for on straights; `noise` is the width of smooth random steering added to its own.
    """

    def __init__(self, speed: float = 80.0, noise: float = 0.0, seed: int = 0):
        self.speed, self.noise = speed, noise
        self._rng = np.random.default_rng(seed)
        self._track: list | None = None
        self._wobble = 0.0

    def act(self, env) -> np.ndarray:
        """A CarRacing environment after a reset or step -> its next action, float32 [2]."""
        car = env.unwrapped.car
        self._find(env.unwrapped.track, car.hull.position)
        velocity = car.hull.linearVelocity
        speed = math.hypot(*velocity)
        forward = car.hull.angle + math.pi / 2
        x, y = self._points[(self._nearest + 3 + int(speed / 15)) % len(self._points)]
        bearing = math.atan2(y - car.hull.position[1], x - car.hull.position[0])
        error = _wrapped(bearing - forward)
        wanted = self.speed / (1.0 + 0.7 * self._bend(4 + int(speed / 4)))
        pedal = 0.05 * (wanted - speed) if speed < wanted else 0.03 * (wanted - speed)
        self._wobble = 0.9 * self._wobble + 0.436 * self.noise * self._rng.standard_normal()
        pedal = min(max(pedal, -0.6), 1.0 if abs(error) < 0.2 else 0.3)
        steer = min(max(-1.5 * error + self._wobble, -1.0), 1.0)
        return np.array([steer, pedal], np.float32)

    def _find(self, track: list, position) -> None:
        """Keeps the nearest tile, looked for close to the last: the road may pass by itself."""
        if track is not self._track:
            self._track, self._nearest, self._wobble = track, 0, 0.0
            self._points = np.array([(x, y) for _, _, x, y in track])
        near = np.arange(self._nearest - 5, self._nearest + 16) % len(track)
        distances = np.hypot(*(self._points[near] - np.array(position)).T)
        self._nearest = int(near[distances.argmin()])

    def _bend(self, tiles: int) -> float:
        """How much the road turns over the tiles ahead: radians, at any sharpest stretch of 6."""
        ahead = [self._track[(self._nearest + i) % len(self._track)][1] for i in range(tiles + 6)]
        return max(abs(_wrapped(b - a)) for a, b in zip(ahead, ahead[6:], strict=False))


def _wrapped(angle: float) -> float:
    """An angle -> the same in [-pi, pi)."""
    return (angle + math.pi) % (2 * math.pi) - math.pi
