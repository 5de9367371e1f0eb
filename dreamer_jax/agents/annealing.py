"""Settings that change with the number of updates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax

from dreamer_jax.agents.networks import CategoricalConfig
from dreamer_jax.ops.categorical import annealed
from dreamer_jax.types import Agent, Spec

Make = Callable[[Any, Spec], Agent]


def with_annealed_temperature(make: Make, config: CategoricalConfig, spec: Spec) -> Agent:
    """`make(config, spec)`, whose temperature falls from `temperature` to `final_temperature`.

    The state must count its updates as `step`. With `anneal_updates` 0 it stays as it is.
    """
    agent = make(config, spec)
    if config.anneal_updates == 0:
        return agent

    def now(step: jax.Array) -> Agent:
        fall = (config.temperature, config.final_temperature, config.anneal_updates)
        return make(replace(config, temperature=annealed(step, *fall)), spec)

    return agent._replace(
        act=lambda state, *args, **names: now(state.step).act(state, *args, **names),
        update=lambda state, *args: now(state.step).update(state, *args),
        report=lambda state, *args: now(state.step).report(state, *args),
    )
