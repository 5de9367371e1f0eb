"""Scripted drivers: reproducible, varied, and the one that knows the track stays on it."""

import json

import numpy as np
import pytest

from envs.drivers import SmoothDriver, TrackDriver
from envs.make import MakeEnv


def drive(driver, steps, active=None):
    """An episode's first decision every 50 -> actions [steps, E, 2]."""
    first = [np.full(driver.num_envs, step % 50 == 0) for step in range(steps)]
    return np.stack([driver.act(is_first, active) for is_first in first])


def test_smooth_driver_is_decided_by_its_seed():
    actions = drive(SmoothDriver(3, 1), 120)
    assert actions.dtype == np.float32 and np.abs(actions).max() <= 1
    np.testing.assert_array_equal(actions, drive(SmoothDriver(3, 1), 120))
    assert (actions != drive(SmoothDriver(3, 2), 120)).any()
    assert (actions[:, 0] != actions[:, 1]).any()  # each environment for itself
    assert (actions[:50] != actions[50:100]).any()  # and each episode


def test_smooth_driver_continues_from_its_state():
    driver = SmoothDriver(2, 5)
    drive(driver, 33)
    state = json.loads(json.dumps(driver.get_state()))
    other = SmoothDriver(2, 6)
    other.set_state(state)
    np.testing.assert_array_equal(drive(driver, 80), drive(other, 80))
    with pytest.raises(ValueError, match="state"):
        SmoothDriver(3, 5).set_state(state)


def test_cars_steer_the_same_at_any_scale():
    stock, fine = drive(SmoothDriver(3, 1), 120), drive(SmoothDriver(3, 1, steer_scale=0.4), 120)
    np.testing.assert_allclose(fine[..., 0], np.clip(stock[..., 0] / 0.4, -1, 1), rtol=1e-6)
    np.testing.assert_array_equal(fine[..., 1], stock[..., 1])
    assert 0.4 < abs(fine[..., 0]).max() <= 1.0


def test_inactive_environments_do_not_move_the_process():
    driver, other = SmoothDriver(2, 5), SmoothDriver(2, 5)
    actions = drive(driver, 20, np.array([True, False]))
    assert not actions[:, 1].any()
    drive(other, 20, np.array([True, False]))
    np.testing.assert_array_equal(drive(driver, 20), drive(other, 20))
    assert driver.get_state()["rngs"] == other.get_state()["rngs"]


def test_smooth_driving_is_smooth_and_forward():
    steer, pedal = np.moveaxis(drive(SmoothDriver(40, 0), 1000), -1, 0)
    within = np.ones(999, bool)
    within[49::50] = False  # between episodes it may jump
    changes = np.diff(steer, axis=0)[within]
    assert np.abs(changes).mean() < 0.5 * np.abs(steer).mean()
    assert 0.05 < pedal.mean() < 0.5 and 0.01 < (pedal < -0.05).mean() < 0.2
    assert 0.05 < steer.std() < 0.4


def test_track_driver_stays_on_the_road_at_speed():
    env, driver = MakeEnv("DreamerCarRacing-v3")().unwrapped, TrackDriver()
    env.reset(seed=1)
    on_road, speeds = [], []
    for _ in range(240):
        action = driver.act(env)
        assert action.dtype == np.float32 and np.abs(action).max() <= 1
        info = env.simulate(action)[3]
        on_road.append(any(wheel.tiles for wheel in env.car.wheels))
        speeds.append(np.hypot(*env.car.hull.linearVelocity))
    assert np.mean(on_road) > 0.9 and np.mean(speeds) > 30 and info["progress"] > 0.7
