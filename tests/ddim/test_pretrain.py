"""Pre-training from the command line to a racing run that uses what came out."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from logged import lines, set_cycles
from processes import python

from ddim_jax.training import command, pretrain, scenes
from ddim_jax.training.agent_policy import AgentPolicy
from ddim_jax.training.frames import collect, load_frames
from ddim_jax.training.pretrain import DEBUG, PRESETS
from ddim_jax.unet import UNet
from ddim_jax.weights_file import SHIPPED, load_weights
from dreamer_jax.errors import UserError
from dreamer_jax.training import command as race_command
from dreamer_jax.training.command import race
from dreamer_jax.training.loop import Scenes
from dreamer_jax.training.presets import DEBUG as RACE

pytestmark = pytest.mark.usefixtures("compiled_once")
SHORT = ["--preset", "debug", "--frames", "8", "--test-frames", "5", "--samples", "5"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A training of 12 steps that nothing disturbed."""
    folder = tmp_path_factory.mktemp("ddim") / "whole"
    assert command.pretrain([*SHORT, "--out", str(folder)]) == 0
    return folder


def test_what_lies_in_the_folder(whole):
    names = {path.name for path in whole.iterdir()}
    assert {"config.json", "frames.npz", "metrics.jsonl", "weights.npz", "checkpoints"} <= names
    quality = json.loads((whole / "quality.json").read_text())
    assert quality["steps"] == 12 and 0 <= quality["precision (k=3)"] <= 1
    steps = sorted(int(path.name) for path in (whole / "checkpoints").iterdir())
    assert steps == [8, 12]  # --keep 2
    logged = lines(whole)
    assert [line["step"] for line in logged if "ddim/loss" in line] == [3, 6, 9, 12]
    distances = [line for line in logged if "ddim/frechet_random-conv-v1" in line]
    assert [line["step"] for line in distances] == [6, 12]
    assert all(np.isfinite(value) for line in logged for value in line.values())


def test_stopped_and_resumed_is_as_undisturbed(whole, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    step, calls = pretrain.train.train_on, []

    def stop_at_five(*args):
        calls.append(1)
        if len(calls) == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*args)

    with monkeypatch.context() as patch:
        patch.setattr(pretrain.train, "train_on", stop_at_five)
        assert command.pretrain([*SHORT, "--out", str(folder)]) == 128 + signal.SIGTERM
    assert "--resume" in capsys.readouterr().out
    assert not (folder / "weights.npz").exists()
    assert command.pretrain(["--resume", str(folder)]) == 0
    one, other = (load_weights(path / "weights.npz") for path in (whole, folder))
    assert one[0] == other[0]
    jax.tree.map(np.testing.assert_array_equal, one[1], other[1])
    # the first log line after the stop averages fewer steps; all others are equal
    want, got = ({line["step"]: line for line in lines(path)} for path in (whole, folder))
    assert want[9] == got[9] and want[12] == got[12]


def test_the_racing_script_takes_folder_and_file(whole):
    config = replace(RACE, ddim=str(whole))
    one = scenes.find_scenes(config)
    images = one.starts(jax.random.key(0), 3)
    assert images.shape == (3, 96, 96, 3) and images.dtype == np.uint8
    assert one.image == (96, 96, 3)
    other = scenes.find_scenes(replace(config, ddim=str(whole / "weights.npz")))
    rounded = other.starts(jax.random.key(0), 3)  # half-precision weights
    assert np.abs(np.asarray(images, int) - np.asarray(rounded, int)).max() <= 8


def test_a_race_from_generated_scenes_and_its_resumption(whole, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(whole)
    folder = tmp_path / "race"
    options = ["--preset", "debug", "--prefill", "40", "--eval-every", "0", "--report-every", "2"]
    options += ["--ddim", "weights.npz", "--out", str(folder)]
    options += ["--env.steer-scale", "0.5"]
    assert race([*options, "--cycles", "2"], scenes.find_scenes) == 0
    logged = lines(folder)
    last = [line for line in logged if "loss/alignment" in line][-1]
    assert last["generated/starts"] == 1.0 and np.isfinite(last["loss/discriminator"])
    assert any("report/generated_return" in line for line in logged)
    set_cycles(folder, 3)
    monkeypatch.chdir(tmp_path)  # weights.npz is not here
    assert race(["--resume", str(folder)], scenes.find_scenes) == 0
    assert len([line for line in lines(folder) if "loss/alignment" in line]) == 3
    # and its agent can collect the frames of the next diffusion model
    again = ["--agent", str(folder), "--steps", "3", "--report-every", "0"]
    assert command.pretrain([*SHORT, *again, "--out", str(tmp_path / "again")]) == 0
    train, test = load_frames(tmp_path / "again" / "frames.npz")
    assert train.shape == (8, 96, 96, 3) and test.shape == (5, 96, 96, 3)
    assert len({image.tobytes() for image in train}) == 8
    # in the race that it knows, and the same whatever it drove before
    policy = AgentPolicy(folder, 0)
    assert policy.env().unwrapped.steer_scale == 0.5
    one, other = (collect(3, policy.env, policy, 0, True) for _ in range(2))
    assert np.array_equal(one, other)
    config = json.loads((folder / "config.json").read_text())
    config["env"]["id"] = "CartPole-v1"
    (folder / "config.json").write_text(json.dumps(config))
    assert command.pretrain([*SHORT, *again, "--out", str(tmp_path / "other")]) == 2
    assert "was trained on CartPole-v1" in capsys.readouterr().err


def test_scenes_on_several_devices(whole, tmp_path):
    """The model lies on both, and nothing crosses between them in a cycle."""
    script = Path(__file__).parents[2] / "experiments" / "car_racing.py"
    words = ["--preset", "debug", "--seeds", "0:2", "--cycles", "1", "--prefill", "40"]
    words += ["--eval-every", "0", "--report-every", "0", "--env.time-limit", "80"]
    ended = python(script, *words, "--ddim", whole, "--out", tmp_path / "race", devices=2)
    assert ended.returncode == 0, ended.stderr
    assert "devices:    2, each with 1 of the learners" in ended.stdout
    for seed in (0, 1):
        logged = lines(tmp_path / "race" / f"seed_{seed}")
        (last,) = [line for line in logged if "loss/alignment" in line]
        assert last["generated/starts"] == 1.0 and np.isfinite(last["loss/discriminator"])


def test_where_the_scenes_were_found_is_remembered(tmp_path):
    config = replace(RACE, ddim="paper")
    assert race_command._with_source(tmp_path, config) is config  # of a run of before
    (tmp_path / "w.npz").touch()
    found = Scenes(None, (1, 1, 1), "", str(tmp_path / "w.npz"))
    race_command._keep_source(tmp_path, found)
    assert race_command._with_source(tmp_path, config).ddim == str(tmp_path / "w.npz")
    (tmp_path / "w.npz").unlink()  # the project has moved, perhaps
    assert race_command._with_source(tmp_path, config) is config


def test_other_weights_are_not_taken_on_resume(whole, tmp_path, capsys):
    """A run goes on with the scenes that it began with, or not at all."""
    folder, weights = tmp_path / "race", tmp_path / "w.npz"
    weights.write_bytes((whole / "weights.npz").read_bytes())
    options = ["--preset", "debug", "--prefill", "40", "--eval-every", "0", "--report-every", "0"]
    options += ["--cycles", "1", "--ddim", str(weights), "--out", str(folder)]
    assert race(options, scenes.find_scenes) == 0
    config, params = load_weights(weights)
    pretrain.save_weights(weights, config, jax.tree.map(lambda x: x + 1.0, params))
    assert race(["--resume", str(folder)], scenes.find_scenes) == 2
    assert "other weights" in capsys.readouterr().err


def test_a_preset_without_weights_trains_them_first_and_finds_them_again(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    small = replace(DEBUG, frames=8, test_frames=5, samples=5, steps=4, report_every=0)
    monkeypatch.setitem(PRESETS, "debug", small)
    first = scenes.find_scenes(replace(RACE, ddim="debug"))
    assert "training it first" in capsys.readouterr().out
    second = scenes.find_scenes(replace(RACE, ddim="debug"))
    assert "training" not in capsys.readouterr().out and first.digest == second.digest


def test_the_laptop_weights_ship():
    config, params = load_weights(SHIPPED / "laptop.npz")
    assert config == PRESETS["laptop"].model
    assert (SHIPPED / "laptop.npz").stat().st_size < 5e6
    assert scenes.find_scenes(replace(RACE, ddim="laptop")).image == (96, 96, 3)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(params))


def test_the_laptop_weights_mean_what_they_meant():
    """Pinned: a network that reads the same file otherwise would race in noise."""
    config, params = load_weights(SHIPPED / "laptop.npz")
    x = np.random.default_rng(0).standard_normal((2, 96, 96, 3)).astype(np.float32)
    picture = jax.jit(UNet(config.unet).apply)(params, x, np.array([20, 999]))
    np.testing.assert_allclose(picture.mean((1, 2, 3)), [-0.12086, -0.11383], atol=2e-4)
    np.testing.assert_allclose(picture.std((1, 2, 3)), [0.30511, 0.44022], atol=2e-4)
    np.testing.assert_allclose(picture[1, 48, 48], [-0.21204, 0.01131, -0.19441], atol=1e-3)


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["--steps", "0"], "--steps=0"),
        (["--sample-steps", "0"], "--sample-steps=0"),
        (["--sample-steps", "51"], "--sample-steps=51"),
        (["--test-frames", "1"], "--test-frames=1"),
        (["--test-frames", "3"], "--test-frames=3"),
        (["--samples", "3"], "--samples=3"),
        (["--frames", "2"], "--frames=2"),
        (["--model.image", "48", "48", "3"], "--model.image=(48, 48, 3)"),
        (["--model.unet.attention", "1"], "--model.unet.attention=1"),
        (["--model.unet.groups", "0"], "groups=0"),
        (["--model.unet.head-dim", "0"], "head_dim=0"),
        (["--model.unet.fold", "7"], "--model.unet"),
        (["--model.batch", "0"], "--model.batch=0"),
        (["--agent", "nowhere"], "nowhere"),
        (["--inception", "nowhere.npz"], "--inception=nowhere.npz"),
        (["--resume", "nowhere"], "--resume"),
    ],
)
def test_bad_input_of_pretraining(words, name, tmp_path, capsys):
    assert command.pretrain(["--preset", "debug", "--out", str(tmp_path / "x"), *words]) == 2
    error = capsys.readouterr().err
    assert name in error and error.count("\n") == 1
    assert not (tmp_path / "x").exists()


def test_bad_presets_and_folders(whole, tmp_path, capsys):
    assert command.pretrain(["--preset", "nope"]) == 2
    assert "--preset nope" in capsys.readouterr().err
    assert command.pretrain([*SHORT, "--out", str(whole)]) == 2
    assert "already holds a run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"ddim": "nowhere"}, "--ddim=nowhere"),
        ({"generated": replace(RACE.generated, steps=51)}, "--generated.steps=51"),
    ],
)
def test_bad_scenes_are_named_before_any_work(change, word, whole):
    config = replace(RACE, **({"ddim": str(whole)} | change))
    with pytest.raises(UserError, match=word):
        scenes.find_scenes(config)


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["--generated.fraction", "1.5"], "--generated.fraction=1.5"),
        (["--generated.fraction", "-0.1"], "--generated.fraction=-0.1"),
        (["--generated.steps", "0"], "--generated.steps=0"),
    ],
)
def test_bad_input_of_the_racing_script(words, name, tmp_path, capsys):
    out = ["--out", str(tmp_path / "x")]
    assert race(["--preset", "debug", *out, *words], scenes.find_scenes) == 2
    assert name in capsys.readouterr().err and not (tmp_path / "x").exists()


def test_images_of_another_size_are_refused(whole, tmp_path, capsys, monkeypatch):
    def other_size(config):
        return scenes.find_scenes(replace(config, ddim=str(whole)))._replace(image=(64, 64, 3))

    assert race(["--preset", "debug", "--out", str(tmp_path / "x")], other_size) == 2
    error = capsys.readouterr().err
    assert "(64, 64, 3)" in error and "--ddim" in error


def test_a_racing_folder_is_no_diffusion_model(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"seed": 0}))
    with pytest.raises(UserError, match=r"pretrain_ddim\.py"):
        scenes.load(str(tmp_path))
