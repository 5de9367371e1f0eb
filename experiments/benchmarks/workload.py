"""What several benchmarks give the learners to do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dreamer_jax.errors import UserError
from dreamer_jax.training.config import RunConfig
from dreamer_jax.training.learner import record_spec
from dreamer_jax.training.presets import FAMILY
from dreamer_jax.types import Agent, Spec

RACE = Spec({"image": ((96, 96, 3), "uint8")}, 2)


def chosen(agent: str, preset: str) -> RunConfig:
    """The preset of the agent, arm baseline. Raises UserError when there is none."""
    if agent not in FAMILY or preset not in FAMILY[agent]:
        raise UserError(f"--agent={agent} cannot be: use one of {', '.join(FAMILY)}")
    return replace(FAMILY[agent][preset], arm="baseline")


def need_positive(**options: int) -> None:
    """Raises UserError for an option below 1."""
    for name, value in options.items():
        if value < 1:
            raise UserError(f"--{name}={value} cannot be: use 1 or more")


def records(spec: Spec, *lead: int, agent: Agent | None = None) -> Any:
    """Random records [*lead, ...], with what the agent keeps beside them."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: jnp.asarray(rng.integers(0, 2, (*lead, *x.shape)).astype(x.dtype)),
        record_spec(spec, agent),
    )
