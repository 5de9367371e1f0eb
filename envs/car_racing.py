"""CarRacing-v3 with action repeat, two controls and one rendering per decision.

Physics, pixels and rewards are Gymnasium's own: a decision gives, bit for bit, what repeating the
stock `step` gives, without drawing the frames nobody sees.
"""

import math
import os
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from gymnasium.utils import EzPickle

from envs.scenery import GRASS, GRASS_POLYGONS, centres_and_radii, pygame, score_text, stock

FAULT_REWARD = -100.0  # what stock gives for leaving the field
BACKWARDS_SPEED = 1.0  # units/s against the track; a car at racing speed makes 40 to 80
BACKWARDS_FRAMES = 25  # half a second: a spin that is caught does not count
TRAILING_TILES = 3  # two car lengths: so far behind a new tile, no wheel of the car is to come
ROUND_PART = 0.9  # of the tiles; who is back at the first few with fewer has turned round or cut
ROUND_TILES = 5  # none but the first is sure to be touched
SHORT_CUT_TILES = 20  # so many on end are not missed in passing: the car came from elsewhere

_dummy_display = False  # whether SDL_VIDEODRIVER was set here, not by the user


class RacingEnv(stock.CarRacing):
    """A car on a random track, seen from above.

    Observation: uint8 [96, 96, 3]. Action: float32 [2] in [-1, 1], clipped to it: steer (right is
    positive) and throttle (positive) or brake (negative).

    Options:
        action_repeat: frames (1/50 s each) simulated per decision, at least 1. Rewards are summed;
            the repeat stops at the first end; the frame drawn is the last one simulated.
        time_limit: frames after which the episode is truncated, also amidst a repeat.
        steer_scale: stock's steering for the action 1, above 0 and up to 1. Stock's front wheels
            meet their stop at 0.4: with that scale the whole range of the action turns them, where
            by stock's own (1) all beyond 0.4 is the same.
        skip_zoom: leave out the zoom-in animation of the first second (pixels only).
        idle_limit: frames without reaching a new tile after which the episode terminates; 0: never.
        missed_limit: terminate once a tile is reached while the one so many before it (3: two car
            lengths) was not, so that no lap can come of it without turning round; 0: never.
        missed_cost: subtracted from the reward once for every place at which the car passes tiles
            by (one or several on end, up to some 20), when it is on the road again behind them. The
            score in the picture stays stock's.
        off_road_cost: subtracted from every frame's reward, times the share of the wheels that
            touch no road tile. Stock's rewards say nothing of grass until a tile has been missed.
            The score in the picture stays stock's.
        limit_ends: the time limit terminates instead of truncating: nothing is expected after it,
            as nothing is after a finished lap. Else driving so slowly that the limit comes before
            the lap's end promises more than finishing.
        road_goes_on: truncate once the car has come round, with every tile or not, as if the road
            went on. Else nothing comes after a whole lap, which makes missing its last tiles
            promise more, and a lap with tiles missed goes on over tiles that look like new ones.
        off_road_ends: terminate once all four wheels have left the road tiles; that frame's reward
            becomes -100.
        backwards_ends: terminate once the car has moved against the direction of the road tiles it
            touches, at more than 1 unit/s, for 25 frames on end; that frame's reward becomes -100.
        both_ways: by chance, drawn after the track, an episode drives it the other way round: from
            the same start, with all its bends turning to the other side. Stock's tracks have four
            sharp left-hand bends for every right-hand one.
        lap_complete_percent: handed to stock, in (0, 1]. Stock asks for it when the first tile is
            reached, which happens in `reset`: in effect a lap is all tiles, whatever it says.
        render_mode: None, "rgb_array", "state_pixels" or "human" (opens a window).

    `info` of every step and reset: `frames` (int, simulated in this step), `lap_finished` (bool),
    `progress` (float, visited fraction of the tiles), `end` (str: "", "lap", "field", "off_road",
    "backwards", "idle", "missed", "round" or "time"; any other is named before the time limit).

    Raises:
        ValueError: an option out of range, or an action of wrong shape or not finite.
        ResetNeeded: a step before the first reset or after an end.
    """

    def __init__(
        self,
        *,
        action_repeat: int = 4,
        time_limit: int = 1000,
        steer_scale: float = 1.0,
        skip_zoom: bool = True,
        idle_limit: int = 0,
        missed_limit: int = 0,
        missed_cost: float = 0.0,
        off_road_cost: float = 0.0,
        limit_ends: bool = False,
        road_goes_on: bool = False,
        off_road_ends: bool = False,
        backwards_ends: bool = False,
        both_ways: bool = False,
        lap_complete_percent: float = 0.95,
        render_mode: str | None = None,
    ):
        options = {name: value for name, value in locals().items() if name not in _NOT_OPTIONS}
        _check_options(options)
        _choose_display(render_mode)
        super().__init__(render_mode=render_mode, lap_complete_percent=lap_complete_percent)
        EzPickle.__init__(self, **options)  # stock has stored its own arguments
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.action_repeat = int(action_repeat)
        self.time_limit = int(time_limit)
        self.steer_scale = float(steer_scale)
        self.idle_limit = int(idle_limit)
        self.missed_limit = int(missed_limit)
        self.missed_cost = float(missed_cost)
        self.off_road_cost = float(off_road_cost)
        self.skip_zoom = skip_zoom
        self.limit_ends = limit_ends
        self.road_goes_on = road_goes_on
        self.off_road_ends = off_road_ends
        self.backwards_ends = backwards_ends
        self.both_ways = both_ways
        self.state = self._canvases = None
        self._draws = True
        self._running = False
        if render_mode != "human":  # a window shows every frame, a recording one per decision
            self.metadata = {**self.metadata, "render_fps": stock.FPS / self.action_repeat}

    def reset(
        self, *, seed: int | None = None, options: dict | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Starts an episode on the track of `seed` -> (observation uint8 [96, 96, 3], info)."""
        self._running, self._draws = False, False
        try:
            super().reset(seed=seed, options=options)  # ends in `self.step(None)`
        finally:
            self._draws = True
        if self.skip_zoom:
            self.t = 1.0  # the animation's clock; no physics reads it
        self._frame = self._newest_tile_frame = self._backwards = 0
        self._tiles_seen = self.tile_visited_count
        self._reached: set[int] = set()
        self._passed_by: set[int] = set()
        self._running = True
        return self._draw(), self._info(0, "")

    def step(
        self, action: np.ndarray | None
    ) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One decision: float32 [2] -> (observation, reward, terminated, truncated, info)."""
        if action is None:  # stock's `reset` comes through here
            return super().step(None)
        reward, terminated, truncated, info = self.simulate(action)
        return self._draw(), reward, terminated, truncated, info

    def simulate(self, action: np.ndarray) -> tuple[float, bool, bool, dict[str, Any]]:
        """`step` without drawing: float32 [2] -> (reward, terminated, truncated, info)."""
        if not self._running:
            raise ResetNeeded("RacingEnv: the episode has ended or not begun; call reset() first.")
        controls = self._controls(action)
        total, frames, end, terminated, truncated = 0.0, 0, "", False, False
        self._draws = False
        try:
            while frames < self.action_repeat and not (terminated or truncated):
                reward, end = self._simulate_frame(controls)
                frames += 1
                total += reward
                end, terminated, truncated = self._judge(end)
        finally:
            self._draws = True
        self._running = not (terminated or truncated)
        return total, terminated, truncated, self._info(frames, end)

    def _controls(self, action: np.ndarray) -> np.ndarray:
        """float32 [2] -> stock's [steer, gas, brake]."""
        action = np.asarray(action, np.float32)
        if action.shape != (2,):
            raise ValueError(f"action: shape is {action.shape}; pass [steer, throttle/brake].")
        if not np.isfinite(action).all():
            raise ValueError(f"action: {action} is not finite; check the policy for NaN.")
        steer, pedal = np.clip(action, -1.0, 1.0)
        return np.array([self.steer_scale * steer, max(pedal, 0.0), max(-pedal, 0.0)], np.float32)

    def _judge(self, end: str) -> tuple[str, bool, bool]:
        """A frame's end or "" -> the end with the time limit's, terminated, truncated."""
        late = self._frame >= self.time_limit
        goes_on = self.road_goes_on and end in ("lap", "round")
        terminated = bool(end and not goes_on) or (late and self.limit_ends)
        return end or "time" * late, terminated, goes_on or (late and not self.limit_ends)

    def _simulate_frame(self, controls: np.ndarray) -> tuple[float, str]:
        """One frame of stock's physics, then the added ends -> (reward, end or "")."""
        _, reward, terminated, _, info = super().step(controls)
        self._frame += 1
        if self.tile_visited_count != self._tiles_seen:
            self._tiles_seen, self._newest_tile_frame = self.tile_visited_count, self._frame
        if terminated:
            return float(reward), "lap" if info["lap_finished"] else "field"
        if self.off_road_ends and not any(wheel.tiles for wheel in self.car.wheels):
            return FAULT_REWARD, "off_road"
        if self.backwards_ends:
            self._backwards = self._backwards + 1 if self._drives_backwards() else 0
            if self._backwards >= BACKWARDS_FRAMES:
                return FAULT_REWARD, "backwards"
        if self.off_road_cost:
            off = sum(not wheel.tiles for wheel in self.car.wheels) / len(self.car.wheels)
            reward -= self.off_road_cost * off
        if self.idle_limit and self._frame - self._newest_tile_frame >= self.idle_limit:
            return float(reward), "idle"
        if self.missed_limit or self.missed_cost:
            new = self._newly_reached()
            reward -= self.missed_cost * self._places_passed_by(new)
            behind = ((i - self.missed_limit) % len(self.track) for i in new)
            if self.missed_limit and any(i not in self._reached for i in behind):
                return float(reward), "missed"
        return float(reward), "round" if self.road_goes_on and self._has_come_round() else ""

    def _touched(self) -> set[int]:
        return {tile.idx for wheel in self.car.wheels for tile in wheel.tiles}

    def _has_come_round(self) -> bool:
        if self.tile_visited_count < ROUND_PART * len(self.track):
            return False
        return any(tile < ROUND_TILES for tile in self._touched())

    def _newly_reached(self) -> set[int]:
        """Tiles that wheels touch for the first time; `_reached` has them from here on."""
        touched = self._touched()
        if not self._reached:  # those behind the start are none to have touched
            back = range(max(self.missed_limit, TRAILING_TILES) + 1)
            self._reached = {(i - b) % len(self.track) for i in touched for b in back}
        new = touched - self._reached
        self._reached |= touched
        return new

    def _places_passed_by(self, new: set[int]) -> int:
        """How many stretches of untouched tiles the car has left behind with these new tiles."""
        tiles, places = len(self.track), 0
        for tile in sorted(new):
            behind = [tile - TRAILING_TILES]
            while behind[-1] % tiles not in self._reached | self._passed_by:
                behind.append(behind[-1] - 1)
                if len(behind) > SHORT_CUT_TILES:
                    break
            *missed, before = (i % tiles for i in behind)
            # what goes on from a stretch already counted is the rest of it
            places += bool(missed) and before in self._reached
            self._passed_by.update(missed)
        return places

    def _drives_backwards(self) -> bool:
        tiles = self._touched()
        if not tiles:  # off the road there is no direction to offend
            return False
        velocity = self.car.hull.linearVelocity
        directions = [self._directions[tile] for tile in tiles]
        along = sum(x * velocity[0] + y * velocity[1] for x, y in directions) / len(tiles)
        return along < -BACKWARDS_SPEED

    def _info(self, frames: int, end: str) -> dict[str, Any]:
        return {
            "frames": frames,
            "lap_finished": end == "lap",
            "progress": self.tile_visited_count / len(self.track),
            "end": end,
        }

    def _create_track(self) -> bool:
        made = super()._create_track()
        if made:  # else stock tries again
            if self.both_ways and self.np_random.random() < 0.5:
                self._turn_round()
            self._road_polygons = centres_and_radii([polygon for polygon, _ in self.road_poly])
            self._directions = [(-math.sin(beta), math.cos(beta)) for _, beta, _, _ in self.track]
        return made

    def _turn_round(self) -> None:
        """Tiles are then counted, and the car is set, in the other direction."""
        first, *others = [(alpha, beta + math.pi, x, y) for alpha, beta, x, y in self.track]
        self.track = [first, *reversed(others)]
        for tile in self.road:
            tile.idx = -tile.idx % len(self.road)

    def _render(self, mode: str):
        if mode == "state_pixels" and not self._draws:
            self._drawn_score = self.reward  # stock draws before it subtracts the step's 0.1
            return self.state
        return super()._render(mode)

    def _draw(self) -> np.ndarray:
        """The frame stock would have drawn within the last simulated step: uint8 [96, 96, 3]."""
        self.state = self._create_image_array(self._paint(), (stock.STATE_W, stock.STATE_H))
        return self.state

    def _paint(self) -> pygame.Surface:
        """Stock's picture in full size.

        The surfaces stay (fresh ones cost more than what is drawn on them), so do the score's
        letters; the view is turned upside down by copying rows.
        """
        if self._canvases is None:
            size = (stock.WINDOW_W, stock.WINDOW_H)
            self._canvases = pygame.Surface(size), pygame.Surface(size)
        view, picture = self._canvases
        hull, grown = self.car.hull, min(self.t, 1)
        zoom = 0.1 * stock.SCALE * max(1 - self.t, 0) + stock.ZOOM * stock.SCALE * grown
        x, y = hull.position
        shift = pygame.math.Vector2((-x * zoom, -y * zoom)).rotate_rad(-hull.angle)
        shift = (stock.WINDOW_W / 2 + shift[0], stock.WINDOW_H / 4 + shift[1])
        self.surf = view
        self._render_road(zoom, shift, -hull.angle)
        self.car.draw(view, zoom, shift, -hull.angle, False)
        rows, upright = (pygame.surfarray.pixels2d(surface).T for surface in (view, picture))
        upright[:] = rows[::-1]
        del rows, upright  # they lock the surfaces
        self.surf = picture
        self._render_indicators(stock.WINDOW_W, stock.WINDOW_H)
        score = score_text(f"{self._drawn_score:04.0f}")
        place = score.get_rect(center=(60, stock.WINDOW_H - stock.WINDOW_H * 2.5 / 40.0))
        picture.blit(score, place)
        return picture

    def _render_road(self, zoom, translation, angle):
        """Stock's drawing, in stock's order, of the polygons that can reach the picture only.

        Stock rotates some 700 polygons a frame to find the 30 that are seen: most of its time.
        """
        edge, view = stock.PLAYFIELD, (zoom, translation, angle)
        reach = _reach(zoom)
        if max(map(abs, self.car.hull.position)) + reach < edge:  # nothing else is seen
            self.surf.fill(self.bg_color)
        else:
            self.surf.fill((0, 0, 0))
            field = [(edge, edge), (edge, -edge), (-edge, -edge), (-edge, edge)]
            self._draw_colored_polygon(self.surf, field, self.bg_color, *view, clip=False)
        for index in self._in_sight(GRASS_POLYGONS, zoom):
            self._draw_colored_polygon(self.surf, GRASS[index], self.grass_color, *view)
        for index in self._in_sight(self._road_polygons, zoom):
            polygon, color = self.road_poly[index]
            self._draw_colored_polygon(self.surf, polygon, [int(c) for c in color], *view)

    def _in_sight(self, polygons: tuple[np.ndarray, np.ndarray], zoom: float) -> np.ndarray:
        """Indices of the polygons within the distance of the picture's far corner to the car."""
        centres, radii = polygons
        distances = np.hypot(*(centres - np.array(self.car.hull.position)).T)
        return np.flatnonzero(distances <= _reach(zoom) + radii)


def _reach(zoom: float) -> float:
    """From the car to the picture's far corner, and a little more, in units of the track."""
    return math.hypot(stock.WINDOW_W / 2, stock.WINDOW_H * 3 / 4) / zoom + 1.0


_NOT_OPTIONS = ("self", "__class__")
_SWITCHES = ("skip_zoom", "limit_ends", "road_goes_on", "off_road_ends", "backwards_ends")
_SWITCHES += ("both_ways",)


def _check_options(options: dict[str, Any]) -> None:
    least_of = {"action_repeat": 1, "time_limit": 1, "idle_limit": 0, "missed_limit": 0}
    for name, least in least_of.items():
        value = options[name]
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
            raise ValueError(f"{name}: {value!r} given; use a whole number of at least {least}.")
    for name in ("missed_cost", "off_road_cost"):
        cost = options[name]
        if isinstance(cost, bool) or not isinstance(cost, int | float | np.number) or not cost >= 0:
            raise ValueError(f"{name}: {cost!r} given; use a number of at least 0.")
    for name in _SWITCHES:
        if not isinstance(options[name], bool | np.bool_):
            raise ValueError(f"{name}: {options[name]!r} given; use True or False.")
    for name in ("lap_complete_percent", "steer_scale"):
        part = options[name]
        number = isinstance(part, int | float | np.number) and not isinstance(part, bool)
        if not number or not 0.0 < part <= 1.0:
            raise ValueError(f"{name}: {part!r} given; use a fraction above 0 and up to 1.")
    modes = (None, *stock.CarRacing.metadata["render_modes"])
    if options["render_mode"] not in modes:
        raise ValueError(f"render_mode: {options['render_mode']!r} given; use one of {modes}.")


def _choose_display(render_mode: str | None) -> None:
    """Lets SDL run without a display, unless a window is asked for."""
    global _dummy_display
    if render_mode != "human":
        _dummy_display |= "SDL_VIDEODRIVER" not in os.environ
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    elif _dummy_display:
        os.environ.pop("SDL_VIDEODRIVER", None)
        _dummy_display = False
