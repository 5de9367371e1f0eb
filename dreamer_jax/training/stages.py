"""A run in stages: the same learners go on under other settings, and are evaluated at the end."""

from __future__ import annotations

import gc
import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tyro

from dreamer_jax.errors import UserError
from dreamer_jax.training.assess import EvaluateConfig, assess_run, check_average
from dreamer_jax.training.checkpoint import Checkpointer
from dreamer_jax.training.command import (
    environment,
    guarded,
    planned,
    race,
    train,
    with_changes,
)
from dreamer_jax.training.comparison_data import by_full_name
from dreamer_jax.training.config import RunConfig, check, from_dict, to_dict
from dreamer_jax.training.members import parse_seeds, seeds_in_name
from dreamer_jax.training.rules import CHANGEABLE, check_tracks, episode_rules
from dreamer_jax.training.run_folder import CONFIG_NAME, RunFolder, write_atomic
from dreamer_jax.training.stage import Stage
from dreamer_jax.training.sweep_options import option_words

SCORE_NAME = "score.json"


@dataclass(frozen=True)
class ScoreConfig:
    """Which learners, where, and how many held-out tracks."""

    seed: int = 0
    """Seed of the one learner."""
    seeds: str | None = None
    """Several learners in one program instead: 0:5 for 0 to 4."""
    out: Path | None = None
    """Run folder (default: runs/racing_score-seedK); where it holds a run of this script, that goes
    on."""
    episodes: int = 100
    """Held-out tracks, raced once by sampled and once by most probable actions."""
    first_track: int = 0
    """Seed of the first of them; training never uses seeds below 10000."""
    average: int = 9
    """They are raced by the mean of the weights of so many checkpoints (1: the last weights)."""


def score(argv: Sequence[str], stages: Sequence[Stage]) -> int:
    """`experiments/racing_score.py`: returns the exit status."""
    return guarded(lambda: _score(argv, stages))


def _score(argv: Sequence[str], stages: Sequence[Stage]) -> int:
    description = "Train in stages, then race held-out tracks; the same command goes on."
    options = tyro.cli(ScoreConfig, prog="racing_score.py", description=description, args=argv)
    check_tracks("episodes", options.episodes, options.first_track)
    check_average(options.average)  # before hours of training
    seeds = str(options.seed) if options.seeds is None else options.seeds
    out = options.out or Path("runs") / f"racing_score-seed{seeds_in_name(seeds)}"
    if max(Checkpointer(out / "checkpoints").steps(), default=0) < stages[-1].cycles:
        check_kept(options.average, stages)
    code = train_stages(out, seeds, stages)
    if not code:
        evaluate_both(out, options)
    return code


def check_kept(number: int, stages: Sequence[Stage], which: str = "") -> None:
    """Raises UserError, which says `which` run, unless its last stage keeps so many checkpoints."""
    kept = _planned(stages).keep
    if number > kept:
        raise UserError(
            f"--average={number} cannot be: {which}{kept} checkpoints are kept; use fewer, or let "
            f"the last stage train with --keep {number}"
        )


def _done(out: Path) -> int:
    """Cycles that the run in `out` has saved whole."""
    return Checkpointer(out / "checkpoints").newest()


def train_stages(
    out: Path,
    seeds: str,
    stages: Sequence[Stage],
    run: Callable[[Sequence[str]], int] | None = None,
) -> int:
    """Train from where the run in `out` stands to the end of the last stage, by `run` (default: the
    script that the stages are for).

    Returns the exit status of the first stage that was stopped or failed, else 0.

    Raises:
      UserError: `out` holds a run of other seeds or begun with other settings.
    """
    begun = (out / CONFIG_NAME).is_file()
    held = need_own(out, seeds, stages) if begun else None
    done = _done(out)
    elsewhere = environment(shlex.split(stages[0].settings))[0] is not None
    script, own = ("train.py", train) if elsewhere else ("car_racing.py", race)
    for number, stage in enumerate(stages, 1):
        if done >= stage.cycles:
            continue
        settings = ["--cycles", str(stage.cycles), *shlex.split(stage.settings)]
        if stage is stages[0] and not begun:
            settings = [*settings, "--seeds", seeds, "--out", str(out)]
        elif stage is stages[0]:  # goes on with the settings it holds
            settings = ["--resume", str(out), "--cycles", str(stage.cycles)]
        else:
            settings = ["--resume", str(out), *settings]
        if held is not None:
            settings += _rules(with_changes(held, settings[2:]), stages[:number])
            held = None  # the later stages begin where this one ends
        print(script, shlex.join(settings), flush=True)
        if code := (run or own)(settings):
            return code
        gc.collect()  # the replay of this stage, before the next one makes its own
    return 0


def _rules(config: RunConfig, stages: Sequence[Stage]) -> list[str]:
    """Options for the rules of episodes that `config` does not have as the last of `stages` does: a
    run falls back behind a stage whose first checkpoint is lost."""
    own, wanted = episode_rules(config), episode_rules(_planned(stages))
    words = [
        option_words(config, name, str(value))
        for name, value in wanted.items()
        if own[name] != value
    ]
    return [word.replace("_", "-") for own_words in words for word in own_words]


def _planned(stages: Sequence[Stage]) -> RunConfig:
    """The settings that hold in the last of these stages."""
    return planned([word for stage in stages for word in shlex.split(stage.settings)])


def need_own(out: Path, seeds: str, stages: Sequence[Stage]) -> RunConfig:
    """The settings of the run in `out`. Raises UserError unless it has these seeds and settings.

    Of what may change while a run goes on only the replay's size and the cycles are looked at.
    """
    with RunFolder.open(out, exclusive=False) as folder:
        config = check(from_dict(folder.load_config()))
    held = [member.seed for member in config.members]
    if held != list(parse_seeds(seeds)):
        raise UserError(
            f"{out} holds a run of seeds {', '.join(map(str, held))}, not {seeds}; "
            "give its seeds, or another folder with --out"
        )
    begun = planned(shlex.split(stages[0].settings))
    own, wanted = (by_full_name(to_dict(x)) for x in (config, begun))
    other = [name for name in wanted if name not in CHANGEABLE and own.get(name) != wanted[name]]
    other += ["cycles"] * (config.cycles not in {stage.cycles for stage in stages})
    other += ["replay"] * (config.replay < begun.replay)
    if other:
        raise UserError(
            f"{out} holds a run with settings that are not of these stages "
            f"({', '.join(sorted(other))}); give another folder with --out"
        )
    return config


def evaluate_both(out: Path, options: ScoreConfig) -> dict[str, Any]:
    """Race by stock's rules, sampled and by most probable actions; writes score.json."""
    same = {name: getattr(options, name) for name in ("episodes", "first_track", "average")}
    stock = EvaluateConfig(stock=True, **same)
    results = {}
    for name, calm in (("most probable", True), ("sampled", False)):  # the video: as published
        print(f"{name} actions, {options.episodes} held-out tracks:", flush=True)
        results[name] = assess_run(out, replace(stock, calm=calm))
    write_atomic(out / SCORE_NAME, json.dumps(results, indent=1))
    print(f"both in {out / SCORE_NAME}")
    return results
