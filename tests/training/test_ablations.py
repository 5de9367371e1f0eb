"""Parts left out one at a time: what each run is told, where it goes on, and the table."""

import csv
import importlib.util
import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dreamer_jax.training import ablations
from dreamer_jax.training.ablations import WHOLE, ablate, write
from dreamer_jax.training.command import planned, race
from dreamer_jax.training.comparison_data import by_full_name
from dreamer_jax.training.config import to_dict
from dreamer_jax.training.stage import Stage, Task

SMALL = Stage(
    2,
    "--agent dreamer_v3 --preset debug --prefill 60 --eval-every 0 --report-every 0 "
    "--env.time-limit 80",
)
WITHOUT = {"free nats": "--agent.free-nats 0", "two-hot": "--agent.numbers gaussian"}
POLE = SMALL._replace(
    settings="--env CartPole-v1 --agent dreamer_v3 --preset debug --prefill 60 --eval-every 0 "
    "--report-every 0"
)
TASKS = {"race": Task(SMALL, WITHOUT), "pole": Task(POLE, WITHOUT)}
SCRIPT = Path(__file__).parents[2] / "experiments" / "ablations.py"


def held_out(folder):
    return list(csv.DictReader((folder / "held_out.csv").read_text().splitlines()))


@pytest.mark.usefixtures("compiled_once")
def test_each_part_is_left_out_once_and_a_stopped_command_goes_on(tmp_path, capsys):
    told = []

    def run(settings):
        told.append(settings)
        return 130 if len(told) == 2 else race(settings)

    command = ["--out", str(tmp_path), "--episodes", "3", "--average", "2", "--seeds", "4"]
    assert ablate(command, TASKS, run) == 130
    first, second = told
    assert "--agent.free-nats" not in first
    assert second[second.index("--agent.free-nats") + 1] == "0" and len(second) == len(first) + 2
    assert (tmp_path / "ablations.md").read_text().count("\n| ") == 1  # the whole alone
    evaluated = (tmp_path / "nothing-seeds4" / "evaluation.json").stat().st_mtime_ns
    assert ablate([*command, "--only", "free nats"], TASKS, run) == 0
    assert len(told) == 3  # the whole was not run again,
    again = (tmp_path / "nothing-seeds4" / "evaluation.json").stat().st_mtime_ns
    assert again == evaluated  # nor driven
    rows = held_out(tmp_path)
    assert [row["group"] for row in rows] == ["nothing"] * 3 + ["free nats"] * 3
    assert {row["seed"] for row in rows} == {"4"}
    own = json.loads((tmp_path / "free-nats-seeds4" / "evaluation.json").read_text())["4"]
    assert own["average"] == 2 and own["stock"] and own["cycle"] == 2
    assert "| free nats | `--agent.free-nats 0` |" in (tmp_path / "ablations.md").read_text()
    # Rows of parts that are not asked for again stay in the table.
    shutil.copytree(tmp_path / "nothing-seeds4", tmp_path / "two-hot-seeds4")
    assert ablate([*command, "--only", "free nats"], TASKS, run) == 0
    assert len(told) == 3
    rows = [row["group"] for row in held_out(tmp_path)]
    assert list(dict.fromkeys(rows)) == ["nothing", "free nats", "two-hot"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--task", "golf"], "--task golf is unknown; use one of race, pole"),
        (["--only", "wings"], "--only wings is unknown; use one of free nats, two-hot"),
        (["--average", "3"], "--average=3 cannot be: without nothing 2 checkpoints are kept"),
        (["--seeds", "2:1"], "seeds"),
        (["--episodes", "0"], "--episodes=0"),
    ],
)
def test_refusals_come_before_the_first_run(tmp_path, capsys, words, message):
    def never(settings):
        raise AssertionError

    assert ablate(["--out", str(tmp_path / "x"), *words], TASKS, never) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "x").exists()


def test_what_fails_does_not_keep_the_others_from_being_driven(tmp_path, monkeypatch, capsys):
    """Nor is a row made again whose checkpoints are gone."""
    own = {"returns": [1.0, 2.0], "first_track": 0, "lap_rate": 0.0}
    monkeypatch.setattr(ablations, "assess_run", lambda *_: {"": {"0": own}})
    monkeypatch.setattr(ablations, "ablation_figure", lambda *_: None)
    told = []

    def run(settings):
        told.append(settings)
        return 2 if "--agent.free-nats" in settings else 0

    words = ["--out", str(tmp_path), "--average", "2", "--episodes", "2"]
    assert ablate(words, TASKS, run) == 2
    assert len(told) == 3 and "no row without free nats" in capsys.readouterr().err
    assert [row["group"] for row in held_out(tmp_path)] == ["nothing"] * 2 + ["two-hot"] * 2
    evaluated = own | {"episodes": 2, "average": 2, "stock": True, "calm": False, "cycle": 2}
    for part, changes in {"nothing": "", **WITHOUT}.items():
        folder = tmp_path / f"{part.replace(' ', '-')}-seeds0"
        folder.mkdir()
        config = to_dict(planned([*shlex.split(f"{SMALL.settings} {changes}"), "--seeds", "0"]))
        (folder / "config.json").write_text(json.dumps(config | {"cycles": 2}))
        (folder / "evaluation.json").write_text(json.dumps({"0": evaluated}))
    assert ablate(words, TASKS, run) == 0 and len(told) == 3
    assert (
        ablate(
            words,
            {"race": Task(SMALL._replace(settings=f"{SMALL.settings} --batch 9"), WITHOUT)},
            run,
        )
        == 2
    )
    assert "not of these stages (batch)" in capsys.readouterr().err  # though it was driven


def test_without_the_whole_there_is_no_table(tmp_path):
    assert ablate(["--out", str(tmp_path), "--average", "2"], TASKS, lambda _: 3) == 3
    assert not (tmp_path / "ablations.md").exists()


def test_differences_are_paired(tmp_path):
    """Returns that differ by tracks by 100s and by the part by 7: an interval that has 7 alone."""
    tracks = 200.0 * np.arange(5)

    def driven(shift):
        own = {"first_track": 10, "lap_rate": 0.4}
        return {s: own | {"returns": list(tracks + 50 * s + shift)} for s in (0, 1)}

    options, lame = {WHOLE: "", "a": "--agent.a 0"}, driven(-7)
    lame[1] |= {"stopped": True}
    write(tmp_path, {WHOLE: driven(0), "a": lame}, options)
    text = (tmp_path / "ablations.md").read_text()
    assert "| a (stopped, loss not finite: seed 1) |" in text
    write(tmp_path, {WHOLE: driven(0), "a": driven(-7)}, options)
    text = (tmp_path / "ablations.md").read_text()
    assert "stopped" not in text
    assert "| -7.0 (-7.0 .. -7.0) | 40% |" in text and "2 seeds and held-out tracks" in text
    # Seeds lie 50 apart, a variance of 1250; with 2 degrees of freedom t is 4.303.
    assert "scatter by 35.4 (" in text and "where 152.1 or more" in text
    with Image.open(tmp_path / "ablations.png") as picture:
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 10  # something is drawn
    assert "(425.0" not in text and "| nothing |  | 425.0 (" in text
    assert [row["track"] for row in held_out(tmp_path)] == [str(t) for t in range(10, 15)] * 4


@pytest.mark.usefixtures("compiled_once")
def test_any_environment_can_be_the_task(tmp_path, capsys):
    words = ["--task", "pole", "--only", "free nats", "--seeds", "0:2", "--average", "1"]
    assert ablate([*words, "--out", str(tmp_path), "--episodes", "3"], TASKS) == 0
    out = capsys.readouterr().out
    assert "train.py --cycles 2 --env CartPole-v1" in out and "car_racing.py" not in out
    assert "whole laps" not in (tmp_path / "ablations.md").read_text()
    assert [row["group"] for row in held_out(tmp_path)] == ["nothing"] * 6 + ["free nats"] * 6
    assert ablate([*words, "--out", str(tmp_path), "--episodes", "3"], TASKS, None) == 0  # goes on


def script(name):
    spec = importlib.util.spec_from_file_location(f"{name}_script", SCRIPT.with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def planned_settings(words):
    return by_full_name(to_dict(planned(shlex.split(words))))


def test_the_race_is_the_first_stage_of_the_recipe():
    own = planned_settings(script("ablations").TASKS["race"].whole.settings)
    first = planned_settings(script("racing_score").RECIPE[0].settings)
    differing = {name for name in own.keys() | first.keys() if own.get(name) != first.get(name)}
    assert differing == {"agent.lr_anneal"}  # which is for its own length


@pytest.mark.parametrize("task", ["race", "swingup"])
def test_the_script_leaves_out_one_thing_each(task):
    whole, without = script("ablations").TASKS[task]
    plain = planned_settings(whole.settings)
    seen = set()
    for name, words in without.items():
        own = planned_settings(f"{whole.settings} {words}")
        changed = {key: own[key] for key in own if own[key] != plain[key]}
        assert changed and len(changed) == words.count("--"), name
        seen.add(tuple(changed.items()))
    assert len(seen) == len(without)
