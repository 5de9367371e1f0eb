"""Pre-training that diverges, is stopped, or is looked for: nothing lost, nothing bad kept."""

import json
import os
import shutil
import signal
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from logged import lines

from ddim_jax.training import command, frames, pretrain, scenes
from ddim_jax.training.frames import load_frames
from ddim_jax.training.pretrain import DEBUG, PRESETS, default_folder, newest
from ddim_jax.weights_file import digest, load_weights
from dreamer_jax.errors import UserError
from dreamer_jax.training.checkpoint import Checkpointer
from dreamer_jax.training.presets import DEBUG as RACE
from dreamer_jax.training.run_folder import HoldsRun, RunFolder

pytestmark = pytest.mark.usefixtures("compiled_once")
SMALL = replace(
    DEBUG, frames=8, test_frames=5, samples=5, steps=6, report_every=0, checkpoint_every=2
)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """The preset debug, made quick."""
    monkeypatch.setitem(PRESETS, "debug", SMALL)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A training that nothing disturbed."""
    folder = tmp_path_factory.mktemp("ddim") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "debug", SMALL)
        assert command.pretrain(["--preset", "debug", "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def out(whole, tmp_path):
    """A folder with frames and no training."""
    (tmp_path / "run").mkdir()
    shutil.copy(whole / "frames.npz", tmp_path / "run")
    return tmp_path / "run"


def train(folder, *words):
    return command.pretrain(["--preset", "debug", "--out", str(folder), *words])


def set_config(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def saved(folder):
    return Checkpointer(folder / "checkpoints").steps()


# ---------------------------------------------------------------- divergence


def test_weights_that_diverge_are_never_saved(out, capsys):
    """The step's own loss is finite: it was taken before its update."""
    words = ["--log-every", "100", "--checkpoint-every", "1"]
    assert train(out, "--model.lr", "1e30", "--model.warmup", "0", *words) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: the weights became") and "--resume" not in error
    assert "smaller --model.lr and another --out" in error
    assert saved(out) == [] and not (out / "weights.npz").exists()


@pytest.mark.parametrize("name", ["loss", "grad_norm"])
@pytest.mark.parametrize("stopped", [False, True])
def test_a_figure_between_two_lines_of_the_log(out, monkeypatch, capsys, name, stopped):
    step, calls = pretrain.train.train_on, []

    def bad_at_three(*args):
        calls.append(1)
        state, metrics = step(*args)
        if len(calls) == 3:
            metrics = metrics | {name: jnp.float32(np.inf)}
            if stopped:
                os.kill(os.getpid(), signal.SIGTERM)
        return state, metrics

    monkeypatch.setattr(pretrain.train, "train_on", bad_at_three)
    assert train(out, "--log-every", "100") == 2
    error = capsys.readouterr().err
    assert f"{name} became nan or infinite in step 3" in error and "another --out" in error
    assert f"--resume {out} goes on from step 2 with it" in error
    assert len(calls) == (3 if stopped else 4) and saved(out) == [2]


def test_bad_weights_of_before_are_not_gone_on_from(whole, tmp_path, capsys):
    folder = shutil.copytree(whole, tmp_path / "run")
    checkpoints = Checkpointer(folder / "checkpoints")
    state = newest(checkpoints, SMALL.model)
    bad = state._replace(ema=jax.tree.map(lambda x: x * np.nan, state.ema), step=state.step + 1)
    checkpoints.save(7, bad, {"step": 7})
    assert command.pretrain(["--resume", str(folder)]) == 2
    assert f"{folder}/checkpoints/00000007" in capsys.readouterr().err
    with pytest.raises(UserError, match="nan, infinite"):
        scenes.load(str(folder))
    shutil.rmtree(folder / "checkpoints" / "00000007")
    assert scenes.load(str(folder))[0] == SMALL.model


def test_a_folder_and_its_weights_file_are_one_model(whole, tmp_path):
    """Also once its checkpoints are removed; so a race can go on."""
    want = digest(load_weights(whole / "weights.npz")[1])
    assert digest(scenes.load(str(whole))[1]) == want
    folder = shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(folder / "checkpoints")
    assert digest(scenes.load(str(folder))[1]) == want


def test_impossible_steps_are_told_before_a_model_is_trained(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = replace(RACE, ddim="debug", generated=replace(RACE.generated, steps=51))
    with pytest.raises(UserError, match=r"--generated\.steps=51"):
        scenes.find_scenes(config)
    assert list(tmp_path.iterdir()) == []


def test_one_of_several_runs_trains_and_the_others_wait(whole, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = default_folder("debug")
    naps = []

    def nap(seconds):
        naps.append(seconds)
        if len(naps) == 2:
            shutil.copy(whole / "weights.npz", folder)

    monkeypatch.setattr(scenes.time, "sleep", nap)
    with RunFolder.create(folder, ""):
        assert scenes.load("debug")[0] == SMALL.model
    assert naps == [scenes.POLL_SECONDS] * 2
    assert capsys.readouterr().out.count("another process trains it in runs/ddim-debug") == 1


def test_a_model_that_another_run_began_in_the_meantime(whole, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def begin(config, preset):  # refused: between a look and this call another began, and ended
        shutil.copytree(whole, default_folder(preset))
        raise HoldsRun("already holds a run")

    monkeypatch.setattr(command, "begin", begin)
    assert scenes.load("debug")[0] == SMALL.model
    shutil.rmtree("runs")
    monkeypatch.setattr(command, "begin", refuse)
    with pytest.raises(UserError, match="no space"):
        scenes.load("debug")


def refuse(config, preset):  # and not to be tried again, though its folder is there by now
    (default_folder(preset) / "config.json").parent.mkdir(parents=True)
    (default_folder(preset) / "config.json").touch()
    raise UserError("no space")


def test_a_failing_judge_loses_no_weights(out, monkeypatch):
    def fails(*args):
        raise ValueError("too few")

    monkeypatch.setattr(pretrain, "compare_pictures", fails)
    with pytest.raises(ValueError, match="too few"):
        train(out)
    assert load_weights(out / "weights.npz")[0] == SMALL.model and saved(out) == [4, 6]


# ---------------------------------------------------------------- stopping and going on


def test_the_log_of_a_training_killed_before_its_first_checkpoint(whole, out):
    shutil.copy(whole / "config.json", out)
    (out / "metrics.jsonl").write_text('{"step": 3, "ddim/loss": 1e9}\n{"st')
    assert command.pretrain(["--resume", str(out)]) == 0
    assert lines(out) == lines(whole)


def test_the_agent_is_needed_for_missing_frames_only(whole, out, capsys):
    shutil.copy(whole / "config.json", out)
    set_config(out, agent="gone")
    assert command.pretrain(["--resume", str(out)]) == 0
    (out / "frames.npz").unlink()
    assert command.pretrain(["--resume", str(out)]) == 2
    assert "gone" in capsys.readouterr().err


@pytest.mark.parametrize("test", [False, True])
def test_stopped_while_frames_are_collected(whole, tmp_path, monkeypatch, capsys, test):
    """After the episode; the training frames are not collected again."""
    episode, collect, sets = frames._episode, pretrain.collect, []

    def noting(*args, **options):
        sets.append(args[4])
        return collect(*args, **options)

    def stopping(*args):
        if sets[-1] == test:
            os.kill(os.getpid(), signal.SIGTERM)
        return episode(*args)[:3]

    folder = tmp_path / "run"
    monkeypatch.setattr(pretrain, "collect", noting)
    with monkeypatch.context() as patch:
        patch.setattr(frames, "_episode", stopping)
        assert train(folder) == 128 + signal.SIGTERM
    assert f"--resume {folder}" in capsys.readouterr().out
    assert sets == ([False, True] if test else [False])
    assert (folder / "frames.npz").exists() == test and not (folder / "metrics.jsonl").exists()
    sets.clear()
    with monkeypatch.context() as patch:
        patch.setattr(pretrain.Pretraining, "_loop", lambda self, state, *rest: state)
        assert command.pretrain(["--resume", str(folder)]) == 0
    assert sets == ([True] if test else [False, True])
    assert np.array_equal(
        load_frames(folder / "frames.npz")[1], load_frames(whole / "frames.npz")[1]
    )


# ---------------------------------------------------------------- where a model is, and which


def test_only_the_preset_itself_takes_the_folder_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command.Pretraining, "run", lambda self, policy: 0)
    assert command.pretrain(["--preset", "debug", "--model.batch", "3"]) == 0
    (other,) = (tmp_path / "runs").iterdir()
    assert other.name.startswith("ddim-debug-")
    assert command.pretrain(["--preset", "debug"]) == 0
    assert (tmp_path / "runs" / "ddim-debug" / "config.json").exists()


def test_a_preset_trained_here_with_other_settings(whole, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(whole, tmp_path / "runs" / "ddim-debug")
    scenes.load("debug")
    assert capsys.readouterr().out == ""
    model = json.loads((folder / "config.json").read_text())["model"]
    set_config(folder, steps=5, agent="runs/a", model=model | {"batch": 3})
    scenes.load("debug")
    said = capsys.readouterr().out
    assert "steps=5 (preset: 6), model.batch=3 (preset: 4);" in said and said.count("\n") == 1


def test_weights_that_ship_come_before_those_trained_here(whole, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(whole, tmp_path / "runs" / "ddim-laptop")
    assert scenes.load("laptop")[0] == PRESETS["laptop"].model
    assert "--ddim runs/ddim-laptop" in capsys.readouterr().out


def test_an_unfinished_training_says_so(whole, tmp_path, capsys):
    folder = shutil.copytree(whole, tmp_path / "run")
    scenes.load(str(folder))
    assert capsys.readouterr().out == ""
    set_config(folder, steps=20)
    scenes.load(str(folder))
    assert capsys.readouterr().out == f"{folder} is unfinished: step 6 of 20\n"


def test_weights_are_found_where_the_checkpoints_were_removed(whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(folder / "checkpoints")
    got, want = scenes.load(str(folder)), load_weights(whole / "weights.npz")
    assert got[0] == want[0]
    jax.tree.map(np.testing.assert_array_equal, got[1], want[1])
    (folder / "weights.npz").unlink()
    with pytest.raises(UserError, match="no checkpoint"):
        scenes.load(str(folder))
