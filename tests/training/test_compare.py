"""The comparison's command line on finished runs, and what it says of bad input."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dreamer_jax.training.compare import compare, parse_seeds
from dreamer_jax.training.comparison_csv import write_csv
from envs import RACE


@pytest.fixture
def undrawn(monkeypatch):
    """Leaves out the figure, which takes longest."""
    monkeypatch.setattr("dreamer_jax.training.compare.comparison_figure", lambda *_: None)


def table(out):
    with (out / "table.csv").open(newline="") as file:
        return {
            (r["score"], r["statistic"], r["group"], r["seeds"]): r["value"]
            for r in csv.DictReader(file)
        }


# ---------------------------------------------------------------- finished runs


def made(path, seed, level, rise=20, evaluate=True, cycles=1):
    """A finished run that rises to `level` within `rise` episodes."""
    path.mkdir(parents=True)
    noise = np.random.default_rng(seed).normal(size=60)
    lines = [
        {"step": 500 * n, "episode/return": level * min(1, n / rise) + e,
         "episode/frames_total": 500 * n}
        for n, e in enumerate(noise, 1)
    ]  # fmt: skip
    lines.append({"step": 30_000, "train/cycle": 1})
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (path / "config.json").write_text(json.dumps({"seed": seed, "cycles": cycles}))
    if evaluate:
        entry = {"returns": [level, level + 20.0], "first_track": 0, "cycle": 1}
        (path / "evaluation.json").write_text(json.dumps({str(seed): entry}))
    return path


@pytest.fixture
def two_arms(tmp_path):
    for seed in range(3):
        made(tmp_path / f"b{seed}", seed, 600.0 + seed, rise=40)
        made(tmp_path / f"d{seed}", seed, 800.0 + seed)
    return [f"baseline={tmp_path}/b*", f"ddim={tmp_path}/d0,{tmp_path}/d1,{tmp_path}/d2"]


def test_finished_runs_end_to_end(two_arms, tmp_path, capsys):
    out = tmp_path / "out"
    assert compare([*two_arms, "--out", str(out)], tmp_path) == 0
    assert "written: " in capsys.readouterr().out
    with Image.open(out / "comparison.png") as image:
        assert image.format == "PNG" and image.size == (1430, 624)
        assert np.asarray(image.convert("L")).std() > 10
    text = (out / "comparison.md").read_text()
    assert text.startswith("# Comparison: baseline, ddim\n\n![return")
    assert "Warning" not in text and "| reached 500 |" in text
    assert "| ddim against baseline | held-out episodes | 3 and 3, paired | +200.0 (" in text
    assert "| 1.00 (1.00 .. 1.00) |" in text and "only the number of seeds says" in text
    assert "Held-out episodes: seeds 0 to 1, 2 per run" in text
    assert "With fewer than about 10 seeds" in text
    assert f"python experiments/compare.py 'baseline={tmp_path}/b*'" in text
    assert table(out)["held_out", "seed", "baseline", "2"] == "612.0"


def test_the_same_runs_give_the_same_files_and_so_do_the_curves_kept(
    two_arms, tmp_path, monkeypatch
):
    outs = [tmp_path / name for name in ("one", "two")]
    for out in outs:
        assert compare([*two_arms, "--out", str(out)], tmp_path) == 0
    for name in ("table.csv", "curves.csv", "held_out.csv", "comparison.png"):
        assert (outs[0] / name).read_bytes() == (outs[1] / name).read_bytes()
    kept = f"{outs[0]}/curves.csv,{outs[0]}/held_out.csv"
    again = [f"baseline={kept}", two_arms[1], "--out", str(tmp_path / "again")]
    monkeypatch.setattr("dreamer_jax.training.compare.comparison_figure", lambda *_: None)
    assert compare(again, tmp_path) == 0
    for name in ("table.csv", "curves.csv", "held_out.csv"):
        assert (outs[0] / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_what_is_kept_is_not_replaced_by_a_part_of_it(undrawn, two_arms, tmp_path, capsys):
    """`curves.csv` may be all that is left of its runs."""
    out = tmp_path / "out"
    assert compare([*two_arms, "--out", str(out)], tmp_path) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    for given in (f"ddim={out}/curves.csv", f"ddim={out}/c*.csv,{out}/held_out.csv"):
        assert compare([given, "--out", str(out)], tmp_path) == 2
        assert "curves.csv, which is read and would be replaced" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_a_table_is_written_whole_or_not_at_all(tmp_path):
    def rows():
        yield 1, 2
        raise OSError(28, "No space left on device")

    (tmp_path / "a.csv").write_text("all there is")
    with pytest.raises(OSError, match="No space"):
        write_csv(tmp_path / "a.csv", ("x", "y"), rows())
    assert (tmp_path / "a.csv").read_text() == "all there is"
    write_csv(tmp_path / "a.csv", ("x", "y"), [(1, None)])
    assert (tmp_path / "a.csv").read_bytes() == b"x,y\n1,\n"


def test_warnings_stand_in_the_report_too(undrawn, tmp_path, capsys):
    made(tmp_path / "a", 0, 600.0, cycles=2, evaluate=False)
    out = tmp_path / "out"
    assert compare([f"only={tmp_path}/a", "--out", str(out)], tmp_path) == 0
    warning = f"{tmp_path}/a (only) is not finished"
    assert f"warning: {warning}" in capsys.readouterr().err
    text = (out / "comparison.md").read_text()
    assert f"**Warning:** {warning}" in text and "none played" in text
    assert "(no interval)" in text and "## Pairs" not in text


def test_one_seed_in_a_group_concludes_nothing(undrawn, two_arms, tmp_path):
    words = [two_arms[0], f"ddim={tmp_path}/d0", "--out", str(tmp_path / "out")]
    assert compare(words, tmp_path) == 0
    text = (tmp_path / "out" / "comparison.md").read_text()
    assert "1 and 3, unpaired" in text and "nothing can be concluded" in text
    counts = {n for (_, kind, group, n) in table(tmp_path / "out") if kind == "difference of means"}
    assert counts == {"n=1/3"}  # in the order of the columns group, against: ddim, baseline


def test_settings_that_differ_are_listed(undrawn, two_arms, tmp_path):
    for folder, arm in (("b0", "baseline"), ("d0", "ddim")):
        config = {"seed": 0, "cycles": 1, "arm": arm}
        (tmp_path / folder / "config.json").write_text(json.dumps(config))
    words = [two_arms[0], f"ddim={tmp_path}/d0", "--out", str(tmp_path / "out")]
    assert compare(words, tmp_path) == 0
    assert "| arm | baseline | ddim |" in (tmp_path / "out" / "comparison.md").read_text()


# ---------------------------------------------------------------- bad input


def test_seeds_are_parsed():
    assert parse_seeds("0:3") == (0, 1, 2) and parse_seeds("5,0") == (5, 0)
    assert parse_seeds("7") == (7,)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("", "say what to compare"),
        ("a=x --seeds 0:2", "say what to compare"),
        ("--seeds 3:0", "--seeds=3:0 cannot be"),
        ("--seeds 0-3", "--seeds=0-3 cannot be"),
        ("--seeds 1,1", "--seeds=1,1 cannot be"),
        ("--seeds 0:2 --jobs 0", "--jobs=0 cannot be"),
        ("--seeds 0:2 --episodes 0", "--episodes=0 cannot be"),
        ("--seeds 0:2 --first-track 9990", "--first-track=9990 cannot be"),
        ("--seeds 0:2 --episodes 10001", "--episodes=10001 cannot be: use 1 to 10000"),
        ("--seeds 0:2 --threshold 1000", "--threshold=1000 cannot be"),
        ("--seeds 0:2 --threshold nan", "--threshold=nan cannot be"),
        ("--seeds 0:2 --arms a,a", "--arms=a,a cannot be"),
        ("--seeds 0:2 -- --seed 4", "--seed after -- cannot be"),
        ("--seeds 0:2 -- --out=x", "--out after -- cannot be"),
        ("--seeds 0:2 -- --seeds 0:2", "--seeds after -- cannot be"),
        ("--seeds 0:2 -- --sweep lr=1,2", "--sweep after -- cannot be"),
        ("a=x -- --cycles 4", "use them with --seeds"),
        ("a=x a=y", "group a is named twice"),
        ("a=missing", "missing is no run"),
        ("runs/a", "'runs/a' is no group"),
    ],
)
def test_bad_input_is_one_line_that_names_the_setting(tmp_path, capsys, arguments, text):
    assert compare(["--out", str(tmp_path / "out"), *arguments.split()], tmp_path) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and text in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("task", "status"), [("Pendulum-v1", 0), (RACE, 2)])
def test_a_threshold_fits_the_task(undrawn, two_arms, tmp_path, capsys, task, status):
    for folder in tmp_path.glob("[bd]?"):
        config = {"seed": int(folder.name[1]), "cycles": 1, "arm": "baseline"}
        config["env"] = {"id": task, "timeout": 100.0 + config["seed"]}
        (folder / "config.json").write_text(json.dumps(config))
    out = tmp_path / "out"
    assert compare([*two_arms, "--threshold", "-200", "--out", str(out)], tmp_path) == status
    error = capsys.readouterr().err
    assert error == "" if status == 0 else "--threshold=-200 cannot be" in error
    assert out.exists() == (status == 0)


def test_of_kept_curves_the_task_is_not_known(undrawn, two_arms, tmp_path):
    out = tmp_path / "out"
    assert compare([*two_arms, "--out", str(out)], tmp_path) == 0
    again = [f"ddim={out}/curves.csv", "--threshold", "-200", "--out", str(tmp_path / "again")]
    assert compare(again, tmp_path) == 0


def test_another_comparison_is_not_written_over(undrawn, two_arms, tmp_path, capsys):
    out = tmp_path / "out"
    assert compare([*two_arms, "--out", str(out)], tmp_path) == 0
    kept = (out / "curves.csv").read_text()
    assert compare([two_arms[0], "--out", str(out)], tmp_path) == 2
    assert "curve of ddim seed 0 in it would be lost" in capsys.readouterr().err
    assert compare([two_arms[0], f"ddim={tmp_path}/d1", "--out", str(out)], tmp_path) == 2
    assert (out / "curves.csv").read_text() == kept
    made(tmp_path / "e", 7, 900.0)
    assert compare([*two_arms, f"more={tmp_path}/e", "--out", str(out)], tmp_path) == 0
    made(tmp_path / "f0", 0, 100.0)  # other runs of the same names and seeds
    other = [two_arms[0], f"ddim={tmp_path}/f0,{tmp_path}/d1,{tmp_path}/d2", f"more={tmp_path}/e"]
    assert compare([*other, "--out", str(out)], tmp_path) == 2
    with (tmp_path / "d0" / "metrics.jsonl").open("a") as file:  # trained on
        line = {"step": 30_500, "episode/return": 1.0, "episode/frames_total": 30_500}
        file.write(json.dumps(line) + "\n")
    assert compare([*two_arms, f"more={tmp_path}/e", "--out", str(out)], tmp_path) == 0


def test_an_output_that_is_a_file_is_named(two_arms, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert compare([*two_arms, "--out", str(tmp_path / "file")], tmp_path) == 2
    assert f"cannot write {tmp_path / 'file'}" in capsys.readouterr().err
    assert compare(["--seeds", "0", "--out", str(tmp_path / "file")], tmp_path) == 2
    assert "choose another folder with --out" in capsys.readouterr().err


def test_the_script_says_what_is_wrong_and_is_light_for_workers(tmp_path):
    script = str(Path(__file__).parents[2] / "experiments" / "compare.py")
    words = [sys.executable, script, "a=missing", "--out", str(tmp_path / "out")]
    ended = subprocess.run(words, capture_output=True, text=True)
    assert ended.returncode == 2 and ended.stderr.startswith("error: missing is no run")
    look = (
        f"import runpy, sys; runpy.run_path({script!r}, run_name='__mp_main__'); "
        "sys.exit('dreamer_jax' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", look]).returncode == 0
    look = "import sys, dreamer_jax.training.compare; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", look]).returncode == 0
