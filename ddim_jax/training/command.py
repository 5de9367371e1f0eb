"""The command line of `experiments/pretrain_ddim.py`."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tyro

from ddim_jax import config as settings
from ddim_jax.training.agent_policy import AgentPolicy
from ddim_jax.training.frames import TrackPolicy
from ddim_jax.training.pretrain import (
    PRESETS,
    PretrainConfig,
    Pretraining,
    check,
    default_folder,
    feature_net,
)
from dreamer_jax.errors import UserError
from dreamer_jax.training import disk
from dreamer_jax.training.command import announce, guarded
from dreamer_jax.training.run_folder import RunFolder, full_names


def pretrain(argv: Sequence[str]) -> int:
    """Returns the exit status."""
    return guarded(lambda: _pretrain(argv))


def _pretrain(argv: Sequence[str]) -> int:
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset", default=None)
    first.add_argument("--resume", type=Path)
    known, rest = first.parse_known_args(argv)
    if known.resume is not None:
        if rest or known.preset:
            raise UserError("--resume goes on with the settings of the run; leave out the others")
        return resume(known.resume)
    name = known.preset or "laptop"
    if name not in PRESETS:
        raise UserError(f"--preset {name} is unknown; use one of {', '.join(PRESETS)}")
    config = tyro.cli(
        PretrainConfig,
        prog="pretrain_ddim.py [--preset debug|laptop|paper] [--resume DIR]",
        description="Train a diffusion model on frames of CarRacing-v3.",
        args=rest,
        default=PRESETS[name],
    )
    return begin(check(config), name)


def begin(config: PretrainConfig, name: str) -> int:
    """A new training in a new folder: `default_folder(name)` for the preset's own settings only.

    There a race with --ddim NAME would take it for the preset's.
    """
    policy = _policy(config)  # what is missing is told before a folder is made
    net = feature_net(config.inception)
    out = Path(config.out) if config.out else None
    if out is None and not changes(to_dict(config), name):
        out = default_folder(name)
    with RunFolder.create(out, f"ddim-{name}") as folder:
        config = dataclasses.replace(config, out=str(folder.path))
        folder.save_config(to_dict(config))
        announce(folder.path)
        return _train(Pretraining(config, folder, net), lambda: policy)


def resume(path: Path) -> int:
    """Continue in `path` with the settings it holds; their agent only collects missing frames."""
    with RunFolder.open(path) as folder:
        config = check(from_dict(folder.load_config()))
        announce(folder.path)
        net = feature_net(config.inception)
        return _train(Pretraining(config, folder, net), lambda: _policy(config))


def _train(training: Pretraining, policy: Callable[[], Any]) -> int:
    with disk.explained(f"--resume {training.folder.path}"):
        return training.run(policy)


def to_dict(config: PretrainConfig) -> dict[str, Any]:
    """As JSON holds it."""
    return dataclasses.asdict(config)


def from_dict(values: dict[str, Any]) -> PretrainConfig:
    """The inverse of `to_dict`. Raises UserError for unknown or missing fields."""
    try:
        values = dict(values)
        return PretrainConfig(model=settings.from_dict(values.pop("model")), **values)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"config.json is no settings of a diffusion model of this version ({error}); give a "
            "folder that pretrain_ddim.py wrote, or train a new one with --out"
        ) from error


def changes(values: dict[str, Any], preset: str) -> list[str]:
    """What settings (see `to_dict`) change of a preset's, `out` and `agent` apart.

    Returns lines as "steps=10 (preset: 100000)", none where all are equal.
    """
    both = json.loads(json.dumps([values, to_dict(PRESETS[preset])]))  # tuples are lists there
    own, its = (full_names(each) for each in both)
    return [
        f"{name}={own.get(name)} (preset: {its.get(name)})"
        for name in dict.fromkeys([*its, *own])
        if own.get(name) != its.get(name) and name not in ("out", "agent")
    ]


def _policy(config: PretrainConfig) -> AgentPolicy | TrackPolicy:
    return AgentPolicy(Path(config.agent), config.seed) if config.agent else TrackPolicy()
