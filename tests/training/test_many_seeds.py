"""Several learners in one program: each as it would be alone, and what is logged of all."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from logged import lines, set_cycles, updates
from processes import python

from dreamer_jax.errors import UserError
from dreamer_jax.training import memory
from dreamer_jax.training.command import assess, race
from dreamer_jax.training.config import check
from dreamer_jax.training.loop import Run
from dreamer_jax.training.members import Member, members
from dreamer_jax.training.presets import DEBUG

pytestmark = pytest.mark.usefixtures("compiled_once")
SCRIPT = Path(__file__).parents[2] / "experiments" / "car_racing.py"
OPTIONS = ["--preset", "debug", "--arm", "baseline", "--cycles", "3", "--prefill", "60"]
OPTIONS += ["--eval-every", "3", "--report-every", "3", "--env.time-limit", "80"]


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    folder = tmp_path_factory.mktemp("many") / "run"
    assert race([*OPTIONS, "--seeds", "3,5", "--out", str(folder)]) == 0
    return folder


def test_a_learner_is_as_it_would_be_alone(together, tmp_path):
    """Bit for bit, on a CPU."""
    assert race([*OPTIONS, "--seed", "5", "--out", str(tmp_path / "alone")]) == 0
    alone, beside = lines(tmp_path / "alone"), lines(together / "seed_5")
    assert any("loss/actor" in line for line in alone)
    np.testing.assert_equal(beside, alone)
    assert lines(together / "seed_3") != beside


def test_each_on_a_device_of_its_own(together, tmp_path):
    """Bit for bit again, and over a stop; two simulated devices."""
    folder = tmp_path / "run"
    short = [*OPTIONS, "--seeds", "3,5", "--out", str(folder)]
    short[short.index("--cycles") + 1] = "2"
    first = python(SCRIPT, *short, devices=2)
    assert first.returncode == 0, first.stderr
    assert "devices:    2, each with 1 of the learners" in first.stdout
    set_cycles(folder, 3)
    second = python(SCRIPT, "--resume", folder, devices=2)
    assert second.returncode == 0, second.stderr
    for seed in (3, 5):
        want, got = (updates(f / f"seed_{seed}") for f in (together, folder))
        np.testing.assert_equal(got, want)


def test_what_is_logged_of_all(together):
    assert (together / "return.png").read_bytes().startswith(b"\x89PNG")
    assert all((together / f"seed_{seed}" / "return.png").exists() for seed in (3, 5))
    records = lines(together / "aggregate")
    cycles = [line for line in records if "learners/healthy" in line]
    assert [line["learners/healthy"] for line in cycles] == [2.0] * 3
    last = cycles[-1]
    returns = []
    for seed in (3, 5):
        own = [
            r["episode/return"] for r in lines(together / f"seed_{seed}") if "episode/return" in r
        ]
        returns.append(np.mean(own[-10:]))
    assert last["episode/return_iqm"] == pytest.approx(np.mean(returns))
    assert last["episode/return_iqm_low"] <= last["episode/return_iqm"]
    assert any("eval/return_iqm" in line for line in records)


def test_evaluation_of_all(together, capsys):
    assert assess([str(together), "--episodes", "1"]) == 0
    out = capsys.readouterr().out
    assert "seed 3, 1 held-out" in out and "seed 5, 1 held-out" in out
    assert set(json.loads((together / "evaluation.json").read_text())) == {"3", "5"}


def test_all_go_on_after_a_stop(together, tmp_path):
    """Two cycles, then the third after --resume: as the three in one go."""
    folder = tmp_path / "run"
    short = [*OPTIONS, "--seeds", "3,5", "--out", str(folder)]
    short[short.index("--cycles") + 1] = "2"
    assert race(short) == 0
    assert race(["--resume", str(folder), "--cycles", "1"]) == 2
    assert race(["--resume", str(folder)]) == 0  # has all of its two
    assert race(["--resume", str(folder), "--cycles", "3", "--env.timeout", "99"]) == 0
    config = json.loads((folder / "config.json").read_text())
    assert config["cycles"] == 3 and config["env"]["timeout"] == 99
    for seed in (3, 5):
        want, got = (updates(f / f"seed_{seed}") for f in (together, folder))
        np.testing.assert_equal(got, want)
    rules = ["--env.both-ways", "--env.no-off-road-ends", "--env.missed-cost", "20"]
    room = ["--replay", str(2 * config["replay"])]
    assert race(["--resume", str(folder), "--cycles", "4", *rules, *room]) == 0
    config = json.loads((folder / "config.json").read_text())
    assert config["env"]["both_ways"] and config["env"]["missed_cost"] == 20.0
    assert all(len(updates(folder / f"seed_{seed}")) > len(want) for seed in (3, 5))
    config["cycles"] = 5
    config["env"]["idle_limit"] += 5  # as if it had died before a checkpoint under these rules
    (folder / "config.json").write_text(json.dumps(config))
    assert race(["--resume", str(folder)]) == 0


def test_one_diverges_and_the_others_go_on(together, tmp_path, monkeypatch, capsys):
    start = Run.start

    def poisoned(run):
        start(run)
        bad = jax.tree.map(lambda x: x.at[0].set(jnp.nan), run.state.critic)
        run.state = run.state.replace(critic=bad)

    monkeypatch.setattr(Run, "start", poisoned)
    folder = tmp_path / "run"
    assert race([*OPTIONS, "--seeds", "3,5", "--out", str(folder)]) == 0
    assert (folder / "diverged" / "seed_3" / "batch.npz").exists()
    want, got = lines(together / "seed_5"), lines(folder / "seed_5")
    np.testing.assert_equal(got, want)
    healthy = [line.get("learners/healthy") for line in lines(folder / "aggregate")]
    assert [h for h in healthy if h is not None] == [2.0, 1.0, 1.0]
    assert "seed 3 stops, the others go on" in capsys.readouterr().out


def test_a_sweep_is_several_runs_in_one_program(tmp_path):
    """Each learner is as a run of its own with that option; the others have other curves."""
    short = [*OPTIONS, "--eval-every", "0", "--report-every", "0", "--seed", "3"]
    folder = tmp_path / "sweep"
    sweep = ["--sweep", "entropy_scale=0.01,1.0", "--out", str(folder)]
    assert race([*short, *sweep]) == 0
    one, other = (folder / f"entropy_scale={v}" / "seed_3" for v in ("0.01", "1"))
    alone = ["--agent.entropy-scale", "1.0", "--out", str(tmp_path / "alone")]
    assert race([*short, *alone]) == 0
    want, got = lines(tmp_path / "alone"), lines(other)
    assert len(want) == len(got)
    for a, b in zip(want, got, strict=True):
        for name, value in a.items():
            np.testing.assert_allclose(b[name], value, rtol=2e-3, atol=1e-4, err_msg=name)
    losses = [next(r["loss/actor"] for r in lines(f) if "loss/actor" in r) for f in (one, other)]
    assert abs(losses[0] - losses[1]) > 0.1
    kept = json.loads((folder / "entropy_scale=1" / "config.json").read_text())
    assert kept["agent"]["entropy_scale"] == 1.0 and kept["sweep"] == []
    assert (folder / "return.png").exists()
    assert (folder / "entropy_scale=1" / "aggregate" / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("entry", "word"),
    [
        ("deter=10,20", "cannot be swept"),
        ("actor_lr", "different numbers"),
        ("actor_lr=a,b", "different numbers"),
        ("actor_lr=1e-4,1e-4", "different numbers"),
        ("actor_lr=-1,1", "--agent.actor-lr=-1.0 cannot be"),
        ("gamma=0.9,1.5", "--agent.gamma=1.5 cannot be"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused(entry, word, tmp_path, capsys):
    assert race([*OPTIONS, "--sweep", entry, "--out", str(tmp_path / "x")]) == 2
    error = capsys.readouterr().err
    assert word in error and error.count("\n") == 1 and not (tmp_path / "x").exists()


def test_a_sweep_is_every_combination():
    got = members((0, 1), ("actor_lr=1e-4,3e-4", "generated_fraction=0,1"))
    assert len(got) == 8 and len(set(got)) == 8
    assert got[0] == Member(0, (("agent.actor_lr", 1e-4), ("generated.fraction", 0.0)))
    assert got[1].seed == 1 and got[1].setting == got[0].setting == "actor_lr=0.0001,fraction=0"
    with pytest.raises(UserError, match=r"names agent\.actor_lr twice"):
        members((0,), ("gamma=0.9", "actor_lr=1e-4", "actor_lr=3e-4"))
    with pytest.raises(UserError, match="different numbers"):
        members((0,), ("gamma=0.99,0.99000001",))
    assert members((7,), ()) == (Member(7),) and Member(7).label == "seed 7"


@pytest.mark.parametrize("text", ["", "3:3", "1,1", "a", "0:2,5", str(2**31)])
def test_seeds_that_cannot_be_are_refused(text, tmp_path, capsys):
    assert race([*OPTIONS, "--seeds", text, "--out", str(tmp_path / "x")]) == 2
    assert f"--seeds={text} cannot be" in capsys.readouterr().err


def test_seeds_take_the_place_of_seed():
    assert [m.seed for m in check(DEBUG).members] == [0]
    config = check(dataclasses.replace(DEBUG, seeds="2:5"))
    assert [m.seed for m in config.members] == [2, 3, 4]


def test_memory_is_planned(monkeypatch):
    free = (10 * memory.GIB, "free")  # 8 of which may be used
    monkeypatch.setattr(memory, "free_memory", lambda: free)
    ring, state = int(1.5 * memory.GIB), int(0.5 * memory.GIB)
    assert "up to 2 would fit" in memory.plan(2, ring, state)  # the ring counts twice
    with pytest.raises(UserError, match="use 2 or fewer with --seeds"):
        memory.plan(3, ring, state)
    with pytest.raises(UserError, match="lower --replay to 23%"):
        memory.plan(1, 16 * memory.GIB, state)
    with pytest.raises(UserError, match="do not fit"):
        memory.plan(1, ring, 9 * memory.GIB)
