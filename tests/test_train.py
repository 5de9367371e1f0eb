"""Whole runs on other environments than the races, by `experiments/train.py`."""

import json

import pytest
from logged import lines

from dreamer_jax.training.command import assess, train

pytestmark = pytest.mark.usefixtures("compiled_once")
SHORT = ["--preset", "debug", "--env.time-limit", "60"]


def test_dreamer_v3_from_vectors_with_discrete_actions(tmp_path, capsys):
    out = tmp_path / "run"
    assert train(["--env", "CartPole-v1", *SHORT, "--out", str(out)]) == 0
    assert "agent dreamer_v3, preset debug" in capsys.readouterr().out
    settings = json.loads((out / "config.json").read_text())
    assert settings["algorithm"] == "dreamer_v3" and settings["env"]["id"] == "CartPole-v1"
    logged = lines(out)
    episodes = [r for r in logged if "episode/return" in r]
    # CartPole gives 1 a step: a return is a length.
    assert episodes and all(r["episode/return"] == r["episode/length"] for r in episodes)
    assert any("loss/vector" in r for r in logged) and not any("loss/image" in r for r in logged)
    assert (out / "return.png").exists()
    assert assess([str(out), "--episodes", "2"]) == 0
    assert "mean" in capsys.readouterr().out


def test_planet_from_pixels_with_continuous_actions(tmp_path, capsys):
    out = tmp_path / "run"
    options = ["--agent", "planet", "--env.pixels", "64", "--cycles", "2"]
    assert train(["--env", "Pendulum-v1", *SHORT, *options, "--out", str(out)]) == 0
    logged = lines(out)
    assert any("loss/overshooting" in r for r in logged) and any("loss/image" in r for r in logged)
    assert train(["--resume", str(out)]) == 0  # nothing left to do, and it can be read again

    for given, named in (("--agent dreamer_v3", "--agent dreamer_v3"), ("--env Ant-v5", "Ant-v5")):
        assert train([f"--resume={out}", *given.split()]) == 2
        assert f"leave out {named}" in capsys.readouterr().err.replace("--env.id ", "")
    assert assess(["--episodes", "0", str(out)]) == 2  # the run may come last
    assert "--episodes=0" in capsys.readouterr().err


def test_the_environment_must_be_named(capsys):
    assert train(["--preset", "debug"]) == 2
    assert "train.py --env CartPole-v1" in capsys.readouterr().err
    with pytest.raises(SystemExit) as left:
        train(["--help"])
    assert left.value.code == 0 and "--env.pixels" in capsys.readouterr().out
    assert assess([]) == 2
    assert "name the run folder" in capsys.readouterr().err
    assert train(["--env", "CartPole-v1", "--agent", "dqn"]) == 2
    assert "use one of dlc_v1, dreamer_v1" in capsys.readouterr().err
