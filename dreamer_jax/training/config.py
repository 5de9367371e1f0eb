"""Settings of a run. Every field is a command-line option; its help is the text below it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from dreamer_jax.agents.dlc_v1_config import DLCConfig, GeneratedConfig
from dreamer_jax.agents.dreamer_v3_config import DreamerV3Config
from dreamer_jax.errors import UserError
from dreamer_jax.training.members import Member, members, parse_seeds

MOST_CARS = 8  # of envs.multi_car_racing; the grid has no more places


AgentConfig = DLCConfig | DreamerV3Config
AGENTS = {"dlc_v1": DLCConfig, "dreamer_v3": DreamerV3Config}  # as --agent and config.json call it


@dataclass(frozen=True)
class EnvConfig:
    """The environment and its rules."""

    id: str = "DreamerCarRacing-v3"
    """Registered Gymnasium id: a race, CartPole-v1, ALE/Pong-v5, dm_control/cheetah-run-v0, .."""
    action_repeat: int = 4
    """Frames per decision."""
    time_limit: int = 1000
    """Frames after which an episode is truncated."""
    pixels: int = 0
    """Observe the rendered picture at this height and width (0: what the environment gives)."""
    size: int = 0
    """Resize the environment's own pictures to this height and width (0: as they are; Atari 64)."""
    idle_limit: int = 0
    """Training episodes end after so many frames without a new tile (0: never)."""
    off_road_ends: bool = False
    """The paper's rule: all wheels off the road end the episode with -100."""
    backwards_ends: bool = False
    """The paper's rule: driving backwards ends the episode with -100."""
    cars: int = 1
    """Cars on one track, each a learner of its own: as many learners (--seeds), or a multiple."""
    random_starts: bool = True
    """Several cars: draw their places on the starting grid anew for every race."""


@dataclass(frozen=True)
class RunConfig:
    """One training run."""

    seed: int = 0
    """Seed of parameters, tracks, exploration and sampling."""
    seeds: str | None = None
    """Several learners in one program, each as --seed K alone: 0:8 for 0 to 7, or 0,3,5."""
    sweep: tuple[str, ...] = ()
    """Values side by side in one program, each with every seed: actor_lr=1e-4,3e-4 (several names
    may follow)."""
    arm: Literal["ddim", "baseline"] = "ddim"
    """Where imagination starts: ddim = generated scenes, baseline = replayed states."""
    ddim: str = "paper"
    """Diffusion model of the arm ddim: laptop (ships with the program), paper (trained first where
    runs/ddim-paper is missing), a folder that pretrain_ddim.py wrote, or a weights file."""
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
    overlap: bool = False
    """Make the updates while the environments are at work, on what earlier cycles brought."""
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
    agent: AgentConfig = field(default_factory=DLCConfig)
    generated: GeneratedConfig = field(default_factory=GeneratedConfig)

    @property
    def algorithm(self) -> str:
        """The agent's name."""
        return next(name for name, kind in AGENTS.items() if type(self.agent) is kind)

    @property
    def members(self) -> tuple[Member, ...]:
        """The learners. Raises UserError when `seeds` or `sweep` cannot be read."""
        seeds = (self.seed,) if self.seeds is None else parse_seeds(self.seeds)
        return members(seeds, self.sweep)

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


AT_LEAST_ONE = [
    "cycles",
    "cycle_size",
    "updates",
    "envs",
    "batch",
    "replay",
    "keep",
    "checkpoint_every",
    "eval_episodes",
    "env.action_repeat",
    "env.time_limit",
    "env.cars",
    "agent.horizon",
    "agent.last",
    "agent.depth",
    "agent.blocks",
    "agent.latents",
    "agent.units",
    "agent.layers",
    "agent.discount_horizon",
    "agent.starts",
    "agent.actor_interval",
    "agent.fold",
    "agent.embed",
    "agent.deter",
    "agent.stoch",
    "agent.hidden",
    "agent.head",
    "agent.head_layers",
    "agent.actor_layers",
    "agent.prior_layers",
    "generated.steps",
    "generated.pool",
    "generated.fresh",
    "generated.every",
    "generated.align_hidden",
]
NOT_NEGATIVE = [
    "seed",
    "prefill",
    "pretrain",
    "report_every",
    "eval_every",
    "env.idle_limit",
    "env.pixels",
    "env.size",
    "agent.actor_warmup",
    "agent.kl_scale",
    "agent.dynamics_clip",
    "agent.free_nats",
    "agent.entropy_scale",
    "agent.dyn_scale",
    "agent.rep_scale",
    "agent.slow_scale",
    "agent.replay_value_scale",
    "agent.warmup",
    "generated.warm_up",
    "generated.from_update",
]
POSITIVE = [
    "agent.lr",
    "agent.agc",
    "agent.model_lr",
    "agent.actor_lr",
    "agent.critic_lr",
    "agent.model_eps",
    "agent.actor_critic_eps",
    "agent.model_clip",
    "agent.actor_critic_clip",
    "agent.min_std",
    "generated.align_lr",
    "generated.discriminator_lr",
]
FRACTIONS = [
    "agent.gamma",
    "agent.lambda_",
    "agent.target_rate",
    "agent.actor_min_std",
    "agent.range_rate",
    "agent.slow_rate",
    "agent.unimix",
    "generated.fraction",
    "generated.eta",
    "generated.reject_above",
]


def check(config: RunConfig) -> RunConfig:
    """Return `config` if it can run.

    Raises:
      UserError: an impossible value, naming the setting and the remedy.
    """
    rules = [(name, lambda x: x >= 1, "use 1 or more") for name in AT_LEAST_ONE]
    rules += [(name, lambda x: x >= 0, "use 0 or more") for name in NOT_NEGATIVE]
    rules += [(name, lambda x: x > 0, "use a value above 0") for name in POSITIVE]
    rules += [(name, lambda x: 0 <= x <= 1, "use a value in [0, 1]") for name in FRACTIONS]
    for name, holds, remedy in rules:
        if _has(config, name):
            _need(holds(_get(config, name)), name, config, remedy)
    for name, holds, remedy in _relations(config):
        _need(holds, name, config, remedy)
    if config.sweep:
        for values in {member.values for member in config.members}:
            check(with_values(config, values))
    return config


def with_values(config: RunConfig, values: Iterable[tuple[str, Any]]) -> RunConfig:
    """The settings of one swept learner: (full name, value) pairs put in, no sweep left."""
    config = dataclasses.replace(config, sweep=())
    for name, value in values:
        part, field_name = name.split(".")
        changed = dataclasses.replace(getattr(config, part), **{field_name: value})
        config = dataclasses.replace(config, **{part: changed})
    return config


def _relations(config: RunConfig) -> list[tuple[str, bool, str]]:
    """What settings demand of each other: (setting to blame, whether it holds, remedy)."""
    rows = config.replay // config.envs
    whole = config.cycle_unit == "episodes" or config.cycle_size % config.envs == 0
    return [
        ("seed", config.seed < 2**31, "use a number below 2147483648"),
        ("seeds", max(m.seed for m in config.members) < 2**31, "use numbers below 2147483648"),
        ("env.cars", config.env.cars <= MOST_CARS, f"use 1 to {MOST_CARS}"),
        (
            "env.cars",
            len(config.members) % config.env.cars == 0,
            f"each car is a learner and there are {len(config.members)}: name one seed for each "
            "car, as --seeds 0:2",
        ),
        ("length", config.length >= 2, "a sequence needs 2 or more records"),
        (
            "length",
            config.length <= rows,
            f"a sequence must fit the replay, which holds replay / envs = {rows} records in a row",
        ),
        ("cycle_size", whole, f"it must be a multiple of envs={config.envs}"),
        (
            "cycle_size",
            config.chunk <= rows,
            f"a cycle brings up to {config.chunk} records to a ring of {rows}: raise --replay",
        ),
        (
            "sweep",
            all(_has(config, name) for m in config.members for name, _ in m.values),
            f"the agent {config.algorithm} has no such setting",
        ),
        *_OF_THE_AGENT[type(config.agent)](config),
    ]


def _of_dlc_v1(config: RunConfig) -> list[tuple[str, bool, str]]:
    states = config.batch * config.length
    return [
        ("agent.starts", config.agent.starts <= states, f"a batch has only {states} states"),
        ("agent.posterior_layers", config.agent.posterior_layers >= 2, "use 2 or more"),
        *(_of_the_pool(config) if config.arm == "ddim" else []),
    ]


def _of_dreamer_v3(config: RunConfig) -> list[tuple[str, bool, str]]:
    agent = config.agent
    return [
        _baseline_only(config),
        ("agent.classes", agent.classes >= 2, "use 2 or more"),
        ("agent.last", agent.last >= 2, "use 2 or more"),
        ("agent.deter", agent.deter % agent.blocks == 0, f"use a multiple of {agent.blocks}"),
        ("agent.bins", agent.bins >= 3 and agent.bins % 2 == 1, "use an odd number from 3 upwards"),
    ]


def _baseline_only(config: RunConfig) -> tuple[str, bool, str]:
    return ("arm", config.arm == "baseline", "only the agent dlc_v1 has another arm than baseline")


_OF_THE_AGENT = {DLCConfig: _of_dlc_v1, DreamerV3Config: _of_dreamer_v3}


def _of_the_pool(config: RunConfig) -> list[tuple[str, bool, str]]:
    pool, fresh, starts = config.generated.pool, config.generated.fresh, config.agent.starts
    block = min(fresh, starts)
    return [
        ("generated.pool", pool >= starts, f"an update takes agent.starts={starts} images of it"),
        ("generated.pool", pool % fresh == 0, f"it must be a multiple of generated.fresh={fresh}"),
        (
            "generated.fresh",
            fresh % block == 0,
            f"above agent.starts={starts} it must be a multiple of that",
        ),
    ]


def to_dict(config: RunConfig) -> dict[str, Any]:
    """As JSON holds it."""
    return {"algorithm": config.algorithm} | dataclasses.asdict(config)


def from_dict(values: dict[str, Any]) -> RunConfig:
    """The inverse of `to_dict`, lists becoming tuples again.

    Raises:
      UserError: unknown or missing fields.
    """
    try:
        values = dict(values)
        kind = AGENTS[values.pop("algorithm", "dlc_v1")]  # older runs had no other
        env, agent = EnvConfig(**values.pop("env")), kind(**_tuples(values.pop("agent")))
        generated = GeneratedConfig(**_tuples(values.pop("generated")))
        values["sweep"] = tuple(values["sweep"])
        return RunConfig(**values, env=env, agent=agent, generated=generated)
    except (KeyError, TypeError) as error:
        raise UserError(
            f"config.json does not fit this version of the program ({error}); resume with the "
            "version that wrote it, or start a new run with --out"
        ) from error


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _tuples(entry) for name, entry in value.items()}
    return tuple(_tuples(entry) for entry in value) if isinstance(value, list) else value


def _has(config: RunConfig, name: str) -> bool:
    part, _, rest = name.partition(".")
    return not rest or hasattr(getattr(config, part), rest)


def _get(config: RunConfig, name: str) -> Any:
    for part in name.split("."):
        config = getattr(config, part)
    return config


def _need(condition: bool, name: str, config: RunConfig, remedy: str) -> None:
    if not condition:
        option = "--" + re.sub("_(?!$)", "-", name)
        raise UserError(f"{option}={_get(config, name)} cannot be: {remedy}")
