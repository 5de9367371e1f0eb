"""The learners of one program: how a user writes several seeds and swept settings."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from dreamer_jax.errors import UserError


def parse_seeds(text: str) -> tuple[int, ...]:
    """`0:3` -> 0, 1, 2; `0,2,5` -> 0, 2, 5.

    Raises:
      UserError: another form, no seed, or one seed twice.
    """
    if span := re.fullmatch(r"(\d+):(\d+)", text):
        seeds = tuple(range(int(span[1]), int(span[2])))
    elif re.fullmatch(r"\d+(,\d+)*", text):
        seeds = tuple(map(int, text.split(",")))
    else:
        seeds = ()
    if not seeds or len(set(seeds)) < len(seeds):
        raise UserError(
            f"--seeds={text} cannot be: write 0:3 for the seeds 0, 1 and 2, or a list of "
            "different seeds as 0,2,5"
        )
    return seeds


def seeds_in_name(text: str) -> str:
    """Seeds as a folder's name has them: without commas, at which compare.py parts folders."""
    return text.replace(":", "-").replace(",", "_")


# Numbers that enter the arithmetic as arrays; sizes and schedules need a program of their own.
SWEEPABLE = (
    *("agent.model_lr", "agent.actor_lr", "agent.critic_lr", "agent.entropy_scale"),
    *("agent.kl_scale", "agent.free_nats", "agent.gamma", "agent.lambda_", "agent.target_rate"),
    *("agent.lr", "agent.dyn_scale", "agent.rep_scale", "agent.slow_rate", "agent.agc"),
    *("agent.value_lr", "agent.cont_scale", "agent.kl_balance", "agent.exploration"),
    *("agent.replay_value_scale", "agent.discount_horizon", "agent.error_scale"),
    *("agent.excess_scale", "generated.fraction", "generated.reject_above"),
    *("generated.from_update", "generated.align_lr", "generated.discriminator_lr"),
)


class Member(NamedTuple):
    """One learner: its seed, and the settings in which it differs from others."""

    seed: int
    values: tuple[tuple[str, float], ...] = ()  # (full name, value)

    @property
    def setting(self) -> str:
        """`actor_lr=0.0001,gamma=0.9`; empty without a sweep. Names a folder."""
        return ",".join(f"{name.split('.')[1]}={value:g}" for name, value in self.values)

    @property
    def label(self) -> str:
        """As a user reads it."""
        return f"{self.setting} seed {self.seed}".strip()

    def logs(self, together: int) -> Path:
        """Where it logs inside the folder of a run of `together` learners; one swept value is a
        setting too."""
        alone = together == 1 and not self.values
        return Path() if alone else Path(self.setting, f"seed_{self.seed}")


def members(seeds: Sequence[int], sweep: Sequence[str]) -> tuple[Member, ...]:
    """Every combination of the swept values with every seed.

    `sweep` entries are `name=value,value,...`; a name is a field of SWEEPABLE, whole or its last
    part (`generated_fraction` for `generated.fraction`, too).

    Raises:
      UserError: an unknown name, one that cannot be swept, or values that are no numbers.
    """
    axes = [_axis(entry) for entry in sweep]
    names = [name for name, _ in axes]
    if twice := [name for name in SWEEPABLE if names.count(name) > 1]:
        raise UserError(f"--sweep names {twice[0]} twice; give all its values at once")
    grid = itertools.product(*([(name, value) for value in values] for name, values in axes))
    return tuple(Member(seed, values) for values in grid for seed in seeds)


def _axis(entry: str) -> tuple[str, tuple[float, ...]]:
    given, _, text = entry.partition("=")
    wanted = given.strip().replace("-", "_")
    full = [n for n in SWEEPABLE if wanted in (n, n.split(".")[1], n.replace(".", "_"))]
    if not full:
        known = ", ".join(name.split(".")[1] for name in SWEEPABLE)
        raise UserError(
            f"--sweep {entry}: {given} cannot be swept inside one program (sizes and schedules "
            f"need one each: experiments/sweep.py --vary starts them); what can be: {known}"
        )
    try:
        values = tuple(float(value) for value in text.split(","))
    except ValueError:
        values = ()
    if not values or len({f"{value:g}" for value in values}) < len(values):  # as in folder names
        raise UserError(f"--sweep {entry}: write different numbers, as actor_lr=1e-4,3e-4")
    return full[0], values
