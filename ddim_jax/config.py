"""Settings of a diffusion model and of its training; presets."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from ddim_jax.unet import UNetConfig, check_sizes


@dataclass(frozen=True)
class DDIMConfig:
    """One diffusion model. What a sampler must know stands here, what training needs too."""

    image: tuple[int, int, int] = (96, 96, 3)
    """Height, width and channels of the pictures."""
    schedule: Literal["linear", "cosine"] = "linear"
    """Noise schedule."""
    output: Literal["noise", "image"] = "noise"
    """What the network gives and its loss counts (both are sampled from alike)."""
    noise_steps: int = 1000
    """Noise levels trained (T)."""
    batch: int = 100
    """Pictures per training step."""
    lr: float = 2e-4
    """Adam's step size."""
    warmup: int = 500
    """Training steps over which the step size rises to `lr`."""
    clip: float = 1.0
    """Largest global gradient norm."""
    ema: float = 0.9995
    """Decay of the averaged weights that sampling uses."""
    unet: UNetConfig = field(default_factory=UNetConfig)


PAPER = DDIMConfig()

LAPTOP = DDIMConfig(
    output="image",
    batch=16,
    lr=1e-3,
    ema=0.998,
    unet=UNetConfig(
        fold=4,
        channels=(32, 64, 96),
        blocks=1,
        attention=(2,),
        head_dim=16,
        groups=8,
    ),
)

DEBUG = DDIMConfig(
    noise_steps=50,
    batch=4,
    lr=1e-3,
    warmup=10,
    ema=0.9,
    unet=UNetConfig(fold=12, channels=(16,), blocks=1, attention=(), head_dim=8, groups=4),
)

PRESETS = {"debug": DEBUG, "laptop": LAPTOP, "paper": PAPER}


def check(config: DDIMConfig) -> DDIMConfig:
    """Return `config` if it can be trained.

    Raises:
      ValueError: an impossible value, naming the setting and the remedy.
    """
    rules = [
        ("noise_steps", config.noise_steps >= 1, "use 1 or more"),
        ("batch", config.batch >= 1, "use 1 or more"),
        ("lr", config.lr > 0, "use a value above 0"),
        ("clip", config.clip > 0, "use a value above 0"),
        ("warmup", config.warmup >= 0, "use 0 or more"),
        ("ema", 0 <= config.ema < 1, "use a value in [0, 1)"),
    ]
    for name, holds, remedy in rules:
        if not holds:
            raise ValueError(f"{name}={getattr(config, name)} cannot be: {remedy}")
    check_sizes(config.unet, config.image)
    return config


def to_dict(config: DDIMConfig) -> dict[str, Any]:
    """As JSON holds it."""
    return dataclasses.asdict(config)


def from_dict(values: dict[str, Any]) -> DDIMConfig:
    """The inverse of `to_dict`; raises TypeError or KeyError where fields are odd."""
    values = {name: _tuple(value) for name, value in values.items()}
    unet = UNetConfig(**{name: _tuple(value) for name, value in values.pop("unet").items()})
    return DDIMConfig(**values, unet=unet)


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
