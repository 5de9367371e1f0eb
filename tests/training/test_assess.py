"""By which rules a run is evaluated, and what is kept of it."""

import json
from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer_jax.errors import UserError
from dreamer_jax.training import assess
from dreamer_jax.training.checkpoint import Checkpointer
from dreamer_jax.training.config import EnvConfig, to_dict
from dreamer_jax.training.evaluate import Played
from dreamer_jax.training.presets import DEBUG
from dreamer_jax.training.run_folder import RunFolder
from envs.vector import EnvironmentDied

STRICT = EnvConfig(action_repeat=8, idle_limit=80, off_road_ends=True, backwards_ends=True)


@pytest.mark.parametrize("calm", [False, True])
def test_how_the_agent_acts_is_said(calm, tmp_path, monkeypatch):
    modes = []

    def evaluate(learner, carry, state, config, keys, episodes, first, mode):
        modes.append(mode)
        one = np.ones((1, 1))
        return Played(one, one > 0, one, one, np.zeros((0, 1, 1, 3), np.uint8))

    monkeypatch.setattr(assess, "evaluate", evaluate)
    monkeypatch.setattr(assess, "make_learner", lambda *args: None)
    agent = SimpleNamespace(carry=None)
    loaded = assess.Loaded(agent, spec=None, state=None, step=9, seeds=[3])
    monkeypatch.setattr(assess, "load_agent", lambda *args: loaded)
    with RunFolder.create(tmp_path / "run", "x") as folder:
        folder.save_config(to_dict(replace(DEBUG, arm="baseline", seed=3)))
    assess.assess_run(tmp_path / "run", assess.EvaluateConfig(episodes=1, calm=calm))
    kept = json.loads((tmp_path / "run" / "evaluation.json").read_text())["3"]
    assert kept["calm"] is calm and modes == ["calm" if calm else "eval"]


def test_a_learner_that_stopped_is_marked(tmp_path, monkeypatch):
    def evaluate(*args):
        one = np.ones((2, 1))
        return Played(one, one > 0, one, one, np.zeros((0, 1, 1, 3), np.uint8))

    monkeypatch.setattr(assess, "evaluate", evaluate)
    monkeypatch.setattr(assess, "make_learner", lambda *args: None)
    agent = SimpleNamespace(carry=None)
    loaded = assess.Loaded(agent, spec=None, state=None, step=9, seeds=[3, 4], stopped=[1])
    monkeypatch.setattr(assess, "load_agent", lambda *args: loaded)
    with RunFolder.create(tmp_path / "run", "x") as folder:
        folder.save_config(to_dict(replace(DEBUG, arm="baseline", seeds="3:5")))
    assess.assess_run(tmp_path / "run", assess.EvaluateConfig(episodes=1))
    kept = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert "stopped" not in kept["3"] and kept["4"]["stopped"] is True


def test_the_tracks_asked_for_are_played(tmp_path, monkeypatch):
    """By learners with keys of their own."""
    given = []

    def evaluate(learner, carry, state, config, keys, *tracks_and_mode):
        given.append((jax.random.key_data(keys), tracks_and_mode))

    monkeypatch.setattr(assess, "evaluate", evaluate)
    monkeypatch.setattr(assess, "make_learner", lambda *args: None)
    agent = SimpleNamespace(carry=None)
    loaded = assess.Loaded(agent, spec=None, state=None, step=9, seeds=[3, 5])
    monkeypatch.setattr(assess, "load_agent", lambda *args: loaded)
    options = assess.EvaluateConfig(episodes=7, first_track=40)
    assert assess.play(tmp_path, DEBUG, options) == (None, loaded)
    ((keys, tracks_and_mode),) = given
    assert tracks_and_mode == (7, 40, "eval")
    assert len(keys) == 2 and (keys[0] != keys[1]).any()


def test_what_died_in_an_evaluation_is_not_told_to_resume(monkeypatch):
    """As `play` and contest.py do; a training's own text stays."""
    with pytest.raises(EnvironmentDied) as died, assess.from_the_beginning():
        raise EnvironmentDied("environment 3: hung in step")
    assert str(died.value) == "environment 3: hung in step. Give the same command again."
    loaded = assess.Loaded(SimpleNamespace(carry=None), spec=None, state=None, step=9, seeds=[3])
    monkeypatch.setattr(assess, "load_agent", lambda *args: loaded)
    monkeypatch.setattr(assess, "make_learner", lambda *args: None)

    def evaluate(*args):
        raise EnvironmentDied("killed")

    monkeypatch.setattr(assess, "evaluate", evaluate)
    with pytest.raises(EnvironmentDied, match=r"^killed\. Give the same command again\.$"):
        assess.play(None, DEBUG, assess.EvaluateConfig())


def test_the_mean_of_weights_by_hand():
    """Counters and keys are the newest's."""
    key = jax.random.key(7)
    trees = [
        {"w": jnp.array([1.0, 2.0 * n]), "step": jnp.int32(n), "key": jax.random.fold_in(key, n)}
        for n in (5, 3, 1)
    ]
    mean = assess.mean_state(trees)
    np.testing.assert_allclose(mean["w"], [1.0, 6.0])
    assert mean["step"] == 5 and mean["step"].dtype == jnp.int32
    np.testing.assert_array_equal(
        jax.random.key_data(mean["key"]), jax.random.key_data(trees[0]["key"])
    )


def test_an_average_of_none_is_refused(tmp_path):
    with pytest.raises(UserError, match="--average=0 cannot be: use 1 or more"):
        assess.assess_run(tmp_path, assess.EvaluateConfig(average=0))


def test_the_newest_checkpoints_are_averaged(tmp_path, monkeypatch, capsys):
    """Of those kept, up to the one asked for, and of those the ones that were due."""
    checkpoints = Checkpointer(tmp_path / "checkpoints", keep=4)
    for cycle in (1, 2, 3, 4):
        checkpoints.save(cycle, {"agent": {"w": jnp.full(2, 10.0**cycle)}}, {"seeds": [3]})
    probe = SimpleNamespace(close=lambda: None)
    monkeypatch.setattr(assess, "make_env", lambda config: lambda: probe)
    monkeypatch.setattr(assess, "spec_of", lambda env: None)
    monkeypatch.setattr(assess, "make_agent", lambda config, spec: None)
    template = {"agent": {"w": jax.ShapeDtypeStruct((2,), jnp.float32)}}
    monkeypatch.setattr(
        assess,
        "checkpoint_template",
        lambda *args: template if args[-1] == {"seeds": [3]} else None,
    )

    def weights(**options):
        loaded = assess.load_agent(tmp_path, DEBUG, **options)
        return loaded.step, float(loaded.state["w"][0])

    assert weights() == (4, 10_000.0)
    assert weights(average=2) == (4, 5_500.0)
    assert weights(average=3, checkpoint=3) == (3, 370.0)
    with pytest.raises(UserError, match=r"--average=4 .* holds 3 checkpoints up to cycle 3"):
        weights(average=4, checkpoint=3)
    every_other = replace(DEBUG, checkpoint_every=2)  # 1 and 3 came of stops
    loaded = assess.load_agent(tmp_path, every_other, average=2)
    assert float(loaded.state["w"][0]) == (100.0 + 10_000.0) / 2 and not loaded.stopped
    told = {"seeds": [3], "stopped": [0]}
    checkpoints.save(5, {"agent": {"w": jnp.ones(2)}}, told)
    monkeypatch.setattr(assess, "checkpoint_template", lambda *_: template)
    assert assess.load_agent(tmp_path, DEBUG).stopped == [0]
    assert "warning: seed 0 stopped when its loss" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            ValueError("ALE/Pong-v5: no such package; install it: pip install -e '.[atari]'"),
            r"install it: pip install -e '\.\[atari\]'",
        ),
        (FileNotFoundError("no map.txt"), r"cannot be made: FileNotFoundError: no map\.txt"),
    ],
)
def test_an_environment_that_cannot_be_made_is_the_users_to_mend(
    error, said, tmp_path, monkeypatch
):
    """As where an extra is not installed, or an own environment finds no file."""

    def make_env(config):
        raise error

    monkeypatch.setattr(assess, "make_env", make_env)
    with pytest.raises(UserError, match=said):
        assess.load_agent(tmp_path, DEBUG)


def test_an_evaluation_made_in_another_way_stays(tmp_path, monkeypatch, capsys):
    def play(path, config, options):
        returns = np.full((1, options.episodes), 5.0)
        played = Played(returns, returns > 0, returns, returns, np.zeros((0, 1, 1, 3), np.uint8))
        return played, assess.Loaded(None, spec=None, state=None, step=9, seeds=[3])

    monkeypatch.setattr(assess, "play", play)
    with RunFolder.create(tmp_path / "run", "x") as folder:
        folder.save_config(to_dict(replace(DEBUG, arm="baseline", seed=3)))
    ways = [{"episodes": 1}, {"episodes": 1}, {"episodes": 3, "stock": True, "calm": True}]
    ways += [{"episodes": 2, "average": 4, "first_track": 7}, {"episodes": 2}]
    for way in ways:
        assess.assess_run(tmp_path / "run", assess.EvaluateConfig(**way))
    names = {path.name for path in (tmp_path / "run").glob("evaluation*")}
    assert names == {
        "evaluation.json",
        "evaluation-cycle9-tracks0-0.json",
        "evaluation-cycle9-tracks0-2-stock-calm.json",
        "evaluation-cycle9-tracks7-8-average4.json",
    }
    kept = json.loads(
        (tmp_path / "run" / "evaluation-cycle9-tracks0-2-stock-calm.json").read_text()
    )
    assert kept["3"]["calm"] and len(kept["3"]["returns"]) == 3
    printed = capsys.readouterr().out
    assert printed.count("is kept as") == 3 and printed.count("95% interval of the mean") == 3
    assert printed.count("1 held-out episode,") == 2  # which has no interval
    for damaged in ("{", "{}", "[]", '{"3": 7}'):
        (tmp_path / "run" / "evaluation.json").write_text(damaged)
        assess.assess_run(tmp_path / "run", assess.EvaluateConfig(episodes=1))
    old = {"returns": [1.0], "first_track": 4, "cycle": 2}  # of before there were other ways
    (tmp_path / "run" / "evaluation.json").write_text(json.dumps({"3": old}))
    assess.assess_run(tmp_path / "run", assess.EvaluateConfig(episodes=1))
    assert (tmp_path / "run" / "evaluation-cycle2-tracks4-4.json").exists()


@pytest.mark.parametrize("stock", [False, True])
def test_stock_rules_replace_the_stricter_ones_alone(stock, tmp_path, monkeypatch):
    config, seen = replace(DEBUG, arm="baseline", env=STRICT, seed=3), []

    def play(path, config, options):
        seen.append(config)
        none, two = np.zeros((1, 2)), np.array([[5.0, 7.0]])
        played = Played(two, none > 0, none, none, np.zeros((0, 1, 1, 3), np.uint8))
        return played, assess.Loaded(None, spec=None, state=None, step=9, seeds=[3])

    monkeypatch.setattr(assess, "play", play)
    with RunFolder.create(tmp_path / "run", "x") as folder:
        folder.save_config(to_dict(config))
    assess.assess_run(tmp_path / "run", assess.EvaluateConfig(episodes=2, stock=stock))
    stricter = not stock
    rules = replace(STRICT, off_road_ends=stricter, backwards_ends=stricter)
    assert seen == [replace(config, env=rules)]
    kept = json.loads((tmp_path / "run" / "evaluation.json").read_text())["3"]
    assert kept["returns"] == [5.0, 7.0] and kept["progress"] == kept["frames"] == [0.0, 0.0]
    assert kept["cycle"] == 9 and kept["stock"] is stock
    assert json.loads((tmp_path / "run" / "config.json").read_text())["env"]["off_road_ends"]
