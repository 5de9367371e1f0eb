"""Atari games after the protocol of 100k steps, and DeepMind's control suite."""

import os
import subprocess
import sys
from ctypes.util import find_library

import gymnasium
import numpy as np
import pytest

from envs import adapters
from envs.adapters import make

FIRE = np.eye(4, dtype=np.float32)[1]  # of Breakout's actions


@pytest.fixture
def breakout():
    pytest.importorskip("ale_py")
    pytest.importorskip("cv2")
    env = make("ALE/Breakout-v5", action_repeat=4)
    yield env
    env.close()


def test_atari_after_the_protocol():
    pytest.importorskip("ale_py")
    pytest.importorskip("cv2")
    env = make("ALE/Pong-v5", action_repeat=4, time_limit=30)
    assert env.discrete and env.action_space.shape == (6,)
    seen, _ = env.reset(seed=0)
    assert seen["image"].shape == (64, 64, 3)
    frames, truncated = [], False
    while not truncated:
        _, _, terminated, truncated, info = env.step(np.eye(6)[0])
        frames.append(info["frames"])
    assert frames == [4] * 8 and not terminated
    grey = make("ALE/Pong-v5", action_repeat=4, size=48, grayscale=True)
    assert grey.reset(seed=0)[0]["image"].shape == (48, 48, 1)


def test_no_action_of_a_game_is_repeated_at_random(breakout):
    assert breakout.unwrapped.ale.getFloat("repeat_action_probability") == 0.0


def test_a_game_begins_with_up_to_30_no_ops(breakout):
    begun = []
    for seed in range(8):
        breakout.reset(seed=seed)
        begun.append(breakout.unwrapped.ale.getEpisodeFrameNumber())
    assert 1 <= min(begun) < 10 and 20 < max(begun) <= 30 and len(set(begun)) > 5
    assert breakout.env.noop_max == 30


def test_a_decision_is_four_frames_of_which_the_last_two_are_pooled(breakout):
    """Against the bare game, frame by frame."""
    cv2 = pytest.importorskip("cv2")
    bare = gymnasium.make("ALE/Breakout-v5", frameskip=1, repeat_action_probability=0.0)
    breakout.reset(seed=3)
    bare.reset(seed=3)
    for _ in range(breakout.unwrapped.ale.getEpisodeFrameNumber()):
        bare.step(0)
    moved = 0
    for _ in range(20):
        seen, *_ = breakout.step(FIRE)
        older, last = [bare.step(1)[0] for _ in range(4)][-2:]
        moved += np.any(older > last)  # as where the ball was
        pooled = np.maximum(older, last)
        want = cv2.resize(pooled, (64, 64), interpolation=cv2.INTER_AREA)
        np.testing.assert_array_equal(seen["image"], want)
    assert moved > 5


def test_the_loss_of_a_life_ends_nothing(breakout):
    breakout.reset(seed=0)
    left = [breakout.unwrapped.ale.lives()]
    terminated = truncated = False
    while not terminated:
        assert left[-1] > 0 and not truncated
        *_, terminated, truncated, _ = breakout.step(FIRE)  # the ball is never hit
        left.append(breakout.unwrapped.ale.lives())
    assert sorted(set(left)) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("env_id", "use"),
    [
        ("ale_py:PongNoFrameskip-v4", "ALE/Pong-v5"),
        ("ale_py:Pong-v4", "ALE/Pong-v5"),
        ("ale_py:Pong", "ALE/Pong-v5"),
        ("ale_py:SpaceInvaders-v0", "ALE/SpaceInvaders-v5"),
    ],
)
def test_games_by_older_ids_are_refused(env_id, use):
    pytest.importorskip("ale_py")
    with pytest.raises(ValueError, match=rf"{env_id}: .*use {use}$"):
        make(env_id, action_repeat=4)


def test_a_module_before_the_id_changes_nothing():
    pytest.importorskip("ale_py")
    plain, named = (make(x, action_repeat=4) for x in ("ALE/Pong-v5", "ale_py:ALE/Pong-v5"))
    for env in (plain, named):
        env.reset(seed=0)
        *_, info = env.step(np.eye(6, dtype=np.float32)[0])
        assert info["frames"] == 4
    assert plain.observation_space == named.observation_space


def test_control_tasks():
    pytest.importorskip("dm_control")
    pytest.importorskip("shimmy")
    env = make("dm_control/cartpole-swingup-v0", action_repeat=2, time_limit=6)
    assert set(env.reset(seed=0)[0]) == {"position", "velocity"} and not env.discrete
    ends = [env.step(np.ones(1, np.float32))[3] for _ in range(3)]
    assert ends == [False, False, True]


def test_a_control_tasks_own_end_is_a_time_limit():
    """The suite's, not ours: 1000 of its steps, and no end that values stop at."""
    pytest.importorskip("dm_control")
    pytest.importorskip("shimmy")
    env = make("dm_control/cartpole-swingup-v0", action_repeat=100, time_limit=10_000)
    env.reset(seed=0)
    ends = [env.step(np.zeros(1, np.float32))[2:4] for _ in range(10)]
    assert ends == [(False, False)] * 9 + [(False, True)]


DRAWN = """
import numpy as np
from envs.adapters import make
env = make("dm_control/cartpole-swingup-v0", action_repeat=2, pixels=32)
first = env.reset(seed=0)[0]
for _ in range(10):
    last = env.step(np.ones(1, np.float32))[0]
assert env.observation_space.contains(first) and env.observation_space["image"].shape == (32, 32, 3)
np.testing.assert_array_equal(env.reset(seed=0)[0]["image"], first["image"])
print(first["image"].std() > 5, (first["image"] != last["image"]).mean() > 0.01)
"""


def draw(**variables):
    """In a process of its own: what MuJoCo draws with is chosen at the first import."""
    pytest.importorskip("dm_control")
    pytest.importorskip("shimmy")
    given = {name: x for name, x in os.environ.items() if name not in ("MUJOCO_GL", "DISPLAY")}
    given.pop("PYOPENGL_PLATFORM", None)
    path = os.pathsep.join(filter(None, sys.path))
    return subprocess.run(
        [sys.executable, "-c", DRAWN],
        env={**given, "PYTHONPATH": path, **variables},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("library", ["egl", "osmesa"])
def test_control_tasks_are_drawn(library):
    drawn = draw(MUJOCO_GL=library)
    if "MuJoCo cannot draw" in drawn.stderr:
        pytest.skip(f"no {library} here")
    assert drawn.stdout.split() == ["True", "True"], drawn.stderr


def check_remedy(drawn, library):
    last = drawn.stderr.strip().splitlines()[-1]
    assert last.startswith("ValueError: dm_control/cartpole-swingup-v0: MuJoCo cannot draw")
    for word in (f"MUJOCO_GL={library} (", "MUJOCO_GL=egl", "libegl1", "=osmesa", "libosmesa6"):
        assert word in last
    assert "pip install" not in last


@pytest.mark.skipif(find_library("OSMesa") is not None, reason="OSMesa is here")
def test_control_without_osmesa_names_the_remedy():
    check_remedy(draw(MUJOCO_GL="osmesa"), "osmesa")


def test_control_tasks_with_cameras_of_their_own_name_the_remedy(monkeypatch):
    class FatalError(Exception):
        __module__ = "mujoco"

    def fail(*_, **__):
        raise FatalError("an OpenGL platform library has not been loaded")

    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(adapters, "_register_control", lambda: None)
    monkeypatch.setattr(adapters.gymnasium, "make", fail)
    with pytest.raises(ValueError, match=r"RodentEscapeBowl.*OpenGL.*set MUJOCO_GL=egl"):
        make("dm_control/RodentEscapeBowl-v0")
    with pytest.raises(FatalError):
        make("CartPole-v1")


def test_control_without_an_egl_display_names_the_remedy():
    nowhere = {"__EGL_VENDOR_LIBRARY_DIRS": "/nowhere"}  # its drivers are not found
    check_remedy(draw(MUJOCO_GL="egl", **nowhere), "egl")


def test_an_attribute_that_is_missing_elsewhere_is_no_matter_of_drawing(monkeypatch):
    def fail():
        return None.nothing

    monkeypatch.setattr(adapters, "_register_control", fail)
    with pytest.raises(AttributeError, match="nothing"):
        make("dm_control/cartpole-swingup-v0")
