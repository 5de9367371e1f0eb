"""Races of several cars: one car races as alone; several share road, rewards and bumps."""

import pickle
from types import SimpleNamespace

import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from pettingzoo.test import parallel_api_test, parallel_seed_test

from envs.car_racing import RacingEnv
from envs.drivers import SmoothDriver, TrackDriver
from envs.multi_car_racing import MultiCarRacing
from envs.races import RaceEnv

LAP_SEED = 3  # TrackDriver finishes its lap on this track, amidst a decision
REST = np.zeros(2, np.float32)
AHEAD = np.array([0.0, 1.0], np.float32)


def put(seat, angle, x, y):
    """Moves a car at rest to a place, wheels and all."""
    hull = seat.car.hull
    offsets = [hull.GetLocalPoint(body.position) for body in seat.car.drawlist]
    hull.transform = ((x, y), angle)
    for body, offset in zip(seat.car.drawlist, offsets, strict=True):
        body.transform = (hull.GetWorldPoint(offset), angle)
        body.linearVelocity, body.angularVelocity = (0.0, 0.0), 0.0


def tiles_under(seat):
    return {tile.idx for wheel in seat.car.wheels for tile in wheel.tiles}


def wild(seed, cars):
    """float32 [C, 2] per call: much steering, enough throttle to meet the other cars."""
    rng = np.random.default_rng(seed)
    return lambda: rng.uniform([-0.7, -0.1], [0.7, 0.6], (cars, 2)).astype(np.float32)


# --- one car --------------------------------------------------------------------------------------


def compare_with_single(options, seed, choose, draw_every):
    """Plays RacingEnv and a race of one to the end, drawing now and then -> the last info."""
    single, race = RacingEnv(**options), RaceEnv(cars=1, **options)
    alone, others = single.reset(seed=seed), race.reset(seed=seed)
    np.testing.assert_array_equal(others[0][0], alone[0])
    assert race.race.agents == ["car_0"] and others[1]["progress"] == alone[1]["progress"]
    for decision in range(1000):
        action = choose(single)
        if decision % draw_every == 0:
            observation, *alone = single.step(action)
            observations, *others = race.step(action[None])
            np.testing.assert_array_equal(observations[0], observation, err_msg=str(decision))
        else:
            alone, others = single.simulate(action), race.simulate(action[None])
        assert [value[0] for value in others[:3]] == list(alone[:3]), decision
        info = {name: values[0] for name, values in others[3].items()}
        assert info == alone[3] | {"given": True}, decision
        if alone[1] or alone[2]:
            np.testing.assert_array_equal(race._observation[0], single._draw())
            np.testing.assert_array_equal(race.reset()[0][0], single.reset()[0])  # the next track
            return alone[3]
    raise AssertionError("no end")


def blind(seed):
    driver = SmoothDriver(1, seed)
    return lambda env: driver.act(np.array([env._frame == 0]))[0]


def test_one_car_races_as_alone():
    info = compare_with_single({}, 1, blind(1), 3)
    assert info["end"] in ("time", "field")
    options = {"action_repeat": 3, "skip_zoom": False, "time_limit": 100}
    assert compare_with_single(options, 2, blind(2), 1)["end"] == "time"
    options["limit_ends"] = True
    assert compare_with_single(options, 2, blind(2), 1)["end"] == "time"


def test_one_car_finishes_its_lap_as_alone():
    info = compare_with_single({}, LAP_SEED, TrackDriver().act, 20)
    assert info["end"] == "lap" and info["frames"] == 1 and info["progress"] == 1.0
    compare_with_single({"road_goes_on": True}, LAP_SEED, TrackDriver().act, 20)


def test_one_car_ends_as_alone():
    assert compare_with_single({}, 6, lambda _: AHEAD, 20)["end"] == "field"
    assert compare_with_single({"idle_limit": 50}, 0, lambda _: REST, 7)["end"] == "idle"
    turn = np.array([0.6, 0.3], np.float32)
    assert compare_with_single({"off_road_ends": True}, 0, lambda _: turn, 7)["end"] == "off_road"
    reckless = TrackDriver(110.0, 0.5, 5).act
    rules = {"missed_limit": 3, "missed_cost": 20.0, "off_road_cost": 1.0, "steer_scale": 0.9}
    assert compare_with_single(rules, 5, reckless, 20)["end"] == "missed"
    driver, backwards = TrackDriver(15.0), {}

    def other_way(env):
        proxy = SimpleNamespace(car=env.car, track=env.track[:1] + env.track[:0:-1])
        return driver.act(SimpleNamespace(unwrapped=backwards.setdefault(id(env), proxy)))

    assert compare_with_single({"backwards_ends": True}, 0, other_way, 20)["end"] == "backwards"


# --- several cars ---------------------------------------------------------------------------------


def test_pettingzoo_checks_pass():
    parallel_api_test(MultiCarRacing(cars=3, time_limit=60, render_mode="rgb_array"), 20)
    parallel_seed_test(lambda: MultiCarRacing(cars=2, time_limit=40), 12)


def test_the_grid_is_on_the_road_and_the_track_is_the_single_cars():
    race, single = MultiCarRacing(cars=8), RacingEnv()
    for seed in range(6):
        race.reset(seed=seed)
        single.reset(seed=seed)
        seats = list(race._seats.values())
        assert seats[0].track == single.track
        assert all(wheel.tiles for seat in seats for wheel in seat.car.wheels)
        for seat in seats:
            for other in seats:
                x, y = seat.car.hull.GetLocalPoint(other.car.hull.position)
                assert seat is other or abs(x) > 3.5 or abs(y) > 6.5  # a car: 2.7 wide, 5.2 long
            touched = [edge.other for edge in seat.car.hull.contacts if edge.contact.touching]
            assert all(hasattr(body.userData, "road_friction") for body in touched)


def positions(race):
    return np.array([seat.car.hull.position for seat in race._seats.values()])


def test_starting_places_are_drawn_by_seed_or_given():
    race, fixed = MultiCarRacing(cars=4), MultiCarRacing(cars=4, random_starts=False)
    fixed.reset(seed=0)
    grid = positions(fixed)
    assert len(np.unique(grid.round(1), axis=0)) == 4
    x, y = fixed._seats["car_0"].car.hull.GetLocalPoint(grid[1].tolist())
    assert x == pytest.approx(20 / 3, abs=0.1) and abs(y) < 0.1  # beside it, on the right
    x, y = fixed._seats["car_0"].car.hull.GetLocalPoint(grid[2].tolist())
    assert abs(x) < 3 and y < -6.5  # behind it

    orders = []
    for _ in range(2):
        for seed in range(5):
            race.reset(seed=seed)
            fixed.reset(seed=seed)
            distances = np.linalg.norm(positions(race)[:, None] - positions(fixed), axis=-1)
            orders.append(tuple(distances.argmin(axis=1)))
            assert sorted(orders[-1]) == [0, 1, 2, 3]
    assert orders[:5] == orders[5:] and len(set(orders)) > 2
    for env in (race, fixed):
        env.reset(seed=0, options={"places": [2, 0, 3, 1]})
        np.testing.assert_allclose(positions(env), grid[[2, 0, 3, 1]], atol=1e-4)
    for places in ([0, 1, 2], [0, 1, 2, 2], [1, 2, 3, 4]):
        with pytest.raises(ValueError, match="places"):
            race.reset(seed=0, options={"places": places})


def test_the_first_on_a_tile_takes_all_the_second_half():
    race = MultiCarRacing(cars=2, action_repeat=1, random_starts=False)
    race.reset(seed=0)
    one, other = race._seats.values()
    tile_reward = 1000.0 / len(one.track)
    start = tiles_under(one) | tiles_under(other)
    assert one.reward + other.reward == pytest.approx(len(start) * 1.5 * tile_reward)
    race.step({"car_0": REST, "car_1": REST})

    def rewards(place_of_one, place_of_other):
        put(one, *one.track[place_of_one][1:])
        put(other, *one.track[place_of_other][1:])
        result = race.step({"car_0": REST, "car_1": REST})
        return result[1]["car_0"] + 0.1, result[1]["car_1"] + 0.1, result[4]

    to_one, to_other, _ = rewards(50, 100)
    found, found_by_other = len(tiles_under(one)), len(tiles_under(other))
    assert found >= 2 and found_by_other >= 2
    assert to_one == pytest.approx(found * tile_reward)
    assert to_other == pytest.approx(found_by_other * tile_reward)
    to_one, to_other, infos = rewards(150, 50)
    assert len(tiles_under(other)) == found
    assert to_one == pytest.approx(len(tiles_under(one)) * tile_reward)
    assert to_other == pytest.approx(found * tile_reward / 2)
    own = len(start) + found_by_other + found
    assert infos["car_1"]["progress"] == pytest.approx(own / len(one.track))
    assert rewards(50, 100)[:2] == pytest.approx((0.0, 0.0), abs=1e-9)  # their own of before


def test_a_lap_is_the_cars_own_tiles():
    race = MultiCarRacing(cars=2, action_repeat=4)
    race.reset(seed=0)
    one, other = race._seats.values()
    drives, ends = {"car_0": REST, "car_1": REST}, {}
    for first in range(2, len(one.track) + 2, 2):
        put(one, *one.track[first % len(one.track)][1:])
        *_, ends, _, infos = race.step(drives)
        if ends["car_0"]:
            break
    assert infos["car_0"]["lap_finished"] and infos["car_0"]["end"] == "lap"
    assert race.agents == ["car_1"] and not infos["car_1"]["lap_finished"]
    assert infos["car_1"]["progress"] < 0.05
    total = one.reward + other.reward + 0.1 * (one._frame + other._frame)
    second = other.tile_visited_count * 500 / len(one.track)
    assert total == pytest.approx(1000 + second)  # half a tile for each touched by both


def face(race, gap):
    """Puts car_1 in front of car_0 on its way -> the two seats."""
    one, other = race._seats.values()
    hull = one.car.hull
    put(other, hull.angle, *hull.GetWorldPoint((0.0, gap)))
    return one, other


def test_cars_collide():
    race = MultiCarRacing(cars=2, random_starts=False)
    race.reset(seed=0)
    one, other = face(race, 12.0)
    before = np.array(other.car.hull.position)
    for _ in range(20):
        race.step({"car_0": AHEAD, "car_1": REST})
        assert one.car.hull.GetLocalPoint(other.car.hull.position)[1] > 4.0  # never through it
    assert np.linalg.norm(np.array(other.car.hull.position) - before) > 5.0


def test_a_car_that_has_ended_is_out_of_the_way():
    race = MultiCarRacing(cars=2, random_starts=False, idle_limit=60)
    race.reset(seed=0)
    one, other = face(race, 40.0)
    where = tuple(other.car.hull.position)
    bodies = race._ground.world.bodyCount
    ended, speeds = [], []
    for _ in range(45):
        *_, infos = race.step({agent: [REST, AHEAD][agent == "car_0"] for agent in race.agents})
        ended.append(infos.get("car_1", {}).get("end"))
        speeds.append(one.car.hull.linearVelocity.length)
        if one.car.hull.GetLocalPoint(where)[1] < -10:
            break
    assert "idle" in ended and race.agents == ["car_0"]
    assert other.car is None and race._ground.world.bodyCount == bodies - 5
    assert one.car.hull.GetLocalPoint(where)[1] < -10  # through the place where it stood
    assert (np.diff(speeds[:-1]) > -0.5).all()


def test_leaving_the_field_ends_one_cars_race():
    race = MultiCarRacing(cars=3)
    race.reset(seed=0)
    actions = dict.fromkeys(race.agents, REST)
    race.step(actions)
    put(race._seats["car_1"], 0.0, 340.0, 0.0)
    views, rewards, terminations, truncations, infos = race.step(actions)
    assert rewards["car_1"] == -100.0 and terminations["car_1"]
    assert infos["car_1"]["frames"] == 1 and infos["car_1"]["end"] == "field"
    assert rewards["car_0"] == pytest.approx(-0.4) and infos["car_0"]["frames"] == 4
    assert not (terminations["car_0"] or terminations["car_2"] or any(truncations.values()))
    assert race.agents == ["car_0", "car_2"] and views["car_1"].shape == (96, 96, 3)
    with pytest.raises(ValueError, match="car_2"):
        race.step({"car_0": REST})
    assert set(race.step(actions)[1]) == {"car_0", "car_2"}  # the third action is not looked at


def test_the_last_view_is_of_the_frame_of_the_end():
    races = [MultiCarRacing(cars=2, action_repeat=repeat, off_road_ends=True) for repeat in (1, 50)]
    actions = {"car_0": AHEAD, "car_1": np.array([-0.6, 0.3], np.float32)}
    for race in races:
        race.reset(seed=4)
    by_frame, by_many = races
    ended, rewards, frames = {}, {"car_0": 0.0, "car_1": 0.0}, 0
    while by_many.agents:
        views, totals, _, _, infos = by_many.step(actions)
        for _ in range(max(info["frames"] for info in infos.values())):
            frames += 1
            each, gains, ends, _, _ = by_frame.step(actions)
            for agent, ends_now in ends.items():
                rewards[agent] += gains[agent]
                if ends_now:
                    ended[agent] = frames
                    np.testing.assert_array_equal(views[agent], each[agent])
        for agent in totals:
            assert totals[agent] == pytest.approx(rewards[agent])
            rewards[agent] = 0.0
    assert by_frame.agents == [] and len(set(ended.values())) == 2
    assert any(frame % 50 for frame in ended.values())


def test_the_time_limit_ends_all():
    race = MultiCarRacing(cars=2, time_limit=10)
    race.reset(seed=0)
    actions = dict.fromkeys(race.agents, REST)
    for _ in range(3):
        *_, terminations, truncations, infos = race.step(actions)
    assert truncations == {"car_0": True, "car_1": True} and not any(terminations.values())
    assert {(info["end"], info["frames"]) for info in infos.values()} == {("time", 2)}
    assert race.agents == []
    with pytest.raises(ResetNeeded):
        race.step(actions)


def test_each_sees_its_own_car_red_and_the_other_blue():
    race = MultiCarRacing(cars=2, random_starts=False)
    views, _ = race.reset(seed=0)
    # The own hull is about row 72, column 48; 20/3 units beside it are 10.4 columns.
    for agent, other_column in (("car_0", 58), ("car_1", 38)):
        view = views[agent].astype(int)
        own, other = view[70:76, 46:51], view[70:76, other_column - 2 : other_column + 3]
        assert (own[..., 0] - own[..., 2]).max() > 150 and (own[..., 2] - own[..., 0]).max() < 20
        assert (other[..., 2] - other[..., 0]).max() > 150
        assert (other[..., 0] - other[..., 2]).max() < 20


def test_no_name_is_favoured():
    """Names and places swapped give the same race with the names swapped."""
    races = [RaceEnv(cars=2), RaceEnv(cars=2)]
    choose, order = wild(0, 2), (slice(None), slice(None, None, -1))
    seen = races[0].reset(seed=1, options={"places": [0, 1]})[0]
    np.testing.assert_array_equal(seen, races[1].reset(seed=1, options={"places": [1, 0]})[0][::-1])
    for _ in range(30):
        actions = choose()
        one, two = (race.step(actions[o]) for race, o in zip(races, order, strict=True))
        for value, swapped in zip(one[:4], two[:4], strict=True):
            np.testing.assert_array_equal(value, swapped[::-1])


def test_a_used_race_runs_like_a_new_one():
    used, new = RaceEnv(cars=3), RaceEnv(cars=3)
    used.reset(seed=5)
    choose = wild(1, 3)
    for _ in range(30):
        used.simulate(choose())
    put(used.race._seats["car_1"], 0.0, 340.0, 0.0)
    used.simulate(choose())
    np.testing.assert_array_equal(used.reset(seed=2)[0], new.reset(seed=2)[0])
    one, other = wild(2, 3), wild(2, 3)
    for _ in range(60):
        for a, b in zip(used.simulate(one())[:3], new.simulate(other())[:3], strict=True):
            np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(used.step(REST + np.zeros((3, 2)))[0], new.step(one() * 0)[0])


# --- the picture from above -----------------------------------------------------------------------


def test_the_view_from_above():
    race = MultiCarRacing(cars=2, render_mode="rgb_array")
    with pytest.raises(ResetNeeded):
        race.render()
    race.reset(seed=0)
    picture = race.render()
    assert picture.shape == (600, 600, 3) and picture.dtype == np.uint8
    colors = [(255, 0, 0), (30, 144, 255)]
    for color in colors:  # a disc of radius 6, perhaps part of it below the other's
        assert (picture[:570] == color).all(-1).sum() > 50
        assert (picture[570:] == color).all(-1).any()  # its score
    put(race._seats["car_1"], 0.0, 340.0, 0.0)
    race.step(dict.fromkeys(race.agents, REST))
    picture = race.above()
    gone, here = ((picture[:570] == color).all(-1).sum() for color in colors[::-1])
    assert gone == 0 and here > 50
    silent = MultiCarRacing(cars=1)
    silent.reset(seed=0)
    assert silent.render() is None and silent.above().shape == (600, 600, 3)


# --- the Gymnasium side ---------------------------------------------------------------------------


def test_an_ended_cars_entries_stay():
    env = RaceEnv(cars=2, time_limit=20)
    observation, info = env.reset(seed=0)
    assert observation.shape == (2, 96, 96, 3) and env.observation_space.contains(observation)
    assert info["given"].all() and not info["frames"].any()
    actions = np.array([AHEAD, AHEAD])
    put(env.race._seats["car_1"], 0.0, 340.0, 0.0)
    observation, reward, terminated, truncated, info = env.step(actions)
    assert reward.tolist()[1] == -100.0 and terminated.tolist() == [False, True]
    assert info["given"].all() and info["frames"].tolist() == [4, 1]
    last, progress = observation[1].copy(), info["progress"][1]
    for left in (3, 2, 1, 0):
        actions[1] = 7.0  # nobody drives it
        observation, reward, terminated, truncated, info = env.step(actions)
        np.testing.assert_array_equal(observation[1], last)
        assert terminated.tolist() == [False, True] and truncated.tolist() == [left == 0, False]
        assert info["given"].tolist() == [True, False] and info["frames"].tolist() == [4, 0]
        assert reward[1] == 0.0 and reward[0] != 0.0 and info["progress"][1] == progress
        assert info["end"].tolist() == ["time" if left == 0 else "", "field"]
        assert not info["lap_finished"].any()
    with pytest.raises(ResetNeeded):
        env.simulate(actions)
    assert env.reset(seed=0)[1]["given"].all()
    assert not env.step(actions)[2].any()


def test_simulating_equals_stepping():
    stepped, simulated = (RaceEnv(cars=3, off_road_ends=True, idle_limit=80) for _ in range(2))
    stepped.reset(seed=1)
    simulated.reset(seed=1)
    choose, ended = wild(3, 3), 0
    for decision in range(100):
        actions = choose()
        observation, *expected, info = stepped.step(actions)
        if decision % 10 == 9:
            drawn, *values, other = simulated.step(actions)
            np.testing.assert_array_equal(drawn, observation)
        else:
            *values, other = simulated.simulate(actions)
        for a, b in zip([*values, *other.values()], [*expected, *info.values()], strict=True):
            np.testing.assert_array_equal(a, b)
        ended = (expected[1] | expected[2]).sum()
        if ended == 3:
            break
    assert ended >= 2
    np.testing.assert_array_equal(simulated._observation[values[1]], observation[values[1]])


def test_races_are_pickled_by_their_options():
    env = pickle.loads(pickle.dumps(RaceEnv(cars=2, time_limit=8, render_mode="rgb_array")))
    env.reset(seed=0)
    assert env.render().shape == (600, 600, 3) and env.metadata["render_fps"] == 12.5
    assert env.race._seats["car_1"].time_limit == 8


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"cars": 0},
        {"cars": 9},
        {"cars": True},
        {"cars": 2.0},
        {"random_starts": 1},
        {"render_mode": "human"},
        {"action_repeat": 0},
        {"time_limit": 1.5},
        {"off_road_ends": None},
    ],
)
def test_bad_options_are_named(options):
    for make in (MultiCarRacing, RaceEnv):
        with pytest.raises(ValueError, match=next(iter(options))):
            make(**options)


def test_bad_actions_are_refused():
    race, env = MultiCarRacing(cars=2), RaceEnv(cars=2)
    with pytest.raises(ResetNeeded):
        race.step({"car_0": REST, "car_1": REST})
    with pytest.raises(ResetNeeded):
        env.step(np.zeros((2, 2)))
    race.reset(seed=0)
    env.reset(seed=0)
    for bad in ([np.nan, 0.0], [0.0, np.inf]):
        with pytest.raises(ValueError, match="not finite"):
            race.step({"car_0": REST, "car_1": np.array(bad)})
        with pytest.raises(ValueError, match="not finite"):
            env.step(np.array([REST, bad]))
    for bad in ([0.0], [[0.0, 0.0]]):
        with pytest.raises(ValueError, match="shape"):
            race.step({"car_0": REST, "car_1": np.array(bad)})
    for bad in (np.zeros(2), np.zeros((3, 2)), np.zeros((2, 3))):
        with pytest.raises(ValueError, match="shape"):
            env.step(bad)
    assert race._seats["car_0"]._frame == env.race._seats["car_0"]._frame == 0  # nothing moved
