"""Training of a diffusion model: frames, steps, pictures to look at, checkpoints."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddim_jax import config as settings
from ddim_jax import train
from ddim_jax.config import DDIMConfig
from ddim_jax.features import FeatureNet, features, random_conv_v1, score_name
from ddim_jax.inception import inception
from ddim_jax.metrics import (
    compare_pictures,
    frechet_distance,
    grid_with_neighbours,
    nearest_neighbours,
)
from ddim_jax.training.frames import FRAME, collect, load_frames, save_frames
from ddim_jax.weights_file import save_weights
from dreamer_jax.errors import UserError
from dreamer_jax.training.checkpoint import Checkpointer
from dreamer_jax.training.figures import grid
from dreamer_jax.training.logging import RunLogger
from dreamer_jax.training.run_folder import RunFolder, write_atomic
from dreamer_jax.training.signals import StopRequest
from dreamer_jax.training.terminal import progress_bar, say_above

FRAMES_NAME, WEIGHTS_NAME = "frames.npz", "weights.npz"
SHOWN = 64  # pictures of a grid
NEIGHBOURS = 3  # of a sample, and k of precision and recall
UNUSABLE = "nan, infinite or beyond half precision"
TRAIN_ANEW = "train anew with a smaller --model.lr and another --out, since a folder keeps its lr"

Sets = tuple[np.ndarray | None, np.ndarray | None]  # training and test frames


@dataclass(frozen=True)
class PretrainConfig:
    """One training of a diffusion model."""

    seed: int = 0
    """Seed of weights, frames, noise."""
    out: str | None = None
    """Folder (default: runs/ddim-PRESET for the preset as it is, else a new one under runs/)."""
    agent: str | None = None
    """Run folder of a trained agent that collects the frames (default: a scripted driver that
    follows the road)."""
    frames: int = 20_000
    """Training frames."""
    test_frames: int = 1000
    """Frames of held-out tracks, for the test loss and the distance."""
    steps: int = 100_000
    """Training steps."""
    log_every: int = 50
    """Steps between figures."""
    report_every: int = 5000
    """Steps between sample grids and distances."""
    checkpoint_every: int = 2500
    """Steps between checkpoints."""
    keep: int = 2
    """Checkpoints kept."""
    sample_steps: int = 30
    """DDIM steps of the samples that are looked at."""
    samples: int = 256
    """Samples behind each reported distance."""
    inception: str | None = None
    """Inception weights for the real FID, see ddim_jax/inception.py (default: embedded net)."""
    model: DDIMConfig = field(default_factory=DDIMConfig)


LAPTOP = PretrainConfig(
    frames=12_000,
    steps=3000,
    report_every=500,
    checkpoint_every=500,
    sample_steps=15,
    model=settings.LAPTOP,
)
DEBUG = PretrainConfig(
    frames=40,
    test_frames=8,
    steps=12,
    log_every=3,
    report_every=6,
    checkpoint_every=4,
    sample_steps=3,
    samples=8,
    model=settings.DEBUG,
)
PRESETS = {"debug": DEBUG, "laptop": LAPTOP, "paper": PretrainConfig()}


def check(config: PretrainConfig) -> PretrainConfig:
    """Return `config` if it can run. Raises UserError naming setting and remedy."""
    least = {"frames": NEIGHBOURS, "test_frames": NEIGHBOURS + 1, "samples": NEIGHBOURS + 1}
    least |= {"steps": 1, "log_every": 1, "checkpoint_every": 1, "report_every": 0}
    least |= {"keep": 1, "sample_steps": 1, "seed": 0}
    for name, low in least.items():
        if getattr(config, name) < low:
            option = "--" + name.replace("_", "-")
            raise UserError(f"{option}={getattr(config, name)} cannot be: use {low} or more")
    if config.sample_steps > config.model.noise_steps:
        raise UserError(
            f"--sample-steps={config.sample_steps} cannot be: the model is trained on "
            f"--model.noise-steps={config.model.noise_steps}"
        )
    if config.model.image != FRAME:
        raise UserError(
            f"--model.image={config.model.image} cannot be: the frames of the race are {FRAME}; "
            "leave it out"
        )
    try:
        settings.check(config.model)
    except ValueError as error:
        raise UserError(f"--model.{error}") from error
    levels = len(config.model.unet.channels)
    if odd := [level for level in config.model.unet.attention if not 0 <= level < levels]:
        raise UserError(
            f"--model.unet.attention={odd[0]} cannot be: the {levels} levels of "
            f"--model.unet.channels count from 0 to {levels - 1}"
        )
    return config


class Pretraining:
    """A diffusion model in its run folder, from frames to weights."""

    def __init__(self, config: PretrainConfig, folder: RunFolder, net: FeatureNet) -> None:
        self.config, self.folder, self.net = config, folder, net
        self.key = jax.random.key(config.seed)
        self.checkpoints = Checkpointer(folder.path / "checkpoints", config.keep)

    def run(self, policy: Callable[[], Any]) -> int:
        """To the end or to a stop request; returns the exit status.

        policy: makes what drives (see `collect`), where frames are still to be collected.
        Raises UserError when training stops being finite, or files of before cannot be used.
        """
        config = self.config
        with StopRequest() as stop:
            self.train_frames, self.test = self._frames(policy, stop)
            if stop.requested:
                print(f"stopped before training; go on with --resume {self.folder.path}")
                return stop.code
            self.test_features = features(self.net, self.test)
            self.data = jnp.asarray(self.train_frames)
            state = self._state()
            done = int(state.step)
            # -1: what was logged before a first checkpoint is done again too
            self.logger = RunLogger(self.folder.path, done or -1)
            self.bar = progress_bar(total=config.steps, initial=done, unit="step", smoothing=0.05)
            try:
                state = self._loop(state, done, stop)
            finally:
                self.bar.close()
                self.logger.close()
        if stop.requested and int(state.step) < config.steps:
            print(f"saved after step {int(state.step)}; go on with --resume {self.folder.path}")
            return stop.code
        # Before the judging, which may fail.
        save_weights(self.folder.path / WEIGHTS_NAME, config.model, jax.device_get(state.ema))
        self._judge(state)
        print(f"finished: weights in {self.folder.path / WEIGHTS_NAME}; --ddim takes their folder")
        return 0

    def _frames(self, policy: Callable[[], Any], stop: StopRequest) -> Sets:
        """Training and test frames; None for what a stop request leaves to be collected."""
        path = self.folder.path / FRAMES_NAME
        held, test = load_frames(path) if path.exists() else (None, None)
        if test is not None:
            return held, test
        train_frames, test = self._collect(policy(), held, stop)
        if test is not None or train_frames is not held:
            save_frames(path, train_frames, test)
        return train_frames, test

    def _collect(self, driver: Any, held: np.ndarray | None, stop: StopRequest) -> Sets:
        """As `_frames`; `held` are the training frames if they are there already."""
        config = self.config
        with progress_bar(total=config.frames + config.test_frames, unit="frame") as bar:

            def more(number: int, test: bool) -> np.ndarray | None:
                base = bar.n
                return collect(
                    number,
                    driver.env,
                    driver,
                    config.seed,
                    test,
                    progress=lambda n: bar.update(base + n - bar.n),
                    stop=lambda: stop.requested,
                )

            if held is None:
                held = more(config.frames, False)
            else:
                bar.update(len(held))
            return held, None if held is None else more(config.test_frames, True)

    def _state(self) -> train.DDIMState:
        if not self.checkpoints.steps():
            return jax.jit(lambda key: train.init(self.config.model, key))(self.key)
        return newest(self.checkpoints, self.config.model)

    def _loop(self, state: train.DDIMState, done: int, stop: StopRequest) -> train.DDIMState:
        config, kept, clock = self.config, [], time.perf_counter()
        while done < config.steps:
            state, metrics = train.train_on(config.model, state, self.data, self.key)
            kept.append(metrics)
            done += 1
            self.bar.update()
            last, leave = done == config.steps, stop.requested
            log = done % config.log_every == 0 or last
            report = config.report_every and (done % config.report_every == 0 or last)
            save = done % config.checkpoint_every == 0 or last or leave
            if log or report or save:
                self._see_that_it_is_finite(done, state, kept)
            if log:
                self._log(done, state, kept, time.perf_counter() - clock)
                kept, clock = [], time.perf_counter()
            if report:
                self._report(done, state)
                clock = time.perf_counter()
            if save:
                self.logger.flush()
                self.checkpoints.save(done, state, {"step": done})
            if leave:
                break
        return state

    def _see_that_it_is_finite(self, step: int, state: train.DDIMState, kept: list) -> None:
        """kept: the figures of the steps up to `step` since the last line of the log."""
        for number, figures in enumerate(jax.device_get(kept), step - len(kept) + 1):
            if odd := [name for name, value in figures.items() if not np.isfinite(value)]:
                raise self._diverged(f"{' and '.join(odd)} became nan or infinite in step {number}")
        if not train.usable(state):
            raise self._diverged(f"the weights became {UNUSABLE} by step {step}")

    def _diverged(self, what: str) -> UserError:
        way_on = ""
        if steps := self.checkpoints.steps():
            way_on = f"; --resume {self.folder.path} goes on from step {steps[-1]} with it"
        return UserError(f"{what}; {TRAIN_ANEW}{way_on}")

    def _log(self, step: int, state: train.DDIMState, kept: list, seconds: float) -> None:
        means = {name: np.mean([float(m[name]) for m in kept]) for name in kept[0]}
        apart = max(1, len(self.test) // self.config.model.batch)  # frames of many tracks
        batch = jnp.asarray(self.test[::apart][: self.config.model.batch])
        test = train.held_out_loss(self.config.model, state.ema, batch, jax.random.key(0))
        means = {f"ddim/{name}": value for name, value in means.items()}
        means |= {"ddim/test_loss": float(test), "time/steps_per_second": len(kept) / seconds}
        self.logger.scalars(step, means)
        self.bar.set_postfix(
            loss=f"{means['ddim/loss']:.4f}", test=f"{float(test):.4f}", refresh=False
        )

    def _report(self, step: int, state: train.DDIMState) -> None:
        """Samples, their distance to held-out frames, and the training frames next to them."""
        made = samples(state.ema, self.config, self.config.samples)
        self.logger.image(step, "ddim/samples", mosaic(made[:SHOWN]))
        self.logger.image(step, "ddim/held_out_frames", mosaic(self.test[:SHOWN]))
        index, _ = nearest_neighbours(_small(made[:8]), _small(self.train_frames), NEIGHBOURS)
        self.logger.image(
            step,
            "ddim/samples_and_nearest_training_frames",
            grid_with_neighbours(made[:8], self.train_frames, index),
        )
        distance = frechet_distance(self.test_features, features(self.net, made))
        self.logger.scalars(step, {f"ddim/frechet_{self.net.name}": distance})
        say_above(self.bar, f"step {step}: {score_name(self.net)} {distance:.3f}")

    def _judge(self, state: train.DDIMState) -> None:
        """The table of the finished model: quality.json and a few lines."""
        made = samples(state.ema, self.config, self.config.samples)
        table = compare_pictures(self.test, made, self.train_frames, self.net, NEIGHBOURS)
        table |= {"steps": int(state.step), "sample_steps": self.config.sample_steps}
        write_atomic(self.folder.path / "quality.json", json.dumps(table, indent=1) + "\n")
        for name, value in table.items():
            print(f"  {name}: {value:.4g}" if isinstance(value, float) else f"  {name}: {value}")
        if (few := min(len(self.test), len(made))) <= self.net.size:
            print(
                f"  ({score_name(self.net)} is too large where {few} pictures stand for "
                f"{self.net.size} features: compare it with one of the same numbers alone)"
            )


def newest(checkpoints: Checkpointer, model: DDIMConfig) -> train.DDIMState:
    """The newest whole checkpoint; damaged ones are printed.

    Raises UserError: there is none, it is of another model, or its weights cannot be used.
    """
    template = jax.eval_shape(lambda key: train.init(model, key), jax.random.key(0))
    restored = checkpoints.restore(template)
    for warning in restored.warnings:
        print(f"warning: {warning}")
    if not train.usable(restored.arrays):
        raise UserError(
            f"the weights in {checkpoints.directory}/{restored.step:08d} are {UNUSABLE}; remove it "
            f"to take an earlier one, or {TRAIN_ANEW}"
        )
    return restored.arrays


def feature_net(inception_path: str | None) -> FeatureNet:
    """What pictures are judged by. Raises UserError for a file that is no Inception."""
    if inception_path is None:
        return random_conv_v1()
    try:
        return inception(inception_path)
    except (ValueError, OSError) as error:
        raise UserError(f"--inception={inception_path}: {error}") from error


def samples(ema: Any, config: PretrainConfig, number: int, block: int = 64) -> np.ndarray:
    """uint8 [number, H, W, C], the same for the same weights."""
    key = jax.random.key(config.seed + 1)
    parts = []
    for start in range(0, number, block):
        size = min(block, number - start)
        args = {"config": config.model, "steps": config.sample_steps}
        parts.append(train.generate_jit(ema, jax.random.fold_in(key, start), size, **args))
    return np.concatenate(jax.device_get(parts))


def mosaic(images: np.ndarray, columns: int = 8) -> np.ndarray:
    """uint8 [n, H, W, 3] -> one picture of n // columns rows (one row of fewer)."""
    columns = min(columns, len(images))
    rows = len(images) // columns
    return grid(images[: rows * columns].reshape(rows, columns, *images.shape[1:]))


def _small(images: np.ndarray) -> np.ndarray:
    """Pictures as vectors for the search of neighbours: every fourth pixel, float32 [n, d]."""
    return images[:, ::4, ::4].reshape(len(images), -1).astype(np.float32) / 255.0


def default_folder(preset: str) -> Path:
    """Where a preset's model is trained; --ddim PRESET looks for it there if none ships."""
    return Path("runs") / f"ddim-{preset}"
