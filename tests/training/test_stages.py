"""One command that trains in stages: what each is told, where it goes on, and its two scores."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from logged import lines, updates

from dreamer_jax.errors import UserError
from dreamer_jax.training import stages
from dreamer_jax.training.command import race, with_changes
from dreamer_jax.training.config import to_dict
from dreamer_jax.training.rules import episode_rules
from dreamer_jax.training.stage import Stage
from dreamer_jax.training.stages import SCORE_NAME, _planned, score, train_stages

pytestmark = pytest.mark.usefixtures("compiled_once")
SMALL = "--agent dreamer_v3 --preset debug --prefill 60 --eval-every 0 --report-every 0"
STAGES = (
    Stage(1, f"{SMALL} --env.time-limit 80 --env.steer-scale 0.4"),
    Stage(2, "--env.off-road-cost 1"),
    Stage(3, "--env.both-ways --env.backwards-ends"),
)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run that ended by itself in the second stage, and what it had been told until then."""
    out = tmp_path_factory.mktemp("stages") / "run"
    told = []

    def run(settings):
        told.append(settings)
        return 130 if len(told) == 2 else race(settings)

    assert train_stages(out, "3", STAGES, run) == 130
    return out, told


def test_each_stage_goes_on_where_the_last_one_ended(stopped):
    out, (first, second) = stopped
    assert first[:2] == ["--cycles", "1"] and first[-4:] == ["--seeds", "3", "--out", str(out)]
    assert second == ["--resume", str(out), "--cycles", "2", "--env.off-road-cost", "1"]


def test_another_seed_is_refused(stopped, tmp_path):
    with pytest.raises(UserError, match=r"holds a run of seeds 3, not 0:2; .* --out"):
        train_stages(stopped[0], "0:2", STAGES)
    assert score(["--seed", "4", "--out", str(stopped[0])], STAGES) == 2
    assert score(["--seeds", "4,4", "--out", str(tmp_path / "x")], STAGES) == 2
    assert score(["--episodes", "0", "--out", str(tmp_path / "x")], STAGES) == 2
    assert score(["--average", "0", "--out", str(tmp_path / "x")], STAGES) == 2
    assert score(["--average", "3", "--out", str(tmp_path / "x")], STAGES) == 2
    assert not (tmp_path / "x").exists()


def test_a_run_begun_with_other_settings_is_refused(stopped):
    begun = STAGES[0]._replace(settings=STAGES[0].settings.replace("0.4", "0.5") + " --batch 9")
    with pytest.raises(UserError, match=r"not of these stages \(batch, env.steer_scale\).* --out"):
        train_stages(stopped[0], "3", (begun, *STAGES[1:]))


@pytest.mark.parametrize(("name", "value"), [("cycles", 9), ("replay", 100)])
def test_so_is_one_that_was_led_elsewhere_since(stopped, name, value):
    path = stopped[0] / "config.json"
    kept = path.read_text()
    path.write_text(json.dumps(json.loads(kept) | {name: value}))
    try:
        with pytest.raises(UserError, match=rf"not of these stages \({name}\)"):
            train_stages(stopped[0], "3", STAGES)
    finally:
        path.write_text(kept)


@pytest.mark.parametrize("done", [0, 1, 2])
def test_a_run_that_fell_back_has_the_rules_of_its_stage(done, tmp_path, monkeypatch):
    """Its settings are of the last stage, but the checkpoints of that one, or all, are lost."""
    own = _planned(STAGES)
    (tmp_path / "config.json").write_text(
        json.dumps(to_dict(replace(own, cycles=3, seeds="3", out=str(tmp_path))))
    )
    monkeypatch.setattr(stages, "_done", lambda out: done)
    told = []
    assert train_stages(tmp_path, "3", STAGES, lambda words: told.append(words)) == 0
    assert len(told) == 3 - done
    config = own
    for number, words in enumerate(told, done + 1):
        assert words[:4] == ["--resume", str(tmp_path), "--cycles", str(number)]
        config = with_changes(config, words[2:])
        assert episode_rules(config) == episode_rules(_planned(STAGES[:number]))
    if done == 0:
        assert told[0][4:] == [
            *("--env.off-road-cost", "0.0", "--env.no-backwards-ends", "--env.no-both-ways")
        ]


def test_the_same_command_goes_on_and_scores(stopped, capsys):
    out, _ = stopped
    command = ["--seed", "3", "--out", str(out), "--episodes", "2", "--average", "2"]
    assert score(command, STAGES) == 0
    printed = capsys.readouterr().out
    assert "--cycles 1" not in printed and "--cycles 2" in printed and "--cycles 3" in printed
    env = json.loads((out / "config.json").read_text())["env"]
    assert env["off_road_cost"] == 1 and env["both_ways"] and env["backwards_ends"]
    assert env["steer_scale"] == 0.4
    cycles = [line["step"] for line in lines(out) if "loss/actor" in line]
    assert cycles == sorted(set(cycles)) and len(updates(out)) >= 3
    scores = json.loads((out / SCORE_NAME).read_text())
    for name, calm in (("sampled", False), ("most probable", True)):
        own = scores[name][""]["3"]
        assert own["calm"] is calm and own["stock"] and len(own["returns"]) == 2
        assert own["average"] == 2
    assert "mean of the weights of cycles 2, 3" in printed
    trained = lines(out)
    assert score(command, STAGES) == 0  # all trained: scores again
    assert lines(out) == trained
    assert score([*command[:-1], "3"], STAGES) == 2  # two are kept by default
    message = capsys.readouterr().err
    assert "--average=3 cannot be" in message and "train with --keep 3" in message
    kept = out / "checkpoints"
    shutil.copytree(kept / "00000002", kept / "00000001")  # as of a run with a larger --keep
    assert score([*command[:-1], "3"], STAGES) == 0
    assert "mean of the weights of cycles 1, 2, 3" in capsys.readouterr().out


@pytest.mark.parametrize("script", ["ablations.py", "racing_score.py"])
def test_scripts_are_light_for_environment_workers(script):
    path = str(Path(__file__).parents[2] / "experiments" / script)
    look = (
        f"import runpy, sys; runpy.run_path({path!r}, run_name='__mp_main__'); "
        "sys.exit('jax' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", look]).returncode == 0
