"""How often a record is replayed: --train-ratio in place of --updates (Hafner et al. 2023)."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace

from dreamer_jax.errors import UserError
from dreamer_jax.training.config import RunConfig


def split(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """What --train-ratio says, and the other arguments.

    Raises:
      UserError: --updates besides.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--train-ratio", "--train_ratio")
    known, rest = first.parse_known_args(arguments)
    if known.train_ratio and any(word.partition("=")[0] == "--updates" for word in rest):
        raise UserError(
            f"--train-ratio {known.train_ratio} says how many updates there are, and so does "
            "--updates; leave one of them out"
        )
    return known.train_ratio, rest


def with_train_ratio(config: RunConfig, said: str) -> RunConfig:
    """`config` with the updates that replay, as nearly as whole ones can, `said` records for each
    decision of a learner.

    Raises:
      UserError: no number above 0, so few records that they make no update, or cycles of episodes,
        whose decisions nobody knows beforehand.
    """
    try:
        ratio = float(said)
    except ValueError:
        ratio = 0.0
    if not 0 < ratio < float("inf"):
        raise UserError(f"--train-ratio {said} cannot be: use a number above 0, as 256")
    if config.cycle_unit == "episodes":
        raise UserError(
            f"--train-ratio {said} needs cycles of decisions: add --cycle-unit steps and the "
            "decisions, as --cycle-size 250, or say --updates"
        )
    of_one = train_ratio(replace(config, updates=1))
    updates = round(ratio / of_one)
    if updates < 1:
        raise UserError(
            f"--train-ratio {said} makes no update after {config.cycle_size} decisions: use "
            f"more than {of_one / 2:.3g}, or a longer --cycle-size"
        )
    return replace(config, updates=updates)


def train_ratio(config: RunConfig) -> float:
    """Records replayed for each decision of a learner, where cycles are of decisions."""
    return config.updates * config.batch * config.length / config.cycle_size


def describe(config: RunConfig) -> str:
    """A line for the start of a run."""
    updates = f"{config.updates} updates of {config.batch} x {config.length} records"
    if config.cycle_unit == "episodes":
        return f"training:   {updates} after every {config.cycle_size} episodes per environment"
    return (
        f"training:   {updates} after every {config.cycle_size} decisions, a train ratio of "
        f"{train_ratio(config):.3g}"
    )
