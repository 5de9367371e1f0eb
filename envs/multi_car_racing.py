"""Several cars in one CarRacing-v3 world, as a PettingZoo environment.

Track, car, pixels and the rules for each car are RacingEnv's: a race of one car gives, bit for bit,
what RacingEnv gives.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from gymnasium.utils import EzPickle
from pettingzoo import ParallelEnv

from envs import MOST_CARS
from envs.car_racing import FAULT_REWARD, RacingEnv
from envs.scenery import pygame, stock

ROW_TILES = 3  # from one row of the grid to the next: 10.5 units, twice a car's length
RIVAL = (0.0, 0.0, 0.8)  # the hull of any other car; the own one has stock's red
ABOVE_SIZE, ABOVE_BAR = 600, 30  # pixels; the bar at the bottom has the scores
ABOVE_COLORS = ("red", "dodgerblue", "gold", "magenta", "cyan", "orange", "white", "slateblue")


class _FrameAccounts(stock.CarRacing):
    """In stock's place below RacingEnv: the race simulates the frames, this keeps the accounts."""

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> None:
        """After the frame that stock simulates within its `reset`."""
        self.t = 1.0 / stock.FPS
        self._drawn_score = self.reward

    def step(self, action: np.ndarray) -> tuple[None, float, bool, bool, dict[str, Any]]:
        self.t += 1.0 / stock.FPS
        self._drawn_score = self.reward  # stock draws before it subtracts
        self.reward -= 0.1
        reward = self.reward - self.prev_reward
        self.prev_reward = self.reward
        if max(map(abs, self.car.hull.position)) > stock.PLAYFIELD:
            return None, FAULT_REWARD, True, False, {"lap_finished": False}
        lap = self.tile_visited_count == len(self.track)
        return None, reward, lap, False, {"lap_finished": lap}


class _Seat(RacingEnv, _FrameAccounts):
    """One car of a race: RacingEnv's rules, score and view, in a world shared with the others."""

    def enter(self, ground: RacingEnv, place: tuple[float, float, float], field: list["_Seat"]):
        """Puts a car at `place` (angle, x, y); `field`: the cars in the world, kept by the race."""
        for name in ("world", "road", "track", "road_poly", "_road_polygons", "_directions"):
            setattr(self, name, getattr(ground, name))
        self.field = field
        self.car = stock.Car(self.world, *place)
        for wheel in self.car.wheels:
            wheel.seat = self
        self.reward = self.prev_reward = 0.0
        self.tile_visited_count = 0

    def leave(self) -> None:
        self.car.destroy()
        self.car = None

    def begin(self, controls: np.ndarray) -> None:
        """A decision: stock's [steer, gas, brake] for all its frames."""
        self.controls = controls.astype(np.float64)  # as in stock; it decides the last bits
        self.total, self.frames = 0.0, 0

    def drive(self) -> None:
        """Before the world's step."""
        steer, gas, brake = self.controls
        self.car.steer(-steer)
        self.car.gas(gas)
        self.car.brake(brake)
        self.car.step(1.0 / stock.FPS)

    def settle(self) -> None:
        """After the world's step: rewards and ends of the frame."""
        reward, end = self._simulate_frame(self.controls)
        self.frames += 1
        self.total += reward
        self.end, self.terminated, self.truncated = self._judge(end)
        self.ended = self.terminated or self.truncated

    def record(self) -> tuple[float, bool, bool, dict[str, Any]]:
        """What RacingEnv's `simulate` returns for the decision."""
        return self.total, self.terminated, self.truncated, self._info(self.frames, self.end)

    def _render_road(self, zoom, translation, angle):
        """And the other cars, which stock's own car is then drawn over."""
        super()._render_road(zoom, translation, angle)
        rivals = [seat.car for seat in self.field if seat is not self]
        centres = np.array([car.hull.position for car in rivals], np.float64).reshape(-1, 2)
        for index in self._in_sight((centres, np.full(len(rivals), 4.0)), zoom):
            hull = rivals[index].hull
            own, hull.color = hull.color, RIVAL
            rivals[index].draw(self.surf, zoom, translation, angle, draw_particles=False)
            hull.color = own


class _Contacts(stock.FrictionDetector):
    """Stock's contacts of wheels and tiles, each booked for the car whose wheel it is."""

    def __init__(self, seats: Sequence[_Seat]):
        super().__init__(seats[0], 1.0)  # a lap is all tiles: no one passes a share of 1.0
        self.cars = len(seats)

    def _contact(self, contact, begin):
        bodies = (contact.fixtureA.body.userData, contact.fixtureB.body.userData)
        wheel = next((body for body in bodies if hasattr(body, "seat")), None)
        tile = next((body for body in bodies if hasattr(body, "visitors")), None)
        if wheel is None or tile is None:  # stock recolours a tile also for a hull
            return super()._contact(contact, begin)
        seat = self.env = wheel.seat
        score, tile.road_visited = seat.reward, seat in tile.visitors
        super()._contact(contact, begin)
        if tile.road_visited and seat not in tile.visitors:
            share = (self.cars - len(tile.visitors)) / self.cars
            seat.reward = score + 1000.0 / len(seat.track) * share
            tile.visitors.append(seat)


class MultiCarRacing(ParallelEnv, EzPickle):
    """Cars "car_0", "car_1", ... on one random track; they collide.

    Per agent: observation uint8 [96, 96, 3], the view RacingEnv draws, own car red, others blue.
    Action float32 [2] in [-1, 1], clipped to it: steer (right is positive) and throttle (positive)
    or brake (negative).

    Reward: a car's first touch of a tile gives 1000 / tiles * (cars - past visitors) / cars, where
    past visitors are the cars that touched it earlier; every frame costs 0.1. A car that has ended
    is taken out of the world after its last view, also amidst a repeat, unless it was the last.

    Options:
        cars: 1 to 8.
        random_starts: draw the cars' places on the starting grid anew for every episode; else car i
            has place i. Place 0 is in front on the left, 1 beside it, 2 behind 0. One car alone
            starts where stock's does.
        render_mode: None or "rgb_array", the whole track from above.
        rules: RacingEnv's options, for each car: action_repeat, time_limit (truncates all at once),
            steer_scale, skip_zoom, idle_limit, missed_limit, missed_cost, off_road_cost,
            limit_ends, road_goes_on, off_road_ends, backwards_ends; and both_ways, for all
            together.

    `infos[agent]`: RacingEnv's `frames`, `lap_finished`, `progress` (the car's own) and `end`.

    Raises:
        ValueError: an option out of range; a live car's action missing, of wrong shape or not
            finite; places that are no permutation.
        ResetNeeded: a step or picture before the first reset, a step after the last car's end.
    """

    def __init__(
        self, *, cars: int = 2, random_starts: bool = True, render_mode: str | None = None, **rules
    ):
        options = {"cars": cars, "random_starts": random_starts, "render_mode": render_mode}
        EzPickle.__init__(self, **options, **rules)
        _check_options(**options)
        self._ground = RacingEnv(**rules)  # makes the tracks
        self.possible_agents = [f"car_{i}" for i in range(cars)]
        self.agents: list[str] = []
        self._seats = {agent: _Seat(**rules) for agent in self.possible_agents}
        self._field: list[_Seat] = []  # in the order of the grid, so that no name is favoured
        self.observation_spaces = {a: seat.observation_space for a, seat in self._seats.items()}
        self.action_spaces = {a: seat.action_space for a, seat in self._seats.items()}
        self.random_starts = random_starts
        self.render_mode = render_mode
        self.metadata = {
            "name": "multi_car_racing_v0",
            "render_modes": ["rgb_array"],
            "render_fps": stock.FPS / self._ground.action_repeat,
            "is_parallelizable": True,
        }

    def observation_space(self, agent: str) -> spaces.Box:
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> spaces.Box:
        return self.action_spaces[agent]

    def reset(
        self, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, dict[str, Any]]]:
        """Starts an episode on RacingEnv's track of `seed` -> (observations, infos), by agent.

        `options["places"]`, a permutation of range(cars), gives each car its place on the grid.
        """
        places = given = (options or {}).get("places")
        cars = len(self._seats)
        if given is not None and sorted(given) != list(range(cars)):
            raise ValueError(f"places: {given!r} given; use a permutation of 0 to {cars - 1}.")
        self.agents = []
        self._make_track(seed)
        if given is None:
            places = self._ground.np_random.permutation(cars) if self.random_starts else range(cars)
        for car, place in zip(np.argsort(places), _grid(self._ground.track, cars), strict=True):
            seat = self._seats[self.possible_agents[car]]
            seat.enter(self._ground, place, self._field)
            self._field.append(seat)
        for seat in self._field:
            seat.car.step(1.0 / stock.FPS)
        self._step_world()
        self.agents = self.possible_agents[:]
        first = {agent: seat.reset() for agent, seat in self._seats.items()}
        return {a: view for a, (view, _) in first.items()}, {a: i for a, (_, i) in first.items()}

    def step(self, actions: Mapping[str, np.ndarray]) -> tuple[dict[str, Any], ...]:
        """One decision: float32 [2] by agent -> observations, rewards, terminations, truncations,
        infos by agent, for those live at its begin.

        The view of a car that ended amidst the repeat is of the frame of its end. Actions of cars
        that have ended are not looked at.
        """
        return self.decide(actions, draws=True)

    def decide(self, actions: Mapping[str, np.ndarray], draws: bool) -> tuple[dict[str, Any], ...]:
        """`step`; without `draws`, only the last views of cars that end are drawn."""
        if not self.agents:
            raise ResetNeeded("MultiCarRacing: all cars have ended or not begun; call reset().")
        if missing := [agent for agent in self.agents if agent not in actions]:
            raise ValueError(f"actions: none given for {missing}; pass one for every live agent.")
        racing = {agent: self._seats[agent] for agent in self.agents}
        controls = [seat._controls(actions[agent]) for agent, seat in racing.items()]  # all checked
        for seat, its_controls in zip(racing.values(), controls, strict=True):
            seat.begin(its_controls)
        views: dict[_Seat, np.ndarray] = {}
        for _ in range(self._ground.action_repeat):
            for seat in self._field:
                seat.drive()
            self._step_world()
            for seat in self._field:
                seat.settle()
            ended = [seat for seat in self._field if seat.ended]
            views |= {seat: seat._draw() for seat in ended}
            if len(ended) == len(self._field):  # they stay, for the picture from above
                break
            for seat in ended:
                seat.leave()
                self._field.remove(seat)
        if draws:
            views |= {seat: seat._draw() for seat in self._field if not seat.ended}
        self.agents = [agent for agent, seat in racing.items() if not seat.ended]
        observations = {agent: views[seat] for agent, seat in racing.items() if seat in views}
        records = zip(*(seat.record() for seat in racing.values()), strict=True)
        return observations, *(dict(zip(racing, values, strict=True)) for values in records)

    def render(self) -> np.ndarray | None:
        """`above()` with the render mode "rgb_array", else None."""
        return self.above() if self.render_mode == "rgb_array" else None

    def above(self) -> np.ndarray:
        """The whole track from above, a disc for every car in the world: uint8 [600, 600, 3].

        A line shows where a car points; the bar has every car's score in the colour of its disc.
        """
        if not self._field:
            raise ResetNeeded("MultiCarRacing: there is no track yet; call reset() first.")
        corners = np.array([polygon for polygon, _ in self._ground.road_poly])
        low, high = corners.min((0, 1)) - 10.0, corners.max((0, 1)) + 10.0
        size = np.array([ABOVE_SIZE, ABOVE_SIZE - ABOVE_BAR])
        zoom = (size / (high - low)).min()

        def pixels(points):
            return (np.array(points) - (low + high) / 2) * (zoom, -zoom) + size / 2

        picture = pygame.Surface((ABOVE_SIZE, ABOVE_SIZE))
        picture.fill([int(c) for c in self._ground.grass_color])
        for polygon, color in self._ground.road_poly:
            pygame.draw.polygon(picture, [int(c) for c in color], pixels(polygon))
        picture.fill("black", (0, size[1], ABOVE_SIZE, ABOVE_BAR))
        pygame.font.init()
        font = pygame.font.Font(pygame.font.get_default_font(), 18)
        for i, (color, seat) in enumerate(zip(ABOVE_COLORS, self._seats.values(), strict=False)):
            if seat.car is not None:
                tip = seat.car.hull.GetWorldPoint((0.0, 14.0 / zoom))
                centre = pixels(seat.car.hull.position)
                pygame.draw.line(picture, "black", centre, pixels(tip), 3)
                pygame.draw.circle(picture, "black", centre, 8)
                pygame.draw.circle(picture, color, centre, 6)
            score = font.render(f"{seat.reward:.0f}", True, color)
            picture.blit(score, (8 + i * ABOVE_SIZE // MOST_CARS, size[1] + 7))
        return pygame.surfarray.array3d(picture).transpose(1, 0, 2)

    def _make_track(self, seed: int | None) -> None:
        """In a new world: in an old one the order of contacts depends on earlier episodes."""
        ground = self._ground
        for seat in self._field:
            seat.leave()
        self._field.clear()
        for tile in ground.road or ():
            ground.world.DestroyBody(tile)
        gymnasium.Env.reset(ground, seed=seed)
        self._contacts = _Contacts(list(self._seats.values()))  # the world keeps no reference
        ground.world = stock.Box2D.b2World((0, 0), contactListener=self._contacts)
        ground.road_poly = []
        while not ground._create_track():
            pass
        for tile in ground.road:
            tile.visitors = []

    def _step_world(self) -> None:
        self._ground.world.Step(1.0 / stock.FPS, 6 * 30, 2 * 30)


def _grid(track: list, cars: int) -> list[tuple[float, float, float]]:
    """Places (angle, x, y) from the front of the grid backwards; one car has stock's."""
    if cars == 1:
        return [track[0][1:4]]
    places = []
    for place in range(cars):
        row, column = divmod(place, 2)
        _, beta, x, y = track[-ROW_TILES * row]
        right = (column - 0.5) * stock.TRACK_WIDTH  # the road is 2 TRACK_WIDTH wide
        places.append((beta, x + right * math.cos(beta), y + right * math.sin(beta)))
    return places


def _check_options(cars: Any, random_starts: Any, render_mode: Any) -> None:
    whole = isinstance(cars, int | np.integer) and not isinstance(cars, bool)
    if not whole or not 1 <= cars <= MOST_CARS:
        raise ValueError(f"cars: {cars!r} given; use a whole number from 1 to {MOST_CARS}.")
    if not isinstance(random_starts, bool | np.bool_):
        raise ValueError(f"random_starts: {random_starts!r} given; use True or False.")
    if render_mode not in (None, "rgb_array"):
        raise ValueError(f"render_mode: {render_mode!r} given; use None or 'rgb_array'.")
