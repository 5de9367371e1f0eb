"""Named settings: `debug` runs the whole path, `laptop` learns on two cores, `paper` is published.

The three run the same algorithm; sizes and schedule differ. Each agent has all three.
"""

from __future__ import annotations

from dataclasses import replace

import jax

from dreamer_jax.agents.dlc_v1_config import DLCConfig, GeneratedConfig
from dreamer_jax.agents.dreamer_v1_config import DreamerV1Config
from dreamer_jax.agents.dreamer_v2_config import DreamerV2Config
from dreamer_jax.agents.dreamer_v3_config import SIZES, DreamerV3Config, first_form, sized
from dreamer_jax.agents.planet_config import PlaNetConfig
from dreamer_jax.errors import UserError
from dreamer_jax.training.config import EnvConfig, RunConfig
from envs import RACE
from envs.adapters import is_atari, is_control, registered

PAPER = RunConfig()

LAPTOP = RunConfig(
    cycles=90,
    cycle_unit="steps",
    cycle_size=250,
    updates=60,
    envs=2,
    prefill=2000,
    pretrain=5,
    batch=8,
    length=32,
    replay=30_000,
    report_every=5,
    eval_every=20,
    checkpoint_every=10,
    ddim="laptop",
    generated=GeneratedConfig(steps=15, pool=512, fresh=32, every=1),
    env=EnvConfig(idle_limit=80),
    agent=DLCConfig(
        fold=8,
        encoder=((32, 1, 1), (64, 2, 2), (128, 2, 2)),
        embed=256,
        decoder_base=(3, 128),
        decoder=((64, 2, 2), (32, 2, 2), (192, 1, 1)),
        hidden=200,
        head=200,
        starts=64,
        actor_warmup=200,
        dynamics_clip=50.0,
        entropy_scale=0.01,
    ),
)

DEBUG = RunConfig(
    cycles=3,
    cycle_unit="steps",
    cycle_size=40,
    updates=2,
    envs=2,
    prefill=80,
    batch=3,
    length=8,
    replay=1000,
    report_every=1,
    eval_every=2,
    eval_episodes=1,
    checkpoint_every=1,
    ddim="laptop",
    generated=GeneratedConfig(steps=3, pool=32, fresh=8, every=1),
    env=EnvConfig(idle_limit=80, time_limit=200),
    agent=DLCConfig(
        fold=12,
        encoder=((16, 1, 1), (16, 4, 4)),
        embed=16,
        decoder_base=(2, 16),
        decoder=((16, 4, 4), (432, 1, 1)),
        deter=16,
        stoch=8,
        hidden=16,
        prior_layers=2,
        head=16,
        head_layers=2,
        actor_layers=2,
        horizon=4,
        starts=8,
    ),
)

PRESETS = {"debug": DEBUG, "laptop": LAPTOP, "paper": PAPER}  # of dlc_v1

# What the agents below share with it: the schedule, and the layers that suit folded pixels.
_LAPTOP_VISION = dict(
    vision="folded",
    fold=8,
    encoder=LAPTOP.agent.encoder,
    embed=256,
    decoder_base=LAPTOP.agent.decoder_base,
    decoder=LAPTOP.agent.decoder,
)
_DEBUG_VISION = dict(
    vision="folded",
    fold=12,
    encoder=DEBUG.agent.encoder,
    embed=16,
    decoder_base=DEBUG.agent.decoder_base,
    decoder=DEBUG.agent.decoder,
)

_LAPTOP = replace(LAPTOP, arm="baseline")
_DEBUG = replace(DEBUG, arm="baseline")
_CONTROL = RunConfig(  # the schedule of PlaNet and DreamerV1 for DeepMind control
    arm="baseline",
    cycles=1000,
    cycle_unit="steps",
    cycle_size=500,
    updates=100,
    prefill=2500,
    batch=50,
    length=50,
    replay=500_000,
    env=EnvConfig(action_repeat=2),
)
_TINY = dict(hidden=16, units=16, layers=2, deter=16)
_CATEGORIES = dict(latents=4, classes=4, blocks=2)

DREAMER_V1 = {
    "debug": replace(
        _DEBUG, agent=DreamerV1Config(**_DEBUG_VISION, **_TINY, stoch=8, horizon=4, last=4)
    ),
    "laptop": replace(
        _LAPTOP,
        agent=DreamerV1Config(
            **_LAPTOP_VISION,
            units=200,
            last=8,
            dynamics_clip=50.0,
            actor_lr=1e-4,
            value_lr=1e-3,  # some 5 000 updates must carry it to returns of a hundred
        ),
    ),
    "paper": replace(_CONTROL, agent=DreamerV1Config()),
}

DREAMER_V2 = {
    "debug": replace(
        _DEBUG, agent=DreamerV2Config(**_DEBUG_VISION, **_TINY, **_CATEGORIES, horizon=4, last=4)
    ),
    "laptop": replace(
        _LAPTOP,
        agent=DreamerV2Config(
            **_LAPTOP_VISION,
            deter=256,
            hidden=200,
            units=200,
            layers=3,
            latents=16,
            classes=16,
            last=8,
            gamma=0.99,
            dynamics_clip=50.0,
            model_lr=4e-4,
            actor_lr=1e-4,
            value_lr=1e-3,  # as in DreamerV1, and
            slow_every=20,  # its copy values the returns; at 100 they lag
        ),
    ),
    "paper": RunConfig(
        arm="baseline",
        cycles=1000,
        cycle_unit="steps",
        cycle_size=800,
        updates=50,  # one for 16 decisions
        prefill=50_000,
        batch=50,  # this and gamma by table D.1 of the paper; its replay is twice as large
        length=50,
        replay=1_000_000,
        agent=DreamerV2Config(gamma=0.995),
    ),
}

DREAMER_V3 = {
    "debug": replace(
        _DEBUG, agent=DreamerV3Config(**_DEBUG_VISION, **_TINY, **_CATEGORIES, horizon=4, last=4)
    ),
    "laptop": replace(
        _LAPTOP,
        agent=DreamerV3Config(
            **_LAPTOP_VISION,
            deter=512,
            latents=16,
            classes=16,
            hidden=200,
            units=200,
            layers=2,
            last=8,
            discount_horizon=100.0,
            lr=4e-4,
            warmup=100,
        ),
    ),
    "paper": RunConfig(
        arm="baseline",
        cycles=300,
        cycle_unit="steps",
        cycle_size=250,
        updates=64,  # 262 replayed records for each decision
        prefill=1000,
        batch=16,
        length=64,
        replay=1_000_000,
        agent=DreamerV3Config(),
    ),
}

# `laptop` where what counts is small on a still field, for Atari's 100 000 decisions
DREAMER_V3["atari"] = replace(
    DREAMER_V3["laptop"],
    cycles=392,
    pretrain=15,  # until the figures are seen, decisions are no better than chance
    replay=100_000,
    agent=replace(
        DREAMER_V3["laptop"].agent,
        fold=4,
        decoder_base=(6, 128),
        last=16,
        centre="mean",
        error_scale=20.0,
        entropy_scale=3e-3,
        lr=8e-4,
        lr_anneal=20_000,
    ),
)
_PAPER_V3 = DREAMER_V3["paper"]
# `paper` in the published sizes, and in the form of 2023
DREAMER_V3 |= {name: replace(_PAPER_V3, agent=sized(name)) for name in SIZES}
DREAMER_V3["2023"] = replace(_PAPER_V3, agent=first_form(sized("s")))

PLANET = {
    "debug": replace(
        _DEBUG,
        agent=PlaNetConfig(
            **_DEBUG_VISION,
            **_TINY,
            stoch=8,
            plan_horizon=4,
            iterations=2,
            candidates=20,
            top=5,
            overshooting=3,
        ),
    ),
    "laptop": replace(
        _LAPTOP,
        agent=PlaNetConfig(**_LAPTOP_VISION, iterations=4, candidates=150, top=15),
    ),
    "paper": replace(_CONTROL, agent=PlaNetConfig()),
}

FAMILY = {
    "dlc_v1": PRESETS,
    "dreamer_v1": DREAMER_V1,
    "dreamer_v2": DREAMER_V2,
    "dreamer_v3": DREAMER_V3,
    "planet": PLANET,
}


def _own_limit(env_id: str) -> int | None:
    """What the environment is registered with, in frames; None: nothing, or not known here."""
    if is_control(env_id):
        return None  # its package, imported where it is made, registers no limits
    try:
        spec = registered(env_id)
    except ValueError as error:
        raise UserError(str(error)) from error
    return spec and spec.max_episode_steps


def for_env(preset: RunConfig, env_id: str) -> RunConfig:
    """The preset with what suits any Gymnasium id instead of the race: one frame a decision (Atari
    four, DeepMind control two), pictures of 64 x 64, no long training on what chance brought (but
    where small figures are to be seen first).

    Raises:
      UserError: the module before the id's colon cannot be imported, or the id is an Atari game's
        without "ALE/".
    """
    if env_id == RACE:
        return replace(preset, arm="baseline")
    atari = is_atari(env_id)
    agent, changes = preset.agent, {}
    centred = getattr(agent, "centre", "grey") == "mean"
    if atari and hasattr(agent, "reward_transform"):
        changes["reward_transform"] = "tanh"
    if getattr(agent, "vision", "") == "folded" and agent.fold in (4, 8):
        # 64 / 8 = 8, halved twice
        changes["decoder_base"] = (64 // agent.fold // 4, agent.decoder_base[1])
    if getattr(agent, "vision", "") == "folded" and agent.fold == 12:  # of the preset debug
        changes |= {"vision": "halving", "depth": 2}
    return replace(
        preset,
        arm="baseline",
        pretrain=preset.pretrain if centred else min(preset.pretrain, 1),
        env=replace(
            preset.env,
            id=env_id,
            action_repeat=4 if atari else 2 if is_control(env_id) else 1,
            time_limit=108_000 if atari else _own_limit(env_id) or 1000,
            size=96 if isinstance(agent, DLCConfig) else 64,
            idle_limit=0,
        ),
        agent=replace(agent, **changes),
    )


def choose(name: str | None, agent: str | None = None) -> tuple[RunConfig, str]:
    """The preset called `name` of `agent`, or the one for this machine, and a sentence saying which
    and why.

    Raises:
      UserError: an unknown name.
    """
    if agent is not None and agent not in FAMILY:
        raise UserError(f"--agent {agent} is unknown; use one of {', '.join(FAMILY)}")
    presets, said = FAMILY[agent or "dlc_v1"], "" if agent is None else f"agent {agent}, "
    if name is not None:
        if name not in presets:
            raise UserError(f"--preset {name} is unknown; use one of {', '.join(presets)}")
        return presets[name], f"{said}preset {name}"
    backend = jax.default_backend()
    if backend == "cpu":
        why = "preset laptop: JAX found no accelerator (--preset paper for full size)"
        return presets["laptop"], said + why
    return presets["paper"], f"{said}preset paper: JAX found an accelerator ({backend})"
