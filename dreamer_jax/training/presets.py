"""Named settings: `debug` runs the whole path, `laptop` learns on two cores, `paper` is published.

The three run the same algorithm; sizes and schedule differ.
"""

from __future__ import annotations

import jax

from dreamer_jax.agents.dlc_v1_config import DLCConfig, GeneratedConfig
from dreamer_jax.errors import UserError
from dreamer_jax.training.config import EnvConfig, RunConfig

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

PRESETS = {"debug": DEBUG, "laptop": LAPTOP, "paper": PAPER}


def choose(name: str | None) -> tuple[RunConfig, str]:
    """The preset called `name`, or the one for this machine, and a sentence saying which and why.

    Raises:
      UserError: an unknown name.
    """
    if name is not None:
        if name not in PRESETS:
            raise UserError(f"--preset {name} is unknown; use one of {', '.join(PRESETS)}")
        return PRESETS[name], f"preset {name}"
    backend = jax.default_backend()
    if backend == "cpu":
        return LAPTOP, "preset laptop: JAX found no accelerator (--preset paper for full size)"
    return PAPER, f"preset paper: JAX found an accelerator ({backend})"
