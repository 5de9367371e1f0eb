"""Which agent a run's settings ask for."""

from __future__ import annotations

from dreamer_jax.agents.dlc_v1 import make_dlc_v1
from dreamer_jax.agents.dlc_v1_ddim import make_dlc_v1_ddim
from dreamer_jax.training.config import RunConfig
from dreamer_jax.types import Agent, Spec

ARMS = {
    "baseline": lambda config, spec: make_dlc_v1(config.agent, spec),
    "ddim": lambda config, spec: make_dlc_v1_ddim(config.agent, config.generated, spec),
}


def make_agent(config: RunConfig, spec: Spec) -> Agent:
    """The agent of `config.arm`. Raises ValueError for sizes that do not fit together."""
    return ARMS[config.arm](config, spec)
