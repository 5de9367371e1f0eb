"""Environments of all kinds behind one face: what is seen, done, repeated, limited and refused."""

import json
import pickle
import sys

import gymnasium
import numpy as np
import pytest
from counting_env import Numbered
from dict_env import DictEnv, MakeDict
from gymnasium import spaces

import envs.car_racing  # noqa: F401  imports Box2D, whose warnings are no errors
from envs import adapters
from envs.adapters import Adapted, make
from envs.conversions import picture
from envs.make import EpisodeSeeds, MakeEnv
from envs.vector import VectorEnv

LEFT, RIGHT = np.eye(2, dtype=np.float32)


def test_every_kind_of_entry_by_hand():
    env = Adapted(DictEnv())
    env.reset(seed=0)
    seen, reward, terminated, truncated, info = env.step(np.zeros(4))
    assert env.observation_space.contains(seen) and not env.discrete
    assert {name: x.shape for name, x in seen.items()} == {
        "image": (4, 6, 3), "grey": (4, 6, 1), "arm_angle": (4,), "level": (4,), "doors": (3,),
        "dials": (5,), "pair_0": (1,), "pair_1": (2,),
    }  # fmt: skip
    assert seen["image"].dtype == seen["grey"].dtype == np.uint8
    assert (seen["image"] == 1).all() and (seen["grey"] == 10).all()
    vectors = {name: x.tolist() for name, x in seen.items() if x.dtype == np.float32}
    assert vectors == {
        "arm_angle": [1, 1.25, -1, 0],
        "level": [0, 1, 0, 0],  # the second from 3
        "doors": [1, 1, 0],
        "dials": [0, 1, 0, 1, 0],
        "pair_0": [0.5],
        "pair_1": [0, 1],
    }
    assert (reward, terminated, truncated, info["frames"]) == (1.0, False, False, 1)


def test_actions_are_stretched_to_finite_bounds_and_passed_elsewhere():
    env = Adapted(DictEnv())
    assert env.action_space == spaces.Box(-1.0, 1.0, (4,), np.float32)
    env.reset()
    for action, want in (
        ([-1, -1, -1, -1], [[0, -3], [-1, -1]]),
        ([1, 1, 1, 1], [[10, -1], [1, 1]]),
        ([0, 0.5, 0.25, 7], [[5, -1.5], [0.25, 7]]),
        ([2, -2, 9, -7], [[10, -3], [1, -7]]),
    ):
        env.step(np.array(action, np.float32))
        assert env.unwrapped.action.dtype == np.float64
        np.testing.assert_array_equal(env.unwrapped.action, want)


def test_a_repeat_sums_rewards_and_stops_at_the_end():
    env = Adapted(DictEnv(length=5), action_repeat=3)
    env.reset()
    first, last = (env.step(np.zeros(4)) for _ in range(2))
    assert (first[1], first[2], first[4]["frames"]) == (1 + 2 + 3, False, 3)
    assert (last[1], last[2], last[3], last[4]["frames"]) == (4 + 5, True, False, 2)
    assert last[0]["arm_angle"][0] == 5


def test_the_time_limit_truncates_also_amidst_a_repeat():
    env = Adapted(DictEnv(length=9), action_repeat=3, time_limit=4)
    for _ in range(2):
        env.reset()
        assert env.step(np.zeros(4))[2:4] == (False, False)
        *_, terminated, truncated, info = env.step(np.zeros(4))
        assert (terminated, truncated, info["frames"]) == (False, True, 1)


def test_cart_pole_is_the_stock_one():
    env, stock = make("CartPole-v1"), gymnasium.make("CartPole-v1")
    assert env.discrete and env.action_space.shape == (2,)
    seen, want = env.reset(seed=3)[0], stock.reset(seed=3)[0]
    for step in range(200):
        np.testing.assert_array_equal(seen["vector"], want)
        seen, *rest = env.step(RIGHT if step % 3 else LEFT)
        want, *others = stock.step(int(step % 3 > 0))
        assert rest[:3] == others[:3]
        if rest[1]:
            break
    assert rest[1]


def test_pendulum_is_the_stock_one_at_twice_the_action():
    env, stock = make("Pendulum-v1"), gymnasium.make("Pendulum-v1")
    env.reset(seed=1), stock.reset(seed=1)
    for _ in range(5):
        seen, reward, *_ = env.step(np.array([0.25], np.float32))
        want, other, *_ = stock.step(np.array([0.5], np.float32))
        np.testing.assert_array_equal(seen["vector"], want)
        assert reward == other


def test_pixels_are_the_rendered_picture():
    env = make("Pendulum-v1", pixels=24, action_repeat=2)
    assert env.observation_space == spaces.Dict(
        {"image": spaces.Box(0, 255, (24, 24, 3), np.uint8)}
    )
    first = env.reset(seed=1)[0]["image"]
    stock = gymnasium.make("Pendulum-v1", render_mode="rgb_array")
    stock.reset(seed=1)
    np.testing.assert_array_equal(first, picture(stock.render(), 24))
    later = env.step(np.ones(1))[0]["image"]
    assert env.observation_space["image"].contains(later) and (first != later).any()
    with pytest.raises(ValueError, match="rgb_array"):
        Adapted(gymnasium.make("Pendulum-v1"), pixels=24)


class Given(gymnasium.Env):
    """Gives what it is told to, whatever its spaces say."""

    observation_space = spaces.Dict({"arm": spaces.Box(-1, 1, (4,)), "lamp": spaces.Discrete(3)})
    action_space = spaces.Discrete(2)
    render_mode = "rgb_array"

    def __init__(self, arm=(0.0, 0.0, 0.0, 0.0), reward=1.0, picture=None):
        self.arm, self.reward, self.picture = np.array(arm), reward, picture

    def reset(self, *, seed=None, options=None):
        return {"arm": self.arm, "lamp": 1}, {}

    def step(self, action):
        return {"arm": self.arm, "lamp": 1}, self.reward, False, False, {}

    def render(self):
        return self.picture


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"arm": [3.0]}, r"'arm' makes an array of shape \(1,\) where its space makes \(4,\)"),
        ({"arm": [0.0, np.nan, 0.0, 0.0]}, "observation: 'arm' contains nan"),
        ({"arm": [0.0, 0.0, -np.inf, 0.0]}, "infinite number.*ObservationWrapper"),
        ({"reward": np.nan}, "reward: the environment gave nan"),
        ({"reward": np.inf}, "reward: the environment gave inf"),
    ],
)
def test_what_the_spaces_deny_is_refused_where_it_is_seen(options, said):
    Adapted(Given()).reset()  # as it should be
    env = Adapted(Given(**options))
    with pytest.raises(ValueError, match=said):
        env.reset()
        env.step(LEFT)


@pytest.mark.parametrize("shape", [(20, 30), (20, 30, 1), (20, 30, 3)])
def test_grey_renders_are_pictures_too(shape):
    env = Adapted(Given(picture=np.full(shape, 7, np.int64)), pixels=16)
    (image,) = env.reset()[0].values()
    assert env.observation_space["image"].contains(image) and (image == 7).all()


@pytest.mark.parametrize(
    "picture", [np.ones((20, 30, 3)), np.ones((20, 30, 4), np.uint8), np.ones(20, np.uint8), None]
)
def test_renders_that_are_no_pictures_are_refused(picture):
    env = Adapted(Given(picture=picture), pixels=16)  # floats of 1 would be as good as black
    with pytest.raises(ValueError, match=r"pixels: render\(\) gives .*pixels=0"):
        env.reset()


def test_stock_car_racing_is_resized():
    env = make("CarRacing-v3", size=32, action_repeat=2)
    seen, info = env.reset(seed=0)
    assert seen["image"].shape == (32, 32, 3) and env.action_space.shape == (3,)
    seen, _, _, _, info = env.step(np.array([0, 1, -1], np.float32))
    assert info["frames"] == 2 and info["lap_finished"] is False
    assert env.observation_space.contains(seen)


def test_the_races_are_left_alone():
    for name in ("DreamerCarRacing-v3", "DreamerMultiCarRacing-v0"):
        env = MakeEnv(name)()
        assert isinstance(env.observation_space, spaces.Box)
        assert not isinstance(env, Adapted)


def played(make_env, seeds, steps, kept_at, policy, num_workers=1):
    """Records of a `VectorEnv`, then those after a snapshot played again in other processes."""
    with VectorEnv(make_env, seeds, num_workers=num_workers) as streams:
        size = streams.action_space.shape[0]
        actions = [policy(step, len(seeds), size) for step in range(steps)]
        records = []
        for step, action in enumerate(actions):
            records.append(streams.step(action).copy())
            if step == kept_at:
                snapshot = json.loads(json.dumps(streams.snapshot()))
    with VectorEnv(make_env, seeds, num_workers=num_workers) as streams:
        again = [streams.restore(snapshot).copy()._replace(given=records[kept_at].given)]
        again += [streams.step(action).copy() for action in actions[kept_at + 1 :]]
    return records, again


def check_same(records, others):
    for one, other in zip(records, others, strict=True):
        assert list(one.observation) == list(other.observation)
        for x, y in zip(one.arrays(), other.arrays(), strict=True):
            np.testing.assert_array_equal(x, y)


def chance(step, number, size):
    return np.random.default_rng(step).uniform(-1, 1, (number, size)).astype(np.float32)


@pytest.mark.parametrize(
    ("make_env", "name"),
    [
        (MakeEnv("CartPole-v1", {"time_limit": 15}), "vector"),
        (MakeEnv("Pendulum-v1", {"pixels": 16, "action_repeat": 9, "time_limit": 60}), "image"),
        (MakeDict(), "arm_angle"),
    ],
)
def test_streams_go_on_from_their_snapshot(make_env, name):
    """Amidst the second episode or later; and the records do not all look the same."""
    seeds = [EpisodeSeeds(0), EpisodeSeeds(1)]
    records, again = played(pickle.loads(pickle.dumps(make_env)), seeds, 40, 24, chance)
    check_same(records[24:], again)
    firsts = np.array([record.is_first for record in records])
    assert (firsts[1:25].sum(0) > 0).all()
    assert len({record.observation[name].tobytes() for record in records}) > 5


def test_streams_of_cart_pole_are_cart_poles():
    records, _ = played(MakeEnv("CartPole-v1"), [Numbered(0), Numbered(1)], 30, 0, chance)
    for e in range(2):
        env, episode = gymnasium.make("CartPole-v1"), -1
        for step, record in enumerate(records):
            if record.is_first[e]:
                episode += 1
                want, ends = env.reset(seed=100 * e + episode)[0], False
            else:
                action = int(chance(step, 2, 2)[e].argmax())
                want, reward, terminated, truncated, _ = env.step(action)
                assert record.reward[e] == reward and record.is_terminal[e] == terminated
                ends = terminated or truncated
            np.testing.assert_array_equal(record.observation["vector"][e], want)
            assert record.is_last[e] == ends and record.given[e]
            assert record.frames[e] == (not record.is_first[e])
        assert episode > 0


def test_streams_say_whether_actions_are_discrete():
    for make_env, discrete in ((MakeEnv("CartPole-v1"), True), (MakeDict(), False)):
        with VectorEnv(make_env, [EpisodeSeeds(0)]) as streams:
            assert streams.discrete is discrete
            dtypes = {box.dtype.name for box in streams.observation_space.values()}
            assert dtypes <= {"uint8", "float32"}


def test_an_attribute_called_players_means_nothing():
    with VectorEnv(MakeDict(), [EpisodeSeeds(0)]) as usual:
        shape = usual.record.reward.shape
    with VectorEnv(make_players, [EpisodeSeeds(0)]) as streams:
        streams.step(np.zeros((1, 4)))
        assert streams.record.reward.shape == shape == (1,)


def make_players():
    env = MakeDict()()
    env.unwrapped.players = 2
    return env


def test_what_cannot_be_made_is_no_death_to_go_on_from():
    with pytest.raises(ValueError, match=r"cannot be made: TypeError.*'colour'") as error:
        VectorEnv(MakeEnv("CartPole-v1", {"colour": "red"}), [EpisodeSeeds(0)])
    assert "--resume" not in str(error.value)


def test_what_is_not_adapted_is_refused():
    with pytest.raises(ValueError, match=r"Discrete\(2\) is not a Box.*envs.adapters.Adapted"):
        VectorEnv(make_bare, [EpisodeSeeds(0)])


def make_bare():
    return gymnasium.make("CartPole-v1")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"action_repeat": 0}, "action_repeat: 0 given"),
        ({"time_limit": -1}, "time_limit: -1 given"),
        ({"pixels": True}, "pixels: True given"),
        ({"size": 2.5}, "size: 2.5 given"),
        ({"grayscale": True}, "no Atari game"),
    ],
)
def test_impossible_options_are_named(options, text):
    with pytest.raises(ValueError, match=text):
        make("CartPole-v1", **options)


def test_unknown_environments_are_one_clear_line():
    with pytest.raises(ValueError, match="Nowhere-v0: "):
        VectorEnv(MakeEnv("Nowhere-v0"), [EpisodeSeeds(0)])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import nowhere_at_all", "ModuleNotFoundError: No module named 'nowhere_at_all'"),
        ("1 / 0", r"ZeroDivisionError: division by zero \(broken_envs.py:1\)"),
        ("a module:", "SyntaxError: "),
        (None, "ModuleNotFoundError: No module named 'broken_envs'; it must be on PYTHONPATH"),
    ],
)
def test_a_module_that_cannot_be_imported_is_one_clear_line(monkeypatch, tmp_path, text, said):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "broken_envs", raising=False)
    if text is not None:
        (tmp_path / "broken_envs.py").write_text(text)
    with pytest.raises(ValueError, match=rf"^broken_envs:Room-v0: .*{said}") as error:
        make("broken_envs:Room-v0")
    assert "\n" not in str(error.value)


def test_a_module_before_an_unknown_id_is_no_matter():
    with pytest.raises(ValueError, match=r"dict_env:Nowhere-v0: .*Nowhere"):
        make("dict_env:Nowhere-v0")
    with pytest.raises(ValueError, match="dict_env:a b!: "):
        make("dict_env:a b!")


def test_joint_choices_reach_the_environment():
    class Dials(DictEnv):
        action_space = spaces.MultiDiscrete([3, 2])

    env = Adapted(Dials())
    env.reset()
    env.step(np.eye(6, dtype=np.float32)[3])
    assert env.discrete and env.action_space.shape == (6,)
    assert env.unwrapped.action.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("env_id", "module", "extra"),
    [("ALE/Pong-v5", "ale_py", "atari"), ("dm_control/cheetah-run-v0", "dm_control", "dmc")],
)
def test_a_package_that_is_missing_is_named_with_its_extra(monkeypatch, env_id, module, extra):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=rf"{module}.*pip install -e '.\[{extra}\]'"):
        make(env_id)


@pytest.mark.parametrize(("display", "chosen"), [("", "egl"), (":0", None)])
def test_without_a_display_pictures_are_rendered_with_egl(monkeypatch, display, chosen):
    monkeypatch.setattr(sys, "platform", "linux")
    own = {"DISPLAY": display} if display else {}
    monkeypatch.setattr(adapters.os, "environ", own)
    make("Pendulum-v1", pixels=8)
    assert own.get("MUJOCO_GL") == chosen
