"""Which settings of a run are possible, and what to do about those that are not."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from dreamer_jax.errors import UserError
from envs import MOST_CARS, RACE
from envs.make import HELD_OUT

if TYPE_CHECKING:
    from dreamer_jax.training.config import RunConfig

FIRST_EVAL_SEED = 5_000  # the tracks watched during training; evaluate.py starts at 0
MOST_EVALUATED = HELD_OUT - FIRST_EVAL_SEED

# How often one looks at a run and saves it, and how long one waits: none of it is learnt from.
WATCHING = ("report_every", "eval_every", "eval_episodes", "checkpoint_every", "keep")
WATCHING += ("env.timeout",)
# What the episodes to come may demand; those under way are then given up.
EPISODE_RULES = (
    "env.idle_limit",
    "env.missed_limit",
    "env.missed_cost",
    "env.off_road_cost",
    "env.limit_ends",
    "env.road_goes_on",
    "env.off_road_ends",
    "env.backwards_ends",
    "env.both_ways",
)
OF_THE_RACES = (*EPISODE_RULES, "env.steer_scale", "env.cars")  # other environments have none
CHANGEABLE = ("cycles", "replay", *WATCHING, *EPISODE_RULES)  # when a run goes on

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
    "agent.slow_every",
    "agent.plan_horizon",
    "agent.iterations",
    "agent.candidates",
    "agent.top",
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
    "env.missed_limit",
    "env.missed_cost",
    "env.off_road_cost",
    "env.pixels",
    "env.size",
    "agent.actor_warmup",
    "agent.kl_scale",
    "agent.dynamics_clip",
    "agent.free_nats",
    "agent.entropy_scale",
    "agent.excess_scale",
    "agent.dyn_scale",
    "agent.rep_scale",
    "agent.slow_scale",
    "agent.replay_value_scale",
    "agent.warmup",
    "agent.lr_anneal",
    "agent.cont_scale",
    "agent.reward_scale",
    "agent.exploration",
    "agent.weight_decay",
    "agent.anneal_updates",
    "agent.overshooting",
    "agent.overshooting_scale",
    "generated.warm_up",
    "generated.from_update",
]
POSITIVE = [
    "env.timeout",
    "env.steer_scale",
    "agent.error_scale",
    "agent.lr",
    "agent.behaviour_lr",
    "agent.temperature",
    "agent.final_temperature",
    "agent.value_lr",
    "agent.clip",
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
    "agent.kl_balance",
    "agent.reinforce",
    "agent.slow_rate",
    "agent.unimix",
    "generated.fraction",
    "generated.eta",
    "generated.reject_above",
]


def need_possible(config: RunConfig) -> None:
    """Raises UserError for an impossible value, naming the setting and the remedy."""
    rules = [(name, lambda x: x >= 1, "use 1 or more") for name in AT_LEAST_ONE]
    rules += [(name, lambda x: x >= 0, "use 0 or more") for name in NOT_NEGATIVE]
    rules += [(name, lambda x: x > 0, "use a value above 0") for name in POSITIVE]
    rules += [(name, lambda x: 0 <= x <= 1, "use a value in [0, 1]") for name in FRACTIONS]
    for name, holds, remedy in rules:
        if _has(config, name) and _get(config, name) is not None:
            _need(holds(_get(config, name)), name, config, remedy)
    for name, holds, remedy in _relations(config):
        _need(holds, name, config, remedy)


def check_tracks(name: str, number: int, first: int) -> None:
    """Raises UserError unless the option `name` and --first-track give held-out episodes."""
    if not 1 <= number <= HELD_OUT:
        raise UserError(f"--{name}={number} cannot be: use 1 to {HELD_OUT}")
    if not 0 <= first <= HELD_OUT - number:
        raise UserError(
            f"--first-track={first} cannot be: the {number} tracks must lie in 0 .. "
            f"{HELD_OUT - 1}, which training never uses; use 0 to {HELD_OUT - number}"
        )


def episode_rules(config: RunConfig) -> dict[str, Any]:
    """By name; an episode goes on under the rules that it began with alone."""
    return {name: _get(config, name) for name in EPISODE_RULES}


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
            (number := len({member.seed for member in config.members})) % config.env.cars == 0,
            f"each car is a learner and there are {number} seeds: name one seed for each car, as "
            "--seeds 0:2",
        ),
        ("env.steer_scale", config.env.steer_scale <= 1, "use a value above 0 and up to 1"),
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
            "prefill",
            config.env.cars == 1 or config.cycle_unit == "steps" or not config.prefill,
            f"with --env.cars={config.env.cars} it would end in the midst of a race, and cycles of "
            "episodes begin with one; use --prefill 0 or --cycle-unit steps",
        ),
        ("eval_episodes", config.eval_episodes <= MOST_EVALUATED, f"use up to {MOST_EVALUATED}"),
        (
            "sweep",
            all(_has(config, name) for name in _swept(config)),
            f"the agent {config.algorithm} has no such setting",
        ),
        (
            "sweep",
            config.arm == "ddim" or not any(x.startswith("generated.") for x in _swept(config)),
            f"with --arm={config.arm} nothing is generated, and the learners would be the same",
        ),
        (
            "pretrain",
            not config.pretrain or -(-config.prefill // config.envs) >= config.length,
            f"--prefill={config.prefill} gives {config.envs} environments no sequence of "
            f"{config.length} records to train on; use --prefill {config.envs * config.length} or "
            "more, or --pretrain 0",
        ),
        *_elsewhere(config),
        *_layers(config),
        *_OF_THE_AGENT[config.algorithm](config),
    ]


def _swept(config: RunConfig) -> set[str]:
    return {name for member in config.members for name, _ in member.values}


def _elsewhere(config: RunConfig) -> list[tuple[str, bool, str]]:
    """Off the races nothing follows their rules."""
    if config.env.id == RACE:
        return []
    plain = type(config)()
    remedy = (
        f"it is for {RACE} alone, not for {config.env.id}; leave it out, and begin other tasks by "
        f"train.py --env {config.env.id}"
    )
    return [(name, _get(config, name) == _get(plain, name), remedy) for name in OF_THE_RACES]


def _layers(config: RunConfig) -> list[tuple[str, bool, str]]:
    """Of folded image networks: (features, kernel, stride) of each layer."""
    named = {name: getattr(config.agent, name, ()) for name in ("encoder", "decoder")}
    rules = [
        (f"agent.{name}", all(min(layer) >= 1 for layer in layers), "use numbers from 1 upwards")
        for name, layers in named.items()
    ]
    base = getattr(config.agent, "decoder_base", (1, 1))
    return [*rules, ("agent.decoder_base", min(base) >= 1, "use numbers from 1 upwards")]


def _of_dlc_v1(config: RunConfig) -> list[tuple[str, bool, str]]:
    states = config.batch * config.length
    return [
        ("agent.starts", config.agent.starts <= states, f"a batch has only {states} states"),
        ("agent.posterior_layers", config.agent.posterior_layers >= 2, "use 2 or more"),
        ("agent.decoder", len(config.agent.decoder) >= 1, "name one layer or more"),
        *(_of_the_pool(config) if config.arm == "ddim" else []),
    ]


def _of_categorical(config: RunConfig) -> list[tuple[str, bool, str]]:
    agent = config.agent
    return [
        _baseline_only(config),
        ("agent.classes", agent.classes >= 2, "use 2 or more"),
        ("agent.deter", agent.deter % agent.blocks == 0, f"use a multiple of {agent.blocks}"),
    ]


def _of_planet(config: RunConfig) -> list[tuple[str, bool, str]]:
    most, longest = config.agent.candidates, config.length - 1
    return [
        _baseline_only(config),
        ("agent.top", config.agent.top <= most, f"there are only {most} candidates"),
        ("agent.overshooting", config.agent.overshooting <= longest, f"use 0 to {longest}"),
    ]


def _of_dreamer_v3(config: RunConfig) -> list[tuple[str, bool, str]]:
    agent = config.agent
    rises = agent.warmup if agent.optimiser == "laprop" else 0
    falls = agent.lr_anneal > rises  # once it has risen
    odd = agent.bins >= 3 and agent.bins % 2 == 1
    return [
        *_of_categorical(config),
        ("agent.last", agent.last >= 2, "use 2 or more"),
        ("agent.lr_anneal", falls or not agent.lr_anneal, f"use 0 or more than {rises}"),
        (
            "agent.bins",
            agent.numbers == "gaussian" or odd,
            "use an odd number from 3 upwards",
        ),
        (
            "sweep",
            agent.optimiser == "laprop" or "agent.agc" not in _swept(config),
            "with --agent.optimiser adam nothing follows agent.agc",
        ),
    ]


def _baseline_only(config: RunConfig) -> tuple[str, bool, str]:
    return ("arm", config.arm == "baseline", "only the agent dlc_v1 has another arm than baseline")


_OF_THE_AGENT = {
    "dlc_v1": _of_dlc_v1,
    "dreamer_v1": lambda config: [_baseline_only(config)],
    "dreamer_v2": _of_categorical,
    "dreamer_v3": _of_dreamer_v3,
    "planet": _of_planet,
}


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
