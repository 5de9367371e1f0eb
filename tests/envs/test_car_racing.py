"""The races against Gymnasium's own: the same pictures, rewards and ends, bit for bit."""

import itertools
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env

from envs.car_racing import RacingEnv
from envs.drivers import TrackDriver

ID = "DreamerCarRacing-v3"
LAP_SEED = 3  # TrackDriver finishes its lap on this track, amidst a decision


def make(**options):
    return gymnasium.make(ID, disable_env_checker=True, **options).unwrapped


def make_stock(**options):
    return gymnasium.make("CarRacing-v3", disable_env_checker=True, **options)


def stock_controls(action):
    steer, pedal = np.clip(action, -1, 1)
    return np.array([steer, max(pedal, 0), max(-pedal, 0)], np.float32)


def stock_decision(stock, action, repeat):
    """Repeats stock's step up to its first end -> what our step should give, but for info."""
    total = 0.0
    for frames in range(1, repeat + 1):  # noqa: B007
        observation, reward, terminated, truncated, info = stock.step(stock_controls(action))
        total += reward
        if terminated or truncated:
            break
    return observation, total, terminated, truncated, frames, info


def compare_episode(env, stock, seed, choose, drawn_from=0):
    """Plays both to the end -> (decisions, the last info). Before `drawn_from` nothing is drawn."""
    first, info = env.reset(seed=seed)
    assert info["frames"] == 0 and info["end"] == ""
    stock_first, _ = stock.reset(seed=seed)
    if env.skip_zoom:
        stock.unwrapped.t = 1.0
        stock_first = stock.unwrapped._render("state_pixels")
    np.testing.assert_array_equal(first, stock_first)
    for decision in range(1000):
        action, draws = choose(decision), decision >= drawn_from
        stock.unwrapped.__dict__.pop("_render", None)
        if draws:
            observation, *rest, info = env.step(action)
        else:
            stock.unwrapped._render = lambda mode: None
            *rest, info = env.simulate(action)
        expected, *stock_rest, frames, stock_info = stock_decision(stock, action, env.action_repeat)
        assert (rest, info["frames"]) == (stock_rest, frames), decision
        if draws:
            np.testing.assert_array_equal(observation, expected, err_msg=str(decision))
        if rest[1] or rest[2]:
            assert info["lap_finished"] == stock_info.get("lap_finished", False)
            return decision + 1, info
    raise AssertionError("no end")


def varied(seed):
    """Slow driving that comes about the road and off it, in actions partly beyond the box."""
    rng = np.random.default_rng(seed)

    def choose(decision):
        return np.array([rng.uniform(-1.2, 1.2) * (decision % 3 == 0), rng.uniform(-1.2, 0.9)])

    return lambda decision: choose(decision).astype(np.float32)


@pytest.mark.parametrize(("repeat", "skip_zoom"), [(4, True), (3, False)])
def test_full_episode_is_stocks(repeat, skip_zoom):
    env = make(action_repeat=repeat, skip_zoom=skip_zoom)
    decisions, info = compare_episode(env, make_stock(), 1, varied(1))
    assert decisions == -(-1000 // repeat)
    assert info["frames"] == (1000 % repeat or repeat) and info["end"] == "time"


@pytest.mark.parametrize("skip_zoom", [True, False])
def test_zoom_and_repeat_the_other_way_round(skip_zoom):
    env = make(action_repeat=3 if skip_zoom else 4, skip_zoom=skip_zoom, time_limit=100)
    stock = make_stock(max_episode_steps=100)
    assert compare_episode(env, stock, 2, varied(2))[1]["end"] == "time"


def test_leaving_the_field_is_stocks():
    straight = np.array([0.0, 1.0], np.float32)
    env, stock = make(), make_stock()
    decisions, info = compare_episode(env, stock, 6, lambda _: straight, drawn_from=30)
    assert decisions == 44 and info["end"] == "field"
    with pytest.raises(ResetNeeded):
        env.step(straight)


def test_finishing_the_lap_is_stocks():
    env, driver = make(), TrackDriver()
    stock = make_stock()
    decisions, info = compare_episode(
        env, stock, LAP_SEED, lambda _: driver.act(env), drawn_from=225
    )
    assert decisions == 241 and info["end"] == "lap"
    assert info["frames"] == 1 and info["lap_finished"] and info["progress"] == 1.0


def test_a_used_environment_plays_like_a_new_one():
    used, new = make(), make()
    used.reset(seed=1)
    for decision in range(30):
        used.simulate(varied(1)(decision))
    np.testing.assert_array_equal(used.reset(seed=2)[0], new.reset(seed=2)[0])
    one, other = varied(3), varied(3)
    for decision in range(40):
        assert used.simulate(one(decision)) == new.simulate(other(decision))
    np.testing.assert_array_equal(used.step(one(40))[0], new.step(other(40))[0])


def test_gymnasium_checks_pass():
    check_env(make(render_mode="rgb_array"), skip_render_check=True)
    env = make(render_mode="rgb_array")
    env.reset(seed=0)
    assert env.render().shape == (400, 600, 3)
    assert env.metadata["render_fps"] == 12.5


def test_a_window_shows_every_frame(monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    monkeypatch.setattr("envs.car_racing._dummy_display", False)
    env = make(render_mode="human")
    shown = []
    monkeypatch.setattr("pygame.display.flip", lambda: shown.append(env.t))
    for seed in (0, 1):  # the second track is another one
        env.reset(seed=seed)
        shown.clear()
        observation = env.step(np.zeros(2, np.float32))[0]
        assert len(shown) == 4 and observation.shape == (96, 96, 3)
    env.close()


def play(env, choose, limit=260):
    """-> (decisions, last reward, terminated, info)."""
    for decision in range(limit):
        reward, terminated, truncated, info = env.simulate(choose(decision))
        if terminated or truncated:
            return decision + 1, reward, terminated, info
    raise AssertionError("no end")


def test_idling_ends_the_episode():
    env = make(idle_limit=50)
    env.reset(seed=0)
    decisions, reward, terminated, info = play(env, lambda _: np.zeros(2, np.float32))
    assert (decisions, terminated, info["end"], info["frames"]) == (13, True, "idle", 2)
    assert reward == pytest.approx(-0.2)


def test_leaving_the_road_ends_the_episode():
    env = make(off_road_ends=True)
    env.reset(seed=0)
    turn = np.array([0.6, 0.3], np.float32)
    _, reward, terminated, info = play(env, lambda _: turn)
    assert terminated and info["end"] == "off_road"
    assert not any(wheel.tiles for wheel in env.car.wheels)
    assert -100.0 - 0.1 * 3 - 1e-6 <= reward <= -100.0 + 4 * 1000 / len(env.track)


def test_driving_backwards_ends_the_episode():
    env, driver = make(backwards_ends=True), TrackDriver(speed=15.0)
    env.reset(seed=0)
    other_way = SimpleNamespace(car=env.car, track=env.track[:1] + env.track[:0:-1])
    proxy = SimpleNamespace(unwrapped=other_way)
    _, reward, terminated, info = play(env, lambda _: driver.act(proxy))
    assert terminated and info["end"] == "backwards" and reward < -90
    velocity, (x, y) = env.car.hull.linearVelocity, env._directions[0]
    assert x * velocity[0] + y * velocity[1] < -1


@pytest.mark.parametrize("limit", [3, 6])
def test_a_missed_tile_ends_the_episode(limit):
    env, driver = make(missed_limit=limit, action_repeat=1), TrackDriver(110.0, 0.5, 5)
    env.reset(seed=5)
    for _ in range(200):
        score = env.reward
        reward, terminated, _, info = env.simulate(driver.act(env))
        visited = [tile.road_visited for tile in env.road]
        missed = any(now and not then for now, then in zip(visited[limit:], visited, strict=False))
        assert missed == terminated
        if terminated:
            break
    assert info["end"] == "missed" and not any(visited[-20:])
    assert reward == pytest.approx(env.reward - score)  # a frame's own reward, no fine


@pytest.mark.parametrize(("speed", "noise", "seed"), [(80.0, 0.3, 1), (110.0, 0.5, 1)])
def test_each_place_passed_by_costs_once(speed, noise, seed):
    """By hand from stock's own book of tiles: stretches untouched between touched ones."""
    dear, free = make(missed_cost=20.0, action_repeat=1), make(action_repeat=1)
    driver, cost = TrackDriver(speed, noise, seed), 0.0
    for env in (dear, free):
        env.reset(seed=seed)
    ended = False
    while not ended:
        action = driver.act(dear)
        (paid, *ends), (got, *same) = dear.simulate(action), free.simulate(action)
        assert ends == same
        cost += got - paid
        ended = ends[0] or ends[1]
    assert dear.reward == free.reward  # what the picture shows
    visited = [tile.road_visited for tile in dear.road]
    stretches = [len(list(tiles)) for seen, tiles in itertools.groupby(visited) if not seen]
    *between, _ = stretches if not visited[-1] else [*stretches, 0]
    assert len(between) >= 2 and max(between) < 20
    assert cost == pytest.approx(20.0 * len(between))


def test_a_short_cut_and_the_way_back_cost_nothing():
    env = make(missed_cost=20.0)
    env.reset(seed=0)
    env._reached = set(range(10))
    assert env._places_passed_by({9 + 1 + 24}) == 0  # 21 tiles lie between it and the last
    assert env._places_passed_by({9 + 1 + 25}) == 0
    assert env._places_passed_by({len(env.track) - 4}) == 0
    env._passed_by.clear()
    assert env._places_passed_by({10 + 3}) == 1  # tile 10
    assert env._places_passed_by({11 + 3}) == 0  # and 11, the rest of the stretch


def test_wheels_off_the_road_cost_reward():
    """Each wheel a quarter, each frame; ends, pictures and score stay stock's."""
    dear, free = make(off_road_cost=2.0), make(action_repeat=1)
    for env in (dear, free):
        env.reset(seed=0)
    shares = set()
    for _ in range(60):
        action = np.array([0.3, 0.4], np.float32)
        paid, *ends = dear.simulate(action)
        owed = 0.0
        for _ in range(4):
            reward, *same = free.simulate(action)
            off = sum(not wheel.tiles for wheel in free.car.wheels) / 4
            shares.add(off)
            owed += reward - 2.0 * off
        assert paid == pytest.approx(owed) and ends[:2] == same[:2]
    assert shares == {0.0, 0.25, 0.5, 0.75, 1.0}
    np.testing.assert_array_equal(dear._draw(), free._draw())


def test_the_whole_range_of_the_action_may_steer():
    """Stock's wheels stand at 0.4 whether 0.4 or 1 is asked for; scaled, 1 asks for 0.4."""
    fine, stock_like = make(steer_scale=0.4), make()
    for env in (fine, stock_like):
        env.reset(seed=0)
    for steer in (0.5, -0.25, 1.0, 0.0):
        for _ in range(8):
            fine.step(np.array([steer, 0.1], np.float32))
            stock_like.step(np.array([0.4 * steer, 0.1], np.float32))
        np.testing.assert_array_equal(fine._draw(), stock_like._draw())
        front = fine.car.wheels[0].joint.angle
        assert front == pytest.approx(-0.4 * steer, abs=0.02)
    for full in (1.0, 0.4):
        stock_like.reset(seed=0)
        for _ in range(8):
            stock_like.step(np.array([full, 0.0], np.float32))
        assert stock_like.car.wheels[0].joint.angle == pytest.approx(-0.4, abs=0.03)


def test_no_tile_is_missed_on_a_lap():
    env, driver = make(missed_limit=3, missed_cost=20.0), TrackDriver()
    env.reset(seed=LAP_SEED)
    assert play(env, lambda _: driver.act(env))[3]["end"] == "lap" and not env._passed_by


def test_tracks_are_driven_either_way():
    """About half of them; the same road, pictures at the start apart, and whole laps."""
    rules = {"missed_limit": 3, "backwards_ends": True, "time_limit": 2000}
    either, plain = make(both_ways=True, **rules), make()
    turned = {}
    for seed in range(20):
        first, _ = either.reset(seed=seed)
        usual, _ = plain.reset(seed=seed)
        road = [[polygon for polygon, _ in env.road_poly] for env in (either, plain)]
        assert road[0] == road[1] and either.track[0][2:] == plain.track[0][2:]
        turned[seed] = either.track[1][2:] == plain.track[-1][2:]
        assert turned[seed] or either.track == plain.track
        assert np.array_equal(first, usual) == (not turned[seed])
        if turned[seed]:
            there, back = (
                np.array([beta for _, beta, _, _ in e.track[1:]]) for e in (plain, either)
            )
            np.testing.assert_allclose(np.diff(back), -np.diff(there)[::-1], atol=1e-9)
    assert 5 <= sum(turned.values()) <= 15
    driver = TrackDriver(60.0)
    either.reset(seed=next(seed for seed in turned if turned[seed]))
    assert play(either, lambda _: driver.act(either), 500)[3]["end"] == "lap"


def test_right_hand_bends_are_rare_unless_tracks_are_driven_either_way():
    plain, either = (
        np.sum([sharp_bends(env, s) for s in range(40)], axis=0)
        for env in (make(), make(both_ways=True))
    )
    assert plain[0] > 3 * plain[1] and either[0] < 2 * either[1]
    assert sum(either) == pytest.approx(sum(plain), rel=0.1)


def sharp_bends(env, seed):
    """Stretches on which the road turns by more than 1.2 within 6 tiles: (to the left, right)."""
    env.reset(seed=seed)
    beta = np.array([beta for _, beta, _, _ in env.track])
    turn = (np.roll(beta, -3) - np.roll(beta, 3) + np.pi) % (2 * np.pi) - np.pi
    return [np.sum(sharp & ~np.roll(sharp, 1)) for sharp in (turn > 1.2, turn < -1.2)]


def test_the_time_limit_may_end_an_episode_for_good():
    rest = np.zeros(2, np.float32)
    for ends in (False, True):
        env = make(time_limit=10, limit_ends=ends)
        env.reset(seed=0)
        flags = [env.simulate(rest)[1:] for _ in range(3)]
        assert all(not (terminated or truncated) for terminated, truncated, _ in flags[:-1])
        assert flags[-1] == (ends, not ends, flags[-1][2])
        assert flags[-1][2]["end"] == "time" and flags[-1][2]["frames"] == 2
        with pytest.raises(ResetNeeded):
            env.simulate(rest)


def drive_round(env, missed=()):
    """To the episode's end, some tiles counted as never reached -> the last decision's figures."""
    driver = TrackDriver()
    env.reset(seed=LAP_SEED)
    for tile in missed:
        env.road[tile].road_visited = True  # so that stock neither rewards nor counts it
    ends = [False]
    while not any(ends):
        reward, *ends, info = env.simulate(driver.act(env))
    with pytest.raises(ResetNeeded):
        env.simulate(driver.act(env))
    return reward, ends, info


@pytest.mark.parametrize("goes_on", [False, True])
def test_a_finished_lap_may_be_no_end_for_good(goes_on):
    reward, ends, info = drive_round(make(road_goes_on=goes_on))
    assert ends == [not goes_on, goes_on] and info["end"] == "lap" and info["progress"] == 1.0
    assert info["lap_finished"] and reward > 0


@pytest.mark.parametrize("missed", [[50], [-1], range(60, 80)])
def test_so_may_one_with_tiles_missed(missed):
    """At the first few tiles again, 5 at most; by stock's rules the car drives on."""
    plain, endless = make(), make(road_goes_on=True)
    stocks = drive_round(plain, missed)[-1]
    assert stocks["end"] == "time" and stocks["progress"] < 1.0
    _, ends, info = drive_round(endless, missed)
    assert ends == [False, True] and info["end"] == "round" and not info["lap_finished"]
    assert info["progress"] == stocks["progress"]
    under = {tile.idx for wheel in endless.car.wheels for tile in wheel.tiles}
    assert min(under) < 5 and endless._frame < plain._frame - 20


def test_one_with_more_than_a_tenth_missed_is_none():
    """The car has cut or turned round."""
    _, ends, info = drive_round(make(road_goes_on=True), range(60, 100))
    assert ends == [False, True] and info["end"] == "time"


def test_other_ends_stay_where_a_lap_is_none():
    rest = np.zeros(2, np.float32)
    for rules, ends in (
        ({"idle_limit": 8}, (True, False)),
        ({"time_limit": 8}, (False, True)),
        ({"time_limit": 8, "limit_ends": True}, (True, False)),
    ):
        env = make(road_goes_on=True, **rules)
        env.reset(seed=0)
        flags = [env.simulate(rest)[1:3] for _ in range(2)]
        assert flags == [(False, False), ends]


def test_ordinary_driving_breaks_no_rule():
    env, driver = make(off_road_ends=True, backwards_ends=True, idle_limit=100), TrackDriver(40.0)
    env.reset(seed=1)
    assert play(env, lambda _: driver.act(env))[3]["end"] == "time"


@pytest.mark.parametrize(
    "options",
    [
        {"action_repeat": 0},
        {"action_repeat": 1.5},
        {"action_repeat": "four"},
        {"time_limit": 0},
        {"idle_limit": -1},
        {"missed_limit": -1},
        {"missed_cost": -1.0},
        {"missed_cost": "dear"},
        {"off_road_cost": -0.5},
        {"steer_scale": 0.0},
        {"steer_scale": 1.5},
        {"steer_scale": True},
        {"skip_zoom": "no"},
        {"off_road_ends": None},
        {"limit_ends": "yes"},
        {"road_goes_on": 1},
        {"both_ways": 1},
        {"lap_complete_percent": 95},
        {"lap_complete_percent": "0.95"},
        {"render_mode": "ansi"},
    ],
)
def test_bad_options_are_named(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        RacingEnv(**options)


@pytest.mark.parametrize("action", [[np.nan, 0.0], [0.0, np.inf], [0.0], [[0.0, 0.0]]])
def test_bad_actions_are_refused(action):
    env = make()
    with pytest.raises(ResetNeeded):
        env.step(np.zeros(2, np.float32))
    env.reset(seed=0)
    with pytest.raises(ValueError, match="action"):
        env.step(np.array(action, np.float32))
