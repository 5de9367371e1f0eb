"""The diffusion model that a racing run asks for, as the function `starts(key, n)` of its agent."""

from __future__ import annotations

import functools
import time
from pathlib import Path
from typing import Any

import jax

from ddim_jax import train
from ddim_jax.config import DDIMConfig
from ddim_jax.training import command
from ddim_jax.training.pretrain import PRESETS, WEIGHTS_NAME, default_folder, newest
from ddim_jax.weights_file import SHIPPED, WeightsError, as_saved, digest, load_weights
from dreamer_jax.errors import UserError
from dreamer_jax.training.checkpoint import Checkpointer
from dreamer_jax.training.config import RunConfig
from dreamer_jax.training.loop import Scenes
from dreamer_jax.training.run_folder import CONFIG_NAME, HoldsRun, InUse, RunFolder

POLL_SECONDS = 5.0


def find_scenes(config: RunConfig) -> Scenes:
    """The scenes for `config.ddim`: weights that ship, a preset trained here, a folder or a file.

    Raises:
      UserError: there is none, it is damaged, or `generated.steps` is more than it was trained on.
    """
    if not trained(config.ddim):  # then it will be; not in vain
        _check_steps(config, PRESETS[config.ddim].model.noise_steps)
    model, params = load(config.ddim)
    _check_steps(config, model.noise_steps)
    steps = config.generated.steps
    sample = functools.partial(_sample, config=model, steps=steps, eta=config.generated.eta)
    starts = jax.tree_util.Partial(sample, params)
    place = _weights_of(config.ddim) if config.ddim in PRESETS else Path(config.ddim)
    return Scenes(starts, model.image, digest(params), str(place.resolve()))


def trained(source: str) -> bool:
    """Whether what --ddim says is there: only a preset without weights here is trained first."""
    return source not in PRESETS or _weights_of(source).exists()


def _check_steps(config: RunConfig, most: int) -> None:
    if not 1 <= (steps := config.generated.steps) <= most:
        raise UserError(
            f"--generated.steps={steps} cannot be: {config.ddim} was trained on "
            f"{most} steps, use 1 to {most}"
        )


def _weights_of(preset: str) -> Path:
    """The file that ships, else the one that is trained here."""
    shipped = SHIPPED / f"{preset}.npz"
    return shipped if shipped.exists() else default_folder(preset) / WEIGHTS_NAME


def _sample(params: Any, key: jax.Array, number: int, **settings: Any) -> jax.Array:
    return train.generate(params, key, number, **settings)


def load(source: str) -> tuple[DDIMConfig, Any]:
    """Settings and weights of a preset's name, a training's folder or a weights file."""
    try:
        if source in PRESETS:
            shipped = SHIPPED / f"{source}.npz"
            return _shipped(shipped) if shipped.exists() else _trained_here(source)
        path = Path(source)
        if path.is_dir():
            return from_folder(path)
        if path.exists():
            return load_weights(path)
    except WeightsError as error:
        raise UserError(f"--ddim={source}: {error}") from error
    raise UserError(
        f"--ddim={source} is neither one of {', '.join(PRESETS)} nor a folder or weights file that "
        "pretrain_ddim.py wrote"
    )


def _shipped(path: Path) -> tuple[DDIMConfig, Any]:
    """The weights that ship, even where the same preset was trained here."""
    folder = default_folder(path.stem)
    if (folder / WEIGHTS_NAME).exists():
        print(
            f"--ddim {path.stem} takes the weights that ship; for those trained in {folder}: "
            f"--ddim {folder}"
        )
    return load_weights(path)


def _trained_here(preset: str) -> tuple[DDIMConfig, Any]:
    """The preset's model under runs/, trained first where it is missing or unfinished.

    Of several runs that need it at once one trains it, and the others wait.
    """
    folder = default_folder(preset)
    if (folder / CONFIG_NAME).exists():
        _compare(folder, preset)
    if not (folder / WEIGHTS_NAME).exists():
        print(
            f"no weights for the diffusion model {preset} yet: training it first in {folder}; "
            "later runs find it there (--ddim laptop ships trained, --arm baseline needs none)"
        )
    waiting = False
    while not (folder / WEIGHTS_NAME).exists():
        begun = (folder / CONFIG_NAME).exists()
        try:
            code = command.resume(folder) if begun else command.begin(PRESETS[preset], preset)
            if code:
                raise SystemExit(code)
        except InUse:
            if not waiting:
                print(f"another process trains it in {folder}: waiting for that")
            waiting = True
            time.sleep(POLL_SECONDS)
        except HoldsRun:
            if not (folder / CONFIG_NAME).exists():
                raise  # else another process has begun it meanwhile
    return load_weights(folder / WEIGHTS_NAME)


def _compare(folder: Path, preset: str) -> None:
    with RunFolder.open(folder, exclusive=False) as run:
        changed = command.changes(run.load_config(), preset)
    if changed:
        print(
            f"{folder}, which --ddim {preset} takes, has other settings than the preset: "
            f"{', '.join(changed)}; move it away to train the preset itself"
        )


def from_folder(path: Path) -> tuple[DDIMConfig, Any]:
    """The averaged weights of a training's newest whole checkpoint, as its weights file would hold
    them, or that file if the checkpoints were removed. Says so where the training is unfinished.
    """
    with RunFolder.open(path, exclusive=False) as folder:
        config = command.from_dict(folder.load_config())
        checkpoints = Checkpointer(folder.path / "checkpoints")
        weights = folder.path / WEIGHTS_NAME
        if weights.exists() and not checkpoints.steps():
            return load_weights(weights)
        state = newest(checkpoints, config.model)
    if (done := int(state.step)) < config.steps:
        print(f"{path} is unfinished: step {done} of {config.steps}")
    return config.model, as_saved(state.ema)
