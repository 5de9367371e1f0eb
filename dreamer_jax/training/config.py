"""Settings of a run. Every field is a command-line option; its help is the text below it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from dreamer_jax.agents.dlc_v1_config import DLCConfig, GeneratedConfig
from dreamer_jax.agents.dreamer_v1_config import DreamerV1Config
from dreamer_jax.agents.dreamer_v2_config import DreamerV2Config
from dreamer_jax.agents.dreamer_v3_config import DreamerV3Config
from dreamer_jax.agents.planet_config import PlaNetConfig
from dreamer_jax.errors import UserError
from dreamer_jax.training.members import Member, members, parse_seeds
from dreamer_jax.training.rules import need_possible

AgentConfig = DLCConfig | DreamerV1Config | DreamerV2Config | DreamerV3Config | PlaNetConfig
AGENTS = {  # as --agent and config.json call them
    "dlc_v1": DLCConfig,
    "dreamer_v1": DreamerV1Config,
    "dreamer_v2": DreamerV2Config,
    "dreamer_v3": DreamerV3Config,
    "planet": PlaNetConfig,
}


@dataclass(frozen=True)
class EnvConfig:
    """The environment and its rules."""

    id: str = "DreamerCarRacing-v3"
    """Registered Gymnasium id. Of others than the race by --env of train.py: CartPole-v1,
    ALE/Pong-v5, dm_control/cheetah-run-v0, .."""
    action_repeat: int = 4
    """Frames per decision."""
    time_limit: int = 1000
    """Frames after which an episode is truncated."""
    steer_scale: float = 1.0
    """Of the races: stock's steering for an action of 1, in (0, 1]. Beyond 0.4, where stock's front
    wheels meet their stop, it is all the same."""
    pixels: int = 0
    """Observe the rendered picture at this height and width (0: what the environment gives)."""
    size: int = 0
    """Resize the environment's own pictures to this height and width (0: as they are; Atari 64)."""
    idle_limit: int = 0
    """Training episodes end, and nothing is expected after that, once so many frames have brought
    no new tile (0: never; evaluations never do)."""
    missed_limit: int = 0
    """Training episodes end, and nothing is expected after that, once a tile is reached while the
    one so many before it was not (0: never; evaluations never do)."""
    missed_cost: float = 0.0
    """Training episodes lose so much reward for every place at which the car passes tiles by (0:
    none; evaluations never do): one missed tile leaves a lap unfinished, some 40 points that no
    imagined rollout is long enough to see."""
    off_road_cost: float = 0.0
    """Training episodes lose so much reward a frame, times the share of wheels off the road (0:
    none; evaluations never do)."""
    limit_ends: bool = False
    """Of the races: nothing is expected after the time limit of training episodes, as nothing is
    after a finished lap (else driving too slowly to finish promises more than finishing)."""
    road_goes_on: bool = False
    """Of the races: training episodes are truncated once the car has come round, with every tile or
    not, as if the road went on (else nothing is expected after a whole lap, so that missing its
    last tiles promises more)."""
    off_road_ends: bool = False
    """The paper's rule: all wheels off the road end the episode with -100."""
    backwards_ends: bool = False
    """The paper's rule: driving backwards ends the episode with -100."""
    both_ways: bool = False
    """Training episodes drive tracks either way round, by chance (evaluations never do): sharp
    right-hand bends are rare otherwise."""
    cars: int = 1
    """Cars on one track, each a learner of its own: as many learners (--seeds), or a multiple."""
    random_starts: bool = True
    """Several cars: draw their places on the starting grid anew for every race."""
    timeout: float = 120.0
    """Seconds without an answer after which an environment counts as hung."""


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
    precision: Literal["float32", "bfloat16"] = "float32"
    """Format of the agent's matrix products; parameters, states and losses are float32. (How exact
    products of float32 are is JAX's choice: on a GPU TF32, on a TPU bfloat16, unless
    JAX_DEFAULT_MATMUL_PRECISION=highest.)"""

    report_every: int = 5
    """Cycles between pictures and videos in TensorBoard (0: never)."""
    eval_every: int = 10
    """Cycles between evaluations in held-out episodes (0: never)."""
    eval_episodes: int = 4
    """Episodes of each such evaluation."""
    checkpoint_every: int = 5
    """Cycles between checkpoints."""
    keep: int = 2
    """Checkpoints kept: the newest, and of the others those that were due before any that a stop
    left between them."""

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


def check(config: RunConfig) -> RunConfig:
    """Return `config` if it can run.

    Raises:
      UserError: an impossible value, naming the setting and the remedy.
    """
    need_possible(config)
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
