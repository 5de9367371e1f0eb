"""Races as streams of one car each."""

import json

import numpy as np
import pytest

from envs.make import EpisodeSeeds, MakeEnv
from envs.races import RaceEnv, RaceStreams
from envs.vector import VectorEnv

RULES = {"time_limit": 60, "idle_limit": 20}
MAKE = MakeEnv("DreamerMultiCarRacing-v0", {"cars": 2, **RULES})


def forwards(streams, rng):
    """Full throttle, a little steering; every second car stands still and idles out."""
    actions = np.stack([rng.uniform(-0.3, 0.3, streams), np.ones(streams)], axis=1)
    actions[1::2] = 0.0
    return actions.astype(np.float32)


@pytest.fixture(scope="module")
def played():
    """Two groups of one race of two cars: 45 steps, and a snapshot taken amidst the second race."""
    rng = np.random.default_rng(0)
    actions = [forwards(4, rng) for _ in range(45)]
    streams = RaceStreams(MAKE, [EpisodeSeeds(0), EpisodeSeeds(7)], groups=2)
    try:
        records, kept = [], None
        for step, action in enumerate(actions):
            records.append(streams.step(action).copy())
            if step == 24:
                kept = json.loads(json.dumps(streams.snapshot()))
        assert streams.num_envs == 4 and streams.observation_space["image"].shape == (96, 96, 3)
        assert streams.action_space.shape == (2,)
    finally:
        streams.close()
    return actions, records, kept


def test_each_stream_is_its_car_of_its_race(played):
    actions, records, _ = played
    env = RaceEnv(cars=2, **RULES)
    for group, base in enumerate((0, 7)):
        view, _ = env.reset(seed=EpisodeSeeds(base)(0))
        mine = slice(2 * group, 2 * group + 2)
        np.testing.assert_array_equal(records[0].observation["image"][mine], view)
        assert records[0].is_first[mine].all() and records[0].given.all()
        ended = np.zeros(2, bool)
        for action, record in zip(actions[1:], records[1:], strict=False):
            if ended.all():
                break
            view, reward, terminated, truncated, info = env.step(action[mine])
            np.testing.assert_array_equal(record.observation["image"][mine], view)
            np.testing.assert_array_equal(record.reward[mine], reward.astype(np.float32))
            np.testing.assert_array_equal(record.given[mine], info["given"])
            np.testing.assert_array_equal(record.frames[mine], info["frames"])
            fresh = (terminated | truncated) & info["given"]
            np.testing.assert_array_equal(record.is_last[mine], fresh)
            np.testing.assert_array_equal(record.is_terminal[mine], terminated & info["given"])
            ended = terminated | truncated
        assert ended.all()


def test_who_ended_waits_for_the_other_and_both_begin_anew_together(played):
    _, records, _ = played
    given, first, last = (np.array([getattr(r, n) for r in records]) for n in
                          ("given", "is_first", "is_last"))  # fmt: skip
    for car in range(4):
        other = car ^ 1
        ends, begins = np.flatnonzero(last[:, car]), np.flatnonzero(first[:, car])
        np.testing.assert_array_equal(begins, np.flatnonzero(first[:, other]))
        waited = ~given[ends[0] + 1 : begins[1], car]
        assert waited.all() and given[begins[1] :, car][: ends[0]].all()
    assert (~given[:, 1]).any() and given[: np.flatnonzero(last[:, 0])[0], 0].all()


def test_a_race_continues_from_its_snapshot(played):
    actions, records, kept = played
    streams = RaceStreams(MAKE, [EpisodeSeeds(0), EpisodeSeeds(7)], groups=2)
    try:
        restored = streams.restore(kept).copy()
        want = records[24]._replace(given=np.zeros(4, bool))
        for now, then in zip(
            restored._replace(given=want.given).arrays(), want.arrays(), strict=True
        ):
            np.testing.assert_array_equal(now, then)
        for action, expected in zip(actions[25:], records[25:], strict=True):
            for now, then in zip(streams.step(action).arrays(), expected.arrays(), strict=True):
                np.testing.assert_array_equal(now, then)
    finally:
        streams.close()


def test_streams_of_several_races_a_group_stand_learner_by_learner():
    seeds = [EpisodeSeeds(n) for n in range(4)]
    streams = RaceStreams(MAKE, seeds, groups=2)
    try:
        record = streams.step(np.zeros((8, 2))).copy()
    finally:
        streams.close()
    with VectorEnv(MAKE, seeds) as races:
        views = races.step(np.zeros((4, 2, 2))).observation["image"].copy()  # [race, car]
    for group in range(2):
        for car in range(2):
            for race in range(2):
                stream = 4 * group + 2 * car + race
                np.testing.assert_array_equal(
                    record.observation["image"][stream], views[2 * group + race, car]
                )
