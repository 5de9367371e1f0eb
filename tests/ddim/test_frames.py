"""Frames to learn from: on the road and at speed, tracks kept apart, the same for the same seed."""

import numpy as np
import pytest

from ddim_jax.training import frames
from ddim_jax.training.frames import TEST_TRACKS, TrackPolicy, collect, load_frames, save_frames
from dreamer_jax.errors import UserError
from envs.make import HELD_OUT, MakeEnv

ENV = MakeEnv("DreamerCarRacing-v3", {"time_limit": 200})


class Spy:
    """Counts the seeds that an environment is reset to."""

    def __init__(self):
        self.seeds, self.speeds = [], []

    def __call__(self):
        env = ENV()
        reset = env.reset

        def noting(**options):
            self.seeds.append(options["seed"])
            return reset(**options)

        env.reset = noting
        return env


def test_frames_show_road_and_differ():
    images = collect(12, ENV, TrackPolicy(), 0, False)
    assert images.shape == (12, 96, 96, 3) and images.dtype == np.uint8
    assert len({image.tobytes() for image in images}) == 12
    # around the car (rows 60-80, its column) there is the grey of the road
    grey = (images[:, 55:65, 44:52].std(-1) < 8) & (images[:, 55:65, 44:52].mean(-1) < 130)
    assert np.mean(grey.mean((1, 2)) > 0.5) > 0.8


def test_the_same_seed_gives_the_same_frames():
    one, other = (collect(5, ENV, TrackPolicy(), 3, False) for _ in range(2))
    assert np.array_equal(one, other)
    assert not np.array_equal(one, collect(5, ENV, TrackPolicy(), 4, False))


def test_train_and_test_tracks_are_kept_apart(monkeypatch):
    monkeypatch.setattr(frames, "PER_TRACK", 2)
    train, test = Spy(), Spy()
    collect(6, train, TrackPolicy(), 0, False)
    collect(6, test, TrackPolicy(), 0, True)
    assert len(train.seeds) >= 3 and all(seed >= HELD_OUT for seed in train.seeds)
    assert test.seeds[:3] == [TEST_TRACKS, TEST_TRACKS + 1, TEST_TRACKS + 2]
    assert all(seed < HELD_OUT for seed in test.seeds)


def test_a_policy_that_sees_is_shown_every_picture():
    class Watching(TrackPolicy):
        sees, seen = True, []

        def act(self, env, image):
            self.seen.append(image.copy())
            return super().act(env, image)

    policy = Watching()
    collect(4, ENV, policy, 0, False)
    pairs = zip(policy.seen, policy.seen[1:], strict=False)
    assert all(not np.array_equal(a, b) for a, b in pairs)


def test_frames_of_a_standing_car_are_of_the_first_second_whatever_a_decision_lasts():
    class Standing(TrackPolicy):
        def act(self, env, image):
            return np.zeros(2, np.float32)

    for repeat, least, most in ((1, 6, 16), (8, 0, 2)):  # 49 and 6 decisions, 3 to 7 apart
        env = MakeEnv(ENV.env_id, {"time_limit": 120, "action_repeat": repeat})()
        for seed in range(3):
            kept = frames._episode(env, Standing(), 0, np.random.default_rng(seed), 40)
            assert least <= len(kept) <= most
        env.close()


def test_collecting_stops_between_two_episodes(monkeypatch):
    monkeypatch.setattr(frames, "PER_TRACK", 2)
    assert collect(4, ENV, TrackPolicy(), 0, False, stop=lambda: True) is None
    counts = []
    collected = collect(
        4, ENV, TrackPolicy(), 0, False, progress=counts.append, stop=lambda: bool(counts)
    )
    assert collected is None and len(counts) == 1
    assert len(collect(2, ENV, TrackPolicy(), 0, False, stop=lambda: bool(counts[1:]))) == 2


def test_file_round_trip_and_damage(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3), np.uint8)
    path = tmp_path / "frames.npz"
    save_frames(path, images, images[:2])
    train, test = load_frames(path)
    assert np.array_equal(train, images) and np.array_equal(test, images[:2])
    assert list(tmp_path.iterdir()) == [path]
    save_frames(path, images, None)
    train, test = load_frames(path)
    assert np.array_equal(train, images) and test is None
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"frames\.npz"):
        load_frames(path)
