"""Running the arms of a comparison, with scripts in the place of real training."""

import csv
import json
import os
import signal
import textwrap
import threading
import time

import pytest
import tyro

from dreamer_jax.training import comparison_jobs
from dreamer_jax.training.assess import EvaluateConfig
from dreamer_jax.training.command import parse
from dreamer_jax.training.compare import compare
from dreamer_jax.training.comparison_jobs import Plan, core_shares
from dreamer_jax.training.presets import DEBUG

# A run of 40 episodes that rise to 900 (ddim) or to 400 and more (baseline). What befalls it
# depends on its seed: 13 breaks, 14 ends without a result; `slow` waits for a signal half-way.
TRAIN = """
    import json, os, signal, sys, time
    from pathlib import Path

    words = sys.argv[1:]
    options = dict(zip(words[::2], words[1::2]))
    with open(Path(__file__).parent / "calls", "a") as calls:
        print(*words, file=calls)
    if "--resume" in options:
        folder = Path(options["--resume"])
        config = json.loads((folder / "config.json").read_text())
    else:
        folder = Path(options["--out"])
        config = {"seed": int(options["--seed"]), "arm": options["--arm"], "cycles": 4}
        config["env"] = {"action_repeat": int(options.get("--env.action-repeat", 4))}
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(config))
        if hasattr(os, "sched_getaffinity"):
            (folder / "cores").write_text(json.dumps(sorted(os.sched_getaffinity(0))))
        (folder / "memory").write_text(os.environ.get("DREAMER_JAX_MEMORY", ""))
        names = ("XLA_PYTHON_CLIENT_PREALLOCATE", "XLA_PYTHON_CLIENT_MEM_FRACTION")
        (folder / "accelerator").write_text(" ".join(os.environ.get(name, "") for name in names))
    if config["seed"] == 13:
        sys.exit("error: --batch=0 cannot be")
    if config["seed"] == 14:
        sys.exit(0)

    def write(cycles):
        top = (400 if config["arm"] == "baseline" else 900) + 50 * config["seed"]
        lines = []
        for n in range(10 * cycles):
            value = top * min(1, n / 20)
            lines += [{"step": n, "episode/return": value, "episode/frames_total": 300 * (n + 1)}]
        lines += [{"step": n, "train/cycle": cycles}]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(l) + "\\n" for l in lines))

    if "--slow" in options and config["seed"] == 1:
        def leave(number, frame):
            write(2)
            sys.exit(128 + number)
        signal.signal(signal.SIGTERM, leave)
        Path(options["--slow"]).touch()
        time.sleep(60)
    write(4)
    (folder / "checkpoints" / "00000004").mkdir(parents=True)
"""
EVALUATE = """
    import json, sys
    from pathlib import Path

    with open(Path(__file__).parent / "calls", "a") as calls:
        print("evaluate", *sys.argv[1:], file=calls)
    folder, episodes, first = Path(sys.argv[1]), int(sys.argv[3]), int(sys.argv[5])
    config = json.loads((folder / "config.json").read_text())
    score = (500 if config["arm"] == "baseline" else 800) + config["seed"]
    found = {"returns": [score] * episodes, "first_track": first, "cycle": 4}
    (folder / "evaluation.json").write_text(json.dumps({config["seed"]: found}))
"""


@pytest.fixture
def scripts(tmp_path):
    folder = tmp_path / "scripts"
    folder.mkdir()
    (folder / "car_racing.py").write_text(textwrap.dedent(TRAIN))
    (folder / "evaluate.py").write_text(textwrap.dedent(EVALUATE))
    return folder


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Leaves out the figure, which takes longest."""
    monkeypatch.setattr("dreamer_jax.training.comparison_jobs.POLL_SECONDS", 0.01)
    monkeypatch.setattr("dreamer_jax.training.compare.comparison_figure", lambda *_: None)


def calls(scripts):
    """What the scripts were called with since the last look."""
    path = scripts / "calls"
    lines = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return lines


def table(out):
    with (out / "table.csv").open(newline="") as file:
        return {
            (r["score"], r["statistic"], r["group"], r["seeds"]): r["value"]
            for r in csv.DictReader(file)
        }


def test_runs_both_arms_over_the_seeds(scripts, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["--seeds", "0:2", "--out", str(out), "--preset", "laptop", "--episodes", "3"]
    assert compare([*words, "--jobs", "2", "--", "--env.action-repeat", "2"], scripts) == 0
    seen = calls(scripts)
    for arm in ("baseline", "ddim"):
        for seed in (0, 1):
            folder = f"{out}/{arm}/seed_{seed}"
            start = f"--preset laptop --arm {arm} --seed {seed} --out {folder}"
            assert f"{start} --env.action-repeat 2" in seen
            assert f"evaluate {folder} --episodes 3 --first-track 0" in seen
    assert len(seen) == 8
    text = (out / "comparison.md").read_text()
    assert "beats a random seed of baseline with probability 1.00" in text
    assert f"python experiments/compare.py {' '.join(words)} --jobs 2 -- --env" in text
    assert f"--arm ddim --seed K --out {out}/ddim/seed_K --env.action-repeat 2" in text
    figures = table(out)
    assert figures["held_out", "mean", "ddim", "n=2"] == "800.5"
    # Both arms rise by their top / 20 an episode; the mean of ten passes 500 never (400, 450).
    assert figures["frames_to_threshold", "seed", "baseline", "0"] == ">12000"
    assert figures["episodes_to_threshold", "median", "baseline", "n=2"] == ">40"
    assert float(figures["frames_to_threshold", "share reached", "ddim", "n=2"]) == 1.0
    assert "Traceback" not in capsys.readouterr().err


def test_shares_of_the_cores_by_hand(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {9, 2, 3, 5, 4, 7, 8}, raising=False)
    assert core_shares(3) == [{2, 3}, {4, 5}, {7, 8}]
    assert core_shares(7) == [{2}, {3}, {4}, {5}, {7}, {8}, {9}]
    assert core_shares(1) == [None] and core_shares(8) == [None] * 8
    monkeypatch.delattr(os, "sched_getaffinity")
    assert core_shares(2) == [None, None]


def cores_used(out, jobs, scripts):
    """Of a comparison's two trainings."""
    words = ["--seeds", "0:2", "--out", str(out), "--arms", "ddim", "--jobs", str(jobs)]
    assert compare(words, scripts) == 0
    return [json.loads((out / f"ddim/seed_{k}/cores").read_text()) for k in (0, 1)]


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="not on macOS")
def test_runs_at_once_do_not_share_cores(scripts, tmp_path):
    cores = sorted(os.sched_getaffinity(0))
    half = len(cores) // 2
    wanted = [cores[:half], cores[half : 2 * half]] if half else [cores, cores]
    assert sorted(cores_used(tmp_path / "two", 2, scripts)) == wanted
    assert cores_used(tmp_path / "one", 1, scripts) == [cores, cores]
    assert os.sched_getaffinity(0) == set(cores)  # as before


def test_runs_at_once_share_the_memory(scripts, tmp_path, monkeypatch):
    monkeypatch.delenv("DREAMER_JAX_MEMORY", raising=False)
    monkeypatch.setattr(comparison_jobs, "share", lambda processes: 1000 // processes)
    for name, jobs, wanted in (("three", 3, "500"), ("one", 1, "")):  # there are but two runs
        words = ["--seeds", "0:2", "--arms", "ddim", "--out", str(tmp_path / name)]
        assert compare([*words, "--jobs", str(jobs)], scripts) == 0
        for k in (0, 1):
            assert (tmp_path / name / f"ddim/seed_{k}/memory").read_text() == wanted


def test_runs_at_once_share_an_accelerator(scripts, tmp_path, monkeypatch):
    def told(name, jobs):
        words = ["--seeds", "0:2", "--arms", "ddim", "--out", str(tmp_path / name)]
        assert compare([*words, "--jobs", str(jobs)], scripts) == 0
        return {(tmp_path / name / f"ddim/seed_{k}/accelerator").read_text() for k in (0, 1)}

    for name in ("XLA_PYTHON_CLIENT_PREALLOCATE", "XLA_PYTHON_CLIENT_MEM_FRACTION"):
        monkeypatch.delenv(name, raising=False)
    assert told("two", 2) == {"false 0.45"} and told("one", 1) == {" "}
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.2")  # the user's own wins
    assert told("own", 2) == {"false 0.2"}


def test_what_is_done_is_not_done_again(scripts, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["--seeds", "0,2", "--out", str(out), "--arms", "baseline", "--episodes", "2"]
    assert compare(words, scripts) == 0
    before = {path.name: path.read_bytes() for path in out.glob("*.*")}
    calls(scripts)
    assert compare(words, scripts) == 0 and calls(scripts) == []
    assert {path.name: path.read_bytes() for path in out.glob("*.*")} == before
    # Other tracks are driven again, the training is kept; so is a run without its checkpoints.
    assert compare([*words, "--first-track", "7"], scripts) == 0
    assert [line.split()[0] for line in calls(scripts)] == ["evaluate", "evaluate"]
    (out / "baseline/seed_0/checkpoints/00000004").rmdir()
    assert compare([*words, "--first-track", "7"], scripts) == 0 and calls(scripts) == []
    # Driven otherwise since then, by hand:
    path = out / "baseline/seed_2/evaluation.json"
    path.write_text(json.dumps({"2": json.loads(path.read_text())["2"] | {"average": 9}}))
    assert compare([*words, "--first-track", "7"], scripts) == 0
    folder = f"{out}/baseline/seed_2"
    assert calls(scripts) == [f"evaluate {folder} --episodes 2 --first-track 7"]
    # Killed between the last log line and the last checkpoint:
    (out / "baseline/seed_0/evaluation.json").unlink()
    assert compare([*words, "--first-track", "7"], scripts) == 0
    assert calls(scripts)[0] == f"--resume {out}/baseline/seed_0"


def test_other_options_in_the_same_folder_are_refused(scripts, tmp_path, capsys):
    words = ["--seeds", "0:1", "--out", str(tmp_path / "out"), "--arms", "baseline"]
    assert compare(words, scripts) == 0
    assert compare([*words, "--preset", "debug", "--", "--cycles", "9"], scripts) == 2
    error = capsys.readouterr().err
    assert "started with no options, not with --preset debug --cycles 9" in error


def test_a_failing_run_is_named_and_leaves_the_others_alone(scripts, tmp_path, capsys):
    out = tmp_path / "out"
    assert compare(["--seeds", "0,13,14", "--out", str(out), "--arms", "a,b"], scripts) == 1
    errors = [e for e in capsys.readouterr().err.splitlines() if e.startswith("error: ")]
    assert len(errors) == 4
    log = out / "logs" / "a-seed_13.log"
    reason = "car_racing.py failed (error: --batch=0 cannot be)"
    assert errors[0] == f"error: a seed 13: {reason}; log: {log}" and log.exists()
    assert "b seed 14: car_racing.py ended without an error and without a result" in errors[3]
    text = (out / "comparison.md").read_text()
    assert f"**Warning:** a seed 13 is missing: {reason}." in text
    assert "| a | 1 |" in text and "| b | 1 |" in text


def test_when_every_run_fails_nothing_is_written(scripts, tmp_path, capsys):
    out = tmp_path / "out"
    assert compare(["--seeds", "13", "--out", str(out)], scripts) == 1
    assert not (out / "comparison.md").exists()


def test_a_stopped_comparison_goes_on_where_it_was(scripts, tmp_path, capsys):
    out, started = tmp_path / "out", tmp_path / "started"
    words = ["--seeds", "0:3", "--out", str(out), "--arms", "ddim", "--", "--slow", str(started)]

    def stop():
        deadline = time.monotonic() + 30
        while not started.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        if started.exists():  # else nobody would catch it
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop).start()
    assert compare(words, scripts) == 128 + signal.SIGTERM
    assert "the same command goes on where it was" in capsys.readouterr().err
    assert not (out / "comparison.md").exists() and not (out / "ddim" / "seed_2").exists()
    calls(scripts)
    assert compare(words, scripts) == 0
    assert calls(scripts) == [
        f"--resume {out}/ddim/seed_1",
        f"evaluate {out}/ddim/seed_1 --episodes 20 --first-track 0",
        f"--arm ddim --seed 2 --out {out}/ddim/seed_2 --slow {started}",
        f"evaluate {out}/ddim/seed_2 --episodes 20 --first-track 0",
    ]
    assert "ddim seed 1: training (going on)" in capsys.readouterr().out


def test_the_real_scripts_know_these_options(tmp_path):
    plan = Plan(tmp_path, tmp_path, ("baseline",), (7,), None, ("--cycles", "9"), 3, 5, 1)
    _, *arguments = plan.train("baseline", 7, tmp_path / "run")
    config = parse(arguments, DEBUG)
    assert (config.arm, config.seed, config.cycles) == ("baseline", 7, 9)
    assert config.out == str(tmp_path / "run")
    _, run, *arguments = plan.evaluate(tmp_path / "run")
    assert run == str(tmp_path / "run")
    assert tyro.cli(EvaluateConfig, args=arguments) == EvaluateConfig(3, 5)
