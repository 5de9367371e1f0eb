"""Settings of a run. Every field is a command-line option; its help is the text below it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from dreamer_jax.agents.dlc_v1 import DLCConfig
from dreamer_jax.errors import UserError


@dataclass(frozen=True)
class EnvConfig:
    """The environment and its rules."""

    id: str = "DreamerCarRacing-v3"
    """Registered Gymnasium id."""
    action_repeat: int = 4
    """Frames per decision."""
    time_limit: int = 1000
    """Frames after which an episode is truncated."""
    idle_limit: int = 0
    """Training episodes end after so many frames without a new tile (0: never)."""
    off_road_ends: bool = False
    """The paper's rule: all wheels off the road end the episode with -100."""
    backwards_ends: bool = False
    """The paper's rule: driving backwards ends the episode with -100."""


@dataclass(frozen=True)
class RunConfig:
    """One training run."""

    seed: int = 0
    """Seed of parameters, tracks, exploration and sampling."""
    arm: Literal["baseline"] = "baseline"
    """Where imagination starts: baseline = states of replayed sequences."""
    out: str | None = None
    """Run folder (default: a new one under runs/)."""

    cycles: int = 50
    """Cycles of collecting and training."""
    cycle_unit: Literal["episodes", "steps"] = "episodes"
    """What a cycle collects: whole episodes or decisions."""
    cycle_size: int = 1
    """Episodes per environment, or decisions per learner, in a cycle."""
    updates: int = 20
    """Updates after each cycle's collection."""
    envs: int = 1
    """Environments per learner."""
    prefill: int = 0
    """Decisions of smooth forward-biased random driving before training starts."""
    pretrain: int = 0
    """Rounds of `updates` on those decisions before the policy first acts."""

    batch: int = 50
    """Sequences per update."""
    length: int = 50
    """Records per sequence."""
    replay: int = 100_000
    """Records kept per learner."""

    report_every: int = 5
    """Cycles between pictures and videos in TensorBoard (0: never)."""
    eval_every: int = 10
    """Cycles between evaluations on held-out tracks (0: never)."""
    eval_episodes: int = 4
    """Episodes of each such evaluation."""
    checkpoint_every: int = 5
    """Cycles between checkpoints."""
    keep: int = 2
    """Checkpoints kept."""

    env: EnvConfig = field(default_factory=EnvConfig)
    agent: DLCConfig = field(default_factory=DLCConfig)

    @property
    def episode_records(self) -> int:
        """Most records one episode can bring: its decisions and the reset."""
        return -(-self.env.time_limit // self.env.action_repeat) + 1

    @property
    def chunk(self) -> int:
        """Most records one environment can bring in a cycle."""
        if self.cycle_unit == "episodes":
            return self.cycle_size * self.episode_records
        return self.cycle_size // self.envs


def check(config: RunConfig) -> RunConfig:
    """Return `config` if it can run.

    Raises:
      UserError: an impossible value, naming the setting and the remedy.
    """
    for name in ("cycles", "cycle_size", "updates", "envs", "batch", "replay", "keep",
                 "checkpoint_every", "env.action_repeat", "env.time_limit", "agent.horizon",
                 "agent.starts", "agent.actor_interval", "agent.embed", "agent.deter",
                 "agent.stoch", "agent.hidden", "agent.head", "agent.fold"):  # fmt: skip
        _need(_get(config, name) >= 1, name, config, "use 1 or more")
    for name in (
        "prefill",
        "pretrain",
        "agent.actor_warmup",
        "report_every",
        "eval_every",
        "env.idle_limit",
    ):
        _need(_get(config, name) >= 0, name, config, "use 0 or more")
    _need(config.seed >= 0, "seed", config, "use 0 or more")
    _need(config.length >= 2, "length", config, "a sequence needs 2 or more records")
    _need(config.eval_episodes >= 1, "eval_episodes", config, "use 1 or more")
    rows = config.replay // config.envs
    _need(config.length <= rows, "length", config,
          f"a sequence must fit the replay: replay / envs = {rows} records")  # fmt: skip
    if config.cycle_unit == "steps":
        _need(config.cycle_size % config.envs == 0, "cycle_size", config,
              f"it must be a multiple of envs={config.envs}")  # fmt: skip
    _need(config.chunk <= rows, "cycle_size", config,
          f"one cycle brings up to {config.chunk} records to a ring of {rows}: raise replay")  # fmt: skip
    _need(config.agent.starts <= config.batch * config.length, "agent.starts", config,
          f"a batch has only {config.batch * config.length} states")  # fmt: skip
    _need(config.agent.posterior_layers >= 2, "agent.posterior_layers", config, "use 2 or more")
    for name in ("agent.gamma", "agent.lambda_", "agent.target_rate"):
        _need(0.0 <= _get(config, name) <= 1.0, name, config, "use a value in [0, 1]")
    return config


def to_dict(config: RunConfig) -> dict[str, Any]:
    """As JSON holds it."""
    return dataclasses.asdict(config)


def from_dict(values: dict[str, Any]) -> RunConfig:
    """The inverse of `to_dict`, lists becoming tuples again.

    Raises:
      UserError: unknown or missing fields.
    """
    try:
        values = dict(values)
        env, agent = EnvConfig(**values.pop("env")), DLCConfig(**_tuples(values.pop("agent")))
        return RunConfig(**values, env=env, agent=agent)
    except (KeyError, TypeError) as error:
        raise UserError(
            f"config.json does not fit this version of the program ({error}); resume with the "
            "version that wrote it, or start a new run with --out"
        ) from error


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _tuples(entry) for name, entry in value.items()}
    return tuple(_tuples(entry) for entry in value) if isinstance(value, list) else value


def _get(config: RunConfig, name: str) -> Any:
    for part in name.split("."):
        config = getattr(config, part)
    return config


def _need(condition: bool, name: str, config: RunConfig, remedy: str) -> None:
    if not condition:
        option = "--" + name.replace("_", "-").rstrip("-")
        raise UserError(f"{option}={_get(config, name)} cannot be: {remedy}")
