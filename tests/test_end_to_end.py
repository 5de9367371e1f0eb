"""The whole program on the debug preset: what it writes, and how it survives what befalls it."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from logged import lines
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dreamer_jax.agents.dlc_v1 import LOSSES
from dreamer_jax.training.command import race
from dreamer_jax.training.config import from_dict, to_dict
from dreamer_jax.training.logging import read_metrics
from dreamer_jax.training.loop import Run
from dreamer_jax.training.presets import DEBUG
from dreamer_jax.training.run_folder import RunFolder

SCRIPT = Path(__file__).parents[1] / "experiments" / "car_racing.py"
CYCLES = 5
OPTIONS = ["--preset", "debug", "--arm", "baseline", "--cycles", str(CYCLES), "--prefill", "40"]
OPTIONS += ["--report-every", "3", "--eval-every", "3"]
SHORT = [*OPTIONS, "--eval-every", "0", "--report-every", "0"]
pytestmark = pytest.mark.usefixtures("compiled_once")


class Watch:
    """Counts what each cycle of a run does."""

    def __init__(self, patch):
        self.updates, self.transfers, self.guarded, self.compiled = [], [], [], []
        cycle, get = Run._cycle, jax.device_get

        def watched_cycle(run, display):
            if not self.updates:
                self.learner = run.learner
                run.learner = run.learner._replace(update=self.update)
                self.figures = (run.config.updates, len(run.learner.names()), run.learners)
            self.updates.append(0)
            self.transfers.append(0)
            cycle(run, display)
            programs = ("add", "act", "program", "sample", "report")
            self.compiled.append({p: getattr(self.learner, p)._cache_size() for p in programs})

        def watched_get(tree):
            tables = [x for x in jax.tree.leaves(tree) if np.shape(x) == self.figures]
            self.transfers[-1:] = [n + len(tables) for n in self.transfers[-1:]]
            return get(tree)

        patch.setattr(Run, "_cycle", watched_cycle)
        patch.setattr(jax, "device_get", watched_get)

    def update(self, *args):
        self.updates[-1] += 1
        try:
            jnp.add(np.ones(3), 1)  # a transfer that nobody asked for
            self.guarded.append(False)
        except Exception as error:
            self.guarded.append("Disallowed" in str(error))
        return self.learner.update(*args)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An undisturbed run: its folder and what was seen of its cycles."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        watch = Watch(patch)
        assert race([*OPTIONS, "--out", str(folder)]) == 0
    return folder, watch


def steps(folder):
    """Cycles of the checkpoints."""
    return sorted(int(path.name) for path in (folder / "checkpoints").glob("[0-9]*"))


def before_cycle(patch, number, action):
    """Call action(run) in the middle of cycle `number`, counted from the start of this process."""
    collect, seen = Run.collect, []

    def collect_and_act(run):
        seen.append(run)
        collected = collect(run)
        if len(seen) == number:
            action(run)
        return collected

    patch.setattr(Run, "collect", collect_and_act)


# ---------------------------------------------------------------- an undisturbed run


def test_one_dispatch_and_one_transfer_a_cycle_under_the_guard(whole):
    watch = whole[1]
    assert watch.updates == watch.transfers == [1] * CYCLES
    assert watch.guarded == [True] * CYCLES


def test_nothing_is_compiled_after_the_first_use(whole):
    before = {"add": 1, "act": 1, "program": 1, "sample": 0, "report": 0}
    # the third cycle brings the report and the first evaluation, which acts otherwise
    after = {"add": 1, "act": 2, "program": 1, "sample": 1, "report": 1}
    assert whole[1].compiled == [before] * 2 + [after] * 3


def test_figures_of_every_cycle_and_episode(whole):
    records = read_metrics(whole[0] / "metrics.jsonl")
    cycles = [r for r in records if "train/cycle" in r]
    assert [r["train/cycle"] for r in cycles] == [1, 2, 3, 4, 5]
    for record in cycles:
        assert set(whole[1].learner.names()) <= set(record)
        assert all(np.isfinite(record[name]) for name in LOSSES)
        assert record["step"] == record["train/frames"]
    episodes = [r for r in records if "episode/return" in r]
    assert [r["episode/number"] for r in episodes] == list(range(1, len(episodes) + 1))
    assert all(0 < r["episode/frames"] <= 200 for r in episodes) and episodes
    assert len([r for r in records if "eval/return" in r]) == 2  # after the third and the last


def test_what_lies_in_the_folder(whole):
    folder, _ = whole
    config = from_dict(json.loads((folder / "config.json").read_text()))
    want = dataclasses.replace(DEBUG, arm="baseline", cycles=CYCLES, prefill=40, out=str(folder))
    want = dataclasses.replace(want, report_every=3, eval_every=3)
    assert config == want
    assert (folder / "return.png").read_bytes().startswith(b"\x89PNG")
    videos = list((folder / "videos").glob("*.mp4"))
    assert len(videos) == 2 and all(video.stat().st_size > 1000 for video in videos)
    assert steps(folder) == [CYCLES - 1, CYCLES]  # --keep 2
    assert not list((folder / "checkpoints").glob(".*"))


def test_tensorboard_reads_it_back(whole):
    events = EventAccumulator(str(whole[0]), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    tags = events.Tags()
    assert {*LOSSES, "episode/return", "eval/return", "time/frames_per_second"} <= {
        *tags["scalars"]
    }
    assert {*tags["images"]} == {
        "model/truth_reconstruction_error",
        "model/open_loop",
        "eval/episode",
    }
    assert {"action/steer", "action/throttle", "report/value", "report/reward_predicted"} <= {
        *tags["histograms"]
    }
    recorded = [
        r["loss/image"] for r in read_metrics(whole[0] / "metrics.jsonl") if "loss/image" in r
    ]
    np.testing.assert_allclose([e.value for e in events.Scalars("loss/image")], recorded, rtol=1e-6)


# ---------------------------------------------------------------- disturbed runs


def start(code, *arguments):
    """The program in a process of its own."""
    path = os.pathsep.join(filter(None, [str(SCRIPT.parents[1]), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, *code, *map(str, arguments)]
    return subprocess.Popen(
        command,
        env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def kill_after_a_checkpoint(folder):
    """SIGKILL from outside as soon as the first checkpoint shows up."""
    with start([str(SCRIPT)], *OPTIONS, "--out", folder) as run:
        deadline = time.monotonic() + 300
        while not (folder / "checkpoints").is_dir() or not steps(folder):
            assert run.poll() is None and time.monotonic() < deadline, run.communicate()[0]
            time.sleep(0.01)
        run.kill()
    assert run.returncode == -signal.SIGKILL


DIE_WRITING = """
import os, signal, sys
from dreamer_jax.training import checkpoint, command
checkpoint.write_manifest = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
sys.exit(command.race(sys.argv[1:]))
"""


def kill_while_it_writes_a_checkpoint(folder):
    """SIGKILL when the arrays are on the disk and the manifest is not."""
    before = steps(folder)
    with start(["-c", DIE_WRITING], "--resume", folder) as run:
        output = run.communicate(timeout=300)[0]
    assert run.returncode == -signal.SIGKILL, output
    assert steps(folder) == before and len(list((folder / "checkpoints").glob(".tmp*"))) == 1


def stop_it_politely(folder, capsys):
    """SIGTERM to all its processes amidst a cycle: the cycle is finished and saved."""
    before = steps(folder)[-1]

    def ask(run):
        for pid in (*(each.process.pid for each in run.env._workers), os.getpid()):
            os.kill(pid, signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        before_cycle(patch, 1, ask)
        assert race(["--resume", str(folder)]) == 128 + signal.SIGTERM
    assert steps(folder)[-1] == before + 1
    assert (
        f"saved after cycle {before + 1}; go on with --resume {folder}" in capsys.readouterr().out
    )


def kill_an_environment(folder, capsys):
    """SIGKILL to an environment's process in one cycle: the next one cannot be finished."""
    before = steps(folder)[-1]

    first = []  # environment of that process: both are in one where there is one core

    def kill(run):
        last = run.env._workers[-1]
        first.append(last.first)
        os.kill(last.process.pid, signal.SIGKILL)

    with pytest.MonkeyPatch.context() as patch:
        before_cycle(patch, 1, kill)
        assert race(["--resume", str(folder)]) == 3
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: environment {first[0]} (") and "killed by SIGKILL" in error
    assert f"up to cycle {before + 1}: --resume {folder}" in error
    assert steps(folder)[-1] == before + 1


def damage_the_newest_checkpoint(folder):
    newest = folder / "checkpoints" / f"{steps(folder)[-1]:08d}"
    largest = max((newest / "arrays").rglob("*"), key=lambda path: path.stat().st_size)
    with largest.open("r+b") as file:
        file.truncate(largest.stat().st_size // 2)
    return newest


def test_a_run_that_was_killed_again_and_again_ends_like_an_undisturbed_one(
    whole, tmp_path, capsys
):
    folder = tmp_path / "run"
    kill_after_a_checkpoint(folder)
    kill_while_it_writes_a_checkpoint(folder)
    stop_it_politely(folder, capsys)
    kill_an_environment(folder, capsys)
    newest = damage_the_newest_checkpoint(folder)
    assert race(["--resume", str(folder)]) == 0
    seen = capsys.readouterr()
    assert f"warning: checkpoint {newest} is damaged and was passed over" in seen.err
    assert lines(folder) == lines(whole[0])
    assert steps(folder) == steps(whole[0]) and not list((folder / "checkpoints").glob(".*"))
    assert (folder / "return.png").exists()
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    assert [e.step for e in events.Scalars("loss/image")] == [
        r["step"] for r in lines(folder) if "loss/image" in r
    ]


def test_a_second_interrupt_leaves_at_once(tmp_path, capsys):
    def interrupt_twice(run):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.MonkeyPatch.context() as patch:
        before_cycle(patch, 1, interrupt_twice)
        assert race([*SHORT, "--out", str(tmp_path / "run")]) == 130
    assert "left at once" in capsys.readouterr().err and not (tmp_path / "run/checkpoints").exists()
    assert signal.getsignal(signal.SIGINT) is before


def test_a_run_without_a_checkpoint_starts_anew(tmp_path, capsys):
    started = []
    with RunFolder.create(tmp_path / "run", "x") as folder:
        config = dataclasses.replace(DEBUG, arm="baseline", out=str(folder.path))
        folder.save_config(to_dict(config))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "train", lambda run, display, stop: started.append(run.ring.size.sum()))
        assert race(["--resume", str(tmp_path / "run")]) == 0
    assert "no checkpoint yet: starting from the beginning" in capsys.readouterr().out
    assert int(started[0]) == DEBUG.prefill


def test_a_loss_that_is_not_finite_ends_the_run_with_the_evidence(tmp_path, capsys):
    folder, start_run = tmp_path / "run", Run.start

    def poisoned(run):
        start_run(run)
        reward = jax.tree.map(lambda x: x + jnp.nan, run.state.model["reward"])
        run.state = run.state.replace(model=run.state.model | {"reward": reward})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "start", poisoned)
        assert race([*SHORT, "--out", str(folder)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: loss/reward, ") and "in update 0 (seed 0)" in error
    assert "--agent.model-lr" in error and str(folder / "diverged") in error
    with np.load(folder / "diverged" / "batch.npz") as evidence:
        shape = (DEBUG.length, DEBUG.batch)
        assert evidence["obs/image"].shape == (*shape, 96, 96, 3) and evidence["obs/image"].any()
        assert evidence["reward"].shape == shape
        assert np.isnan(evidence["figure/loss/reward"]).all()
    assert (folder / "diverged" / "state" / "00000000" / "host.json").exists()
    assert not (folder / "checkpoints").exists()
    assert len([line for line in lines(folder) if "loss/reward" in line]) == 1


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("--preset nothing", "--preset nothing is unknown"),
        ("--preset debug --env.action-repeat 0", "--env.action-repeat=0"),
        ("--preset debug --batch 0", "--batch=0"),
        ("--preset debug --length 5000", "--length=5000"),
        ("--preset debug --agent.gamma 2", "--agent.gamma=2"),
        ("--resume MISSING", "no run folder at MISSING"),
        ("--resume EMPTY", "holds no run"),
        ("--resume WHOLE --batch 3", "leave out --batch 3"),
        ("--resume WHOLE --preset debug", "leave out --preset debug"),
        ("--preset debug --out WHOLE", "already holds a run"),
    ],
)
def test_bad_input_is_one_line_that_names_the_setting(whole, tmp_path, capsys, arguments, text):
    names = {"WHOLE": whole[0], "EMPTY": tmp_path, "MISSING": tmp_path / "missing"}
    words = [str(names.get(word, word)) for word in arguments.split()]
    assert race(words) == 2
    seen = capsys.readouterr()
    assert seen.err.startswith("error: ") and seen.err.count("\n") == 1
    assert text.replace("MISSING", str(names["MISSING"])) in seen.err


def test_an_unknown_option_is_named(capsys):
    with pytest.raises(SystemExit) as left:
        race(["--preset", "debug", "--colour", "red"])
    assert left.value.code == 2 and "--colour" in capsys.readouterr().err


def test_a_folder_in_use_is_refused(whole, tmp_path, capsys):
    shutil.copytree(whole[0], tmp_path / "run")
    with RunFolder.open(tmp_path / "run"):
        assert race(["--resume", str(tmp_path / "run")]) == 2
    assert f"in use by process {os.getpid()}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value", "text"),
    [("--agent.fold", "7", "agent.fold=7"), ("--replay", "900000000", "lower --replay")],
)
def test_what_only_the_parts_know_is_named_too(tmp_path, capsys, option, value, text):
    out = ["--out", str(tmp_path / "run")]
    assert race([*SHORT, option, value, *out]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and text in error
    assert not (tmp_path / "run" / "config.json").exists()  # the folder may be used again
