"""Which agent a run's settings ask for."""

from __future__ import annotations

from functools import partial

from dreamer_jax.agents.annealing import with_annealed_temperature
from dreamer_jax.agents.dlc_v1 import make_dlc_v1
from dreamer_jax.agents.dlc_v1_ddim import make_dlc_v1_ddim
from dreamer_jax.agents.dreamer_v1 import make_dreamer_v1
from dreamer_jax.agents.dreamer_v2 import make_dreamer_v2
from dreamer_jax.agents.dreamer_v3_dynamics import make_by_gradient
from dreamer_jax.agents.planet import make_planet
from dreamer_jax.nn.precision import in_format
from dreamer_jax.training.config import RunConfig
from dreamer_jax.types import Agent, Spec

MAKERS = {  # by algorithm and arm
    ("dlc_v1", "baseline"): lambda config, spec: make_dlc_v1(config.agent, spec),
    ("dlc_v1", "ddim"): lambda c, spec: make_dlc_v1_ddim(c.agent, c.generated, spec),
    ("dreamer_v1", "baseline"): lambda config, spec: make_dreamer_v1(config.agent, spec),
    ("dreamer_v2", "baseline"): lambda c, s: with_annealed_temperature(make_dreamer_v2, c.agent, s),
    ("dreamer_v3", "baseline"): lambda c, s: with_annealed_temperature(
        make_by_gradient, c.agent, s
    ),
    ("planet", "baseline"): lambda config, spec: make_planet(config.agent, spec),
}


def make_agent(config: RunConfig, spec: Spec) -> Agent:
    """The agent of `config`. Raises ValueError for sizes that do not fit together."""
    agent = MAKERS[config.algorithm, config.arm](config, spec)
    under = partial(in_format, config.precision)
    functions = {name: under(getattr(agent, name)) for name in ("init", "act", "update", "report")}
    return agent._replace(**functions)
