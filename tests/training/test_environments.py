"""From the settings to environments of all kinds, and a whole run on numbers, not pictures."""

import json
from contextlib import closing
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dict_env import MakeDict
from logged import lines

from dreamer_jax.agents.dlc_v1 import make_dlc_v1
from dreamer_jax.errors import UserError
from dreamer_jax.training import environments, loop
from dreamer_jax.training.arms import make_agent
from dreamer_jax.training.collect import Collector, Decision
from dreamer_jax.training.config import EnvConfig
from dreamer_jax.training.display import Display
from dreamer_jax.training.environments import (
    PLAIN,
    make_driver,
    make_env,
    make_race,
    spec_of,
    streams,
)
from dreamer_jax.training.loop import Run
from dreamer_jax.training.presets import FAMILY, PRESETS, for_env
from dreamer_jax.training.run_folder import RunFolder
from dreamer_jax.training.signals import StopRequest
from dreamer_jax.types import Agent, Spec
from envs import MULTI_CAR_RACE, RACE
from envs.drivers import RandomDriver, SmoothDriver
from envs.make import HELD_OUT, EpisodeSeeds, MakeEnv
from envs.vector import EnvironmentDied, VectorEnv

POLE = EnvConfig(id="CartPole-v1", action_repeat=2, time_limit=60)
CONFIG = replace(
    PRESETS["debug"],
    arm="baseline",
    env=POLE,
    cycles=3,
    cycle_unit="steps",
    cycle_size=40,
    updates=2,
    envs=2,
    prefill=30,
    batch=3,
    length=4,
    replay=400,
    report_every=0,
    eval_every=3,
    eval_episodes=2,
    checkpoint_every=2,
)


class State(NamedTuple):
    """The mean of what was seen, and the updates so far."""

    mean: jax.Array
    step: jax.Array


def make_numbers(config, spec) -> Agent:
    """Chooses at random, and learns the mean of each number it sees."""
    size = sum(shape[0] for shape, _ in spec.obs.values())

    def init(key):
        return State(jnp.zeros(size), jnp.int32(0))

    def carry(num_envs):
        return {"seen": jnp.zeros((num_envs, size))}

    def act(state, carry, obs, is_first, key, mode):
        seen = jnp.concatenate([obs[name] for name in sorted(obs)], -1)
        noise = jax.random.normal(key, (len(is_first), spec.action)) * (mode == "train")
        choice = jnp.argmax(seen[:, :1] * jnp.arange(spec.action) + noise, -1)
        return jax.nn.one_hot(choice, spec.action), {"seen": seen}

    def update(state, batch, key):
        seen = jnp.concatenate([batch.obs[name] for name in sorted(batch.obs)], -1)
        mean = 0.9 * state.mean + 0.1 * seen.mean((0, 1))
        chosen = batch.prev_action.max(-1).sum() / (1 - batch.is_first).sum()
        return State(mean, state.step + 1), {"loss/mean": mean.sum(), "action/largest": chosen}

    return Agent(init, carry, act, update, None, State(0, None), ("loss/mean",))


def trained(path, *parts):
    """Lines and state of a run that is taken up again for each number of cycles in `parts`."""
    with RunFolder.create(path, "run") as folder:
        for cycles in parts:
            with Run(make_numbers, replace(CONFIG, cycles=cycles), folder) as run:
                first = cycles == parts[0]
                assert not (run.start() if first else run.load())
                frames = None if first else run.collector.frames
                display = Display(path, run.members, cycles, run.cycle, frames, quiet=True)
                if first:
                    run.prefill(display, StopRequest())
                run.train(display, StopRequest())
                display.close()
                state = jax.device_get(run.state)
    return lines(path), state


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("numbers") / "whole", 3)


def test_a_run_on_numbers_with_discrete_actions(whole):
    records, state = whole
    learnt = [r for r in records if "loss/mean" in r]
    assert len(learnt) == 3 and int(state.step) == 6 and np.any(state.mean != 0)
    assert all(r["action/largest"] == pytest.approx(1) for r in learnt)
    episodes = [r for r in records if "episode/return" in r]
    assert len(episodes) > 4
    for record in episodes:  # a reward of 1 for every frame
        assert record["episode/return"] == record["episode/frames"] <= 60
        assert record["episode/length"] == -(-record["episode/frames"] // 2)
        assert record["episode/progress"] == record["episode/lap"] == 0
    assert any("eval/return" in r for r in records)


def test_a_stopped_run_on_numbers_goes_on_as_if_it_had_not_been(whole, tmp_path):
    records, state = trained(tmp_path / "run", 2, 3)
    jax.tree.map(np.testing.assert_array_equal, state, whole[1])
    episodes, want = ([r for r in x if "episode/return" in r] for x in (records, whole[0]))
    assert episodes == want


class StopsAfter:
    """A request to stop that comes after it was looked at so often."""

    def __init__(self, looks):
        self.looks = looks

    @property
    def requested(self):
        self.looks -= 1
        return self.looks < 0


def test_a_stop_while_it_trains_on_the_drivers_records_loses_nothing(tmp_path):
    """Saved after two of four rounds, it makes the other two and is as if it had not been."""
    config, states = replace(CONFIG, pretrain=4, cycles=1, eval_every=0), {}

    def run_on(folder, stop, fresh, rounds, trains=True):
        with Run(make_numbers, config, folder) as run:
            display = Display(folder.path, run.members, 1, quiet=True)
            if fresh:
                run.start()
                assert run.prefill(display, StopRequest())
            else:
                run.load()
            run.pretrain(display, stop)
            assert (run.pretrained, run.updates) == (rounds, 2 * rounds)
            if trains:
                run.train(display, StopRequest())
                states[folder.path.name] = jax.device_get(run.state)
            display.close()

    with RunFolder.create(tmp_path / "whole", "run") as folder:
        run_on(folder, StopRequest(), True, 4)
    for stops in (2, 4):  # in the last one, too
        with RunFolder.create(tmp_path / str(stops), "run") as folder:
            run_on(folder, StopsAfter(stops), True, stops, trains=False)
            run_on(folder, StopRequest(), False, 4)
        jax.tree.map(np.testing.assert_array_equal, states[str(stops)], states["whole"])


def test_a_stop_among_the_drivers_decisions_ends_them(tmp_path):
    config = replace(CONFIG, prefill=300)
    with RunFolder.create(tmp_path, "run") as folder, Run(make_numbers, config, folder) as run:
        display = Display(tmp_path, run.members, 1, quiet=True)
        run.start()
        assert not run.prefill(display, StopsAfter(2))
        assert int(run.ring.size.sum()) == 2 * config.cycle_size
        display.close()


def test_episodes_that_cannot_be_played_again_are_given_up(tmp_path, monkeypatch):
    """Of an environment, or a machine, that is not the same any more; weights and replay are."""
    kept = Collector.get_state

    def another(collector):
        state = kept(collector)
        for stream in state["streams"]:  # the pole falls long before
            stream |= {"actions": [[1.0, 0.0]] * 30, "ended": False}
        return state

    path = tmp_path / "run"
    with RunFolder.create(path, "run") as folder:
        with Run(make_numbers, replace(CONFIG, cycles=2), folder) as run:
            display = Display(path, run.members, 2, quiet=True)
            run.start()
            run.prefill(display, StopRequest())
            with monkeypatch.context() as patch:
                patch.setattr(Collector, "get_state", another)
                run.train(display, StopRequest())
            display.close()
            episodes = [stream["episode"] for stream in kept(run.collector)["streams"]]
        with Run(make_numbers, replace(CONFIG, cycles=3), folder) as run:
            (warning,) = run.load()
            assert "given up, and new ones begin" in warning and "do not lead" in warning
            display = Display(path, run.members, 3, 2, run.collector.frames, quiet=True)
            run.train(display, StopRequest())
            display.close()
            assert run.cycle == 3 and run.updates == 6
            later = [stream["episode"] for stream in run.collector.get_state()["streams"]]
    assert all(b > a for a, b in zip(episodes, later, strict=True))


def test_a_death_in_an_evaluation_ends_no_training(tmp_path, monkeypatch, capsys):
    def dies(*_):
        raise EnvironmentDied("environment 0: out of memory")

    monkeypatch.setattr(loop, "evaluate", dies)
    records, state = trained(tmp_path / "run", 3)
    assert int(state.step) == 6 and not any("eval/return" in r for r in records)
    assert (tmp_path / "run" / "checkpoints" / "00000003").is_dir()


def test_a_learner_that_diverged_stays_as_it_was_over_a_stop(tmp_path):
    """It logs no more, its evidence is kept as it is, and the other goes on."""
    path, config = tmp_path / "run", replace(CONFIG, seeds="3,5", eval_every=0)

    def states(run, display):
        run.train(display, StopRequest())
        display.close()
        return jax.device_get(run.state.mean), run.known_healthy.tolist()

    with RunFolder.create(path, "run") as folder:
        with Run(make_numbers, replace(config, cycles=2), folder) as run:
            run.start()
            run.state = run.state._replace(mean=run.state.mean.at[0, 0].set(jnp.nan))
            display = Display(path, run.members, 2, quiet=True)
            run.prefill(display, StopRequest())
            stopped = states(run, display)
        logged, evidence = (path / "seed_3" / "metrics.jsonl"), path / "diverged" / "seed_3"
        before, written = logged.read_text(), (evidence / "batch.npz").stat().st_mtime_ns
        with Run(make_numbers, replace(config, cycles=3), folder) as run:
            assert not run.load()
            display = Display(path, run.members, 3, run.cycle, run.collector.frames, quiet=True)
            resumed = states(run, display)
    assert stopped[1] == resumed[1] == [False, True]
    assert np.isnan(stopped[0][0, 0]) and not stopped[0][0, 1:].any()  # as it began
    np.testing.assert_array_equal(resumed[0][0], stopped[0][0])
    assert (resumed[0][1] != stopped[0][1]).all()
    assert logged.read_text() == before
    assert (evidence / "batch.npz").stat().st_mtime_ns == written
    assert sum("loss/mean" in line for line in lines(path / "seed_5")) == 3
    healthy = [line["learners/healthy"] for line in lines(path / "aggregate")]
    assert healthy == [2.0, 1.0, 1.0]


def test_records_of_many_names_are_laid_out_by_name():
    """With 5 steps an episode the reset is every 6th record, and entries count from it."""
    with VectorEnv(MakeDict(), [EpisodeSeeds(e) for e in range(2)], num_workers=1) as env:
        got = Collector(env, 2, 13).steps(lambda *_: Decision(np.zeros((2, 4), np.float32)), 13)
    spec = spec_of(env)
    assert spec.image == (4, 6, 3) and not spec.discrete and spec.action == 4
    assert {name: (x.shape[3:], x.dtype.name) for name, x in got.chunk.obs.items()} == spec.obs
    count = np.arange(13) % 6
    for s in range(2):
        np.testing.assert_array_equal(got.chunk.obs["image"][s, :, 0, 0, 0, 0], count)
        np.testing.assert_array_equal(got.chunk.obs["pair_0"][s, :, 0, 0], count / 2)
        np.testing.assert_array_equal(got.chunk.reward[s, :, 0], count)
        np.testing.assert_array_equal(got.chunk.is_terminal[s, :, 0], count == 5)


@pytest.mark.parametrize(
    ("config", "made"),
    [
        (
            EnvConfig(
                steer_scale=0.4,
                idle_limit=9,
                missed_limit=3,
                missed_cost=9.0,
                off_road_cost=1.0,
                limit_ends=True,
                road_goes_on=True,
                both_ways=True,
            ),
            MakeEnv(
                RACE,
                {
                    "action_repeat": 4,
                    "time_limit": 1000,
                    "steer_scale": 0.4,
                    "idle_limit": 0,
                    "missed_limit": 0,
                    "missed_cost": 0.0,
                    "off_road_cost": 0.0,
                    "limit_ends": False,
                    "road_goes_on": False,
                    "off_road_ends": False,
                    "backwards_ends": False,
                    "both_ways": False,
                },
            ),
        ),
        (
            replace(POLE, pixels=32, idle_limit=9, off_road_ends=True),
            MakeEnv("CartPole-v1", {"action_repeat": 2, "time_limit": 60, "pixels": 32, "size": 0}),
        ),
    ],
)
def test_each_environment_is_given_the_options_it_has(config, made):
    assert make_env(config, **PLAIN) == made


def test_options_of_others_are_refused():
    with pytest.raises(ValueError, match=r"--env.pixels is not for DreamerCarRacing-v3"):
        make_env(EnvConfig(pixels=64))
    with pytest.raises(ValueError, match=r"--env.cars=2 is for DreamerCarRacing-v3 alone"):
        make_race(replace(POLE, cars=2))


def test_what_an_agent_is_told():
    race = spec_of(make_env(EnvConfig())())
    assert race == ({"image": ((96, 96, 3), "uint8")}, 2, False) and race.image == (96, 96, 3)
    pole = spec_of(make_env(POLE)())
    assert pole == ({"vector": ((4,), "float32")}, 2, True)
    with pytest.raises(ValueError, match=r'needs pictures.*"vector" float32 \(4,\).*--env.pixels'):
        make_dlc_v1(CONFIG.agent, pole)
    pictures = spec_of(make_env(replace(POLE, pixels=24))())
    assert pictures.image == (24, 24, 3) and pictures.discrete
    with pytest.raises(ValueError, match=r"acts continuously.*one of 2 .*--agent dreamer_v3"):
        make_dlc_v1(CONFIG.agent, pictures)
    config = replace(CONFIG, envs=1)
    for given, spec in ((config, pole), (replace(config, env=EnvConfig()), race)):
        with streams(given, (0,)) as env:
            assert spec_of(env) == spec


def test_the_race_of_several_cars_has_a_script_of_its_own():
    with pytest.raises(ValueError, match=r"several drivers.*multi_car_racing\.py --cars 2"):
        make_env(EnvConfig(id=MULTI_CAR_RACE))


def test_what_a_preset_becomes_for_another_environment():
    v2, v3 = (FAMILY[name]["laptop"] for name in ("dreamer_v2", "dreamer_v3"))
    repeats = {"ALE/Pong-v5": 4, "dm_control/cheetah-run-v0": 2, "CartPole-v1": 1}
    for env_id, repeat in repeats.items():
        made = for_env(v2, env_id)
        assert made.env.id == env_id and made.env.action_repeat == repeat and made.env.size == 64
        assert made.agent.reward_transform == ("tanh" if repeat == 4 else "none")
        assert for_env(v3, env_id).agent == replace(v3.agent, decoder_base=(2, 128))
    limits = {"BipedalWalkerHardcore-v3": 2000, "CartPole-v1": 500, "Nowhere-v0": 1000}
    assert {env_id: for_env(v3, env_id).env.time_limit for env_id in limits} == limits
    assert for_env(v3, "ale_py:ALE/Pong-v5").env.action_repeat == 4
    assert for_env(PRESETS["paper"], "Pendulum-v1").env.size == 96
    assert for_env(v3, RACE) == v3


def test_the_preset_for_small_figures():
    """Its long pretraining stays, and its maps suit the pictures' size."""
    atari = FAMILY["dreamer_v3"]["atari"]
    # Pictures of 96 and of 64 pixels, folded by 4 and halved twice
    for env_id, base in ((RACE, (6, 128)), ("ALE/Asterix-v5", (4, 128))):
        made = for_env(atari, env_id)
        assert (made.agent.decoder_base, made.pretrain) == (base, 15)
    decisions = atari.cycles * atari.cycle_size + atari.prefill
    assert decisions == 100_000 <= atari.replay


MODULE = """
import gymnasium
from dict_env import DictEnv
gymnasium.register("Rooms-v0", entry_point=DictEnv, max_episode_steps=150)
gymnasium.register("Rooms-v3", entry_point=DictEnv, max_episode_steps=200)
gymnasium.register("Endless-v0", entry_point=DictEnv)
"""


def test_limits_are_those_of_the_module_before_the_id(monkeypatch, tmp_path):
    (tmp_path / "my_rooms.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    v3 = FAMILY["dreamer_v3"]["laptop"]
    limits = {"my_rooms:Rooms-v0": 150, "my_rooms:Rooms": 200, "my_rooms:Endless-v0": 1000}
    limits["my_rooms:Nowhere-v0"] = 1000
    assert {env_id: for_env(v3, env_id).env.time_limit for env_id in limits} == limits
    (tmp_path / "broken_rooms.py").write_text("1 / 0")
    with pytest.raises(UserError, match=r"broken_rooms:Rooms-v0: .*ZeroDivisionError") as error:
        for_env(v3, "broken_rooms:Rooms-v0")
    assert "\n" not in str(error.value)


def test_atari_games_by_older_ids_are_one_line():
    pytest.importorskip("ale_py")
    with pytest.raises(UserError, match=r"ale_py:PongNoFrameskip-v4: .*use ALE/Pong-v5"):
        for_env(FAMILY["dreamer_v3"]["laptop"], "ale_py:PongNoFrameskip-v4")


@pytest.mark.parametrize("agent", ["dreamer_v1", "dreamer_v2", "dreamer_v3", "planet"])
def test_pictures_of_two_sizes_are_refused_by_name(agent):
    config = for_env(FAMILY[agent]["laptop"], "CartPole-v1")
    obs = {"front": ((64, 64, 3), "uint8"), "hand": ((48, 64, 3), "uint8")}
    text = r'"front", 64x64, and "hand", 48x64, .*--env\.size'
    with pytest.raises(ValueError, match=text):
        make_agent(config, Spec(obs | {"vector": ((3,), "float32")}, 2))
    make_agent(config, Spec(obs | {"hand": ((64, 64, 1), "uint8")}, 2))


def test_what_dlc_v1_does_not_see_is_named():
    image, vector = ((24, 24, 3), "uint8"), ((4,), "float32")
    for obs, text in (
        ({"image": image, "vector": vector}, r'sees .*"image" alone, .* gives "vector"; .*v3'),
        ({"image": image, "hand": image}, r'sees .*"image" alone, .* gives "hand"; .*dreamer_v3'),
        ({"rgb": image}, r'"image" alone, .*"rgb" uint8 \(24, 24, 3\).*dreamer_v3, or rename'),
        ({"rgb": image, "vector": vector}, r'"image" alone, .*"vector" float32 \(4,\).*dreamer_v3'),
    ):
        with pytest.raises(ValueError, match=text):
            make_dlc_v1(CONFIG.agent, Spec(obs, 2))
    assert Spec({"image": image, "vector": vector}, 2).image == (24, 24, 3)


def test_networks_that_do_not_fit_are_one_line(tmp_path):
    config = replace(for_env(FAMILY["dreamer_v3"]["paper"], "CartPole-v1"), envs=1)
    config = replace(config, env=replace(config.env, pixels=84), replay=1000)
    text = r"networks do not fit.*84.*--env\.size"
    with (
        RunFolder.create(tmp_path / "run", "run") as folder,
        pytest.raises(UserError, match=text) as error,
    ):
        Run(make_agent, config, folder)
    assert "\n" not in str(error.value)


def test_how_long_an_environment_may_be_silent():
    config = replace(CONFIG, envs=1)
    with streams(replace(config, env=replace(POLE, timeout=7.0)), (0,)) as env:
        assert env._timeout == 7
    races = replace(config, env=EnvConfig(cars=2, timeout=8.0))
    with closing(streams(races, (0, 1))) as races:
        assert races._races._timeout == 8


def test_every_environment_drives_tracks_of_its_own(monkeypatch):
    """None is held out, and a learner's are the same alone and beside others."""
    monkeypatch.setattr(environments, "VectorEnv", lambda make, seeds, timeout: seeds)
    monkeypatch.setattr(environments, "RaceStreams", lambda make, seeds, *rest: seeds)

    def tracks(seeds, cars=1):
        config = replace(CONFIG, envs=5, env=EnvConfig(cars=cars))
        return np.array([[own(i) for i in range(4)] for own in streams(config, seeds)])

    together = tracks((0, 1, 2, 7))
    assert together.shape == (4 * 5, 4) and together.min() >= HELD_OUT
    assert len(np.unique(together)) == together.size
    for k, seed in enumerate((0, 1, 2, 7)):
        np.testing.assert_array_equal(tracks((seed,)), together[5 * k : 5 * k + 5])
    races = tracks((0, 1, 2, 7), cars=2)  # each on those that its first driver has alone
    np.testing.assert_array_equal(races, together[[*range(5), *range(10, 15)]])


def test_an_agent_that_needs_pictures_says_so(tmp_path):
    with (
        RunFolder.create(tmp_path / "run", "run") as folder,
        pytest.raises(UserError, match="needs pictures"),
    ):
        Run(make_agent, CONFIG, folder)


def test_the_first_experience_elsewhere_is_chance():
    pole = spec_of(make_env(POLE)())
    driver = make_driver(CONFIG, pole, 5)
    race = replace(CONFIG, env=EnvConfig())
    assert isinstance(driver, RandomDriver) and isinstance(make_driver(race, pole, 5), SmoothDriver)
    state = json.loads(json.dumps(driver.get_state()))
    first = np.zeros(2, bool)
    taken = [driver.act(first, np.array([True, i % 2 > 0])) for i in range(40)]
    for i, action in enumerate(taken):
        assert action.shape == (2, 2) and action.dtype == np.float32
        assert action.sum(1).tolist() == [1, i % 2] and set(action.ravel()) <= {0, 1}
    assert 10 < sum(action[0, 0] for action in taken) < 30
    other = make_driver(CONFIG, pole, 6)
    other.set_state(state)
    np.testing.assert_array_equal(other.act(first), np.array([taken[0][0], taken[1][1]]))
    with pytest.raises(ValueError, match="make it for as many"):
        RandomDriver(3, 0, 2, True).set_state(state)
    smooth = RandomDriver(1, 0, 3, False).act(first)
    assert smooth.shape == (1, 3) and 0 < np.abs(smooth).max() <= 1
