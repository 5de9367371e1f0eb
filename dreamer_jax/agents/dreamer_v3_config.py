"""Settings of DreamerV3."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from dreamer_jax.agents.networks import CategoricalConfig


@dataclass(frozen=True)
class DreamerV3Config(CategoricalConfig):
    """Networks and losses; the defaults are the final form (Hafner et al. 2025) at 12M weights, its
    pictures seen as in that of 2023."""

    depth: int = 16
    """halving: features of the first convolution."""
    deter: int = 2048
    """Size of the GRU's state."""
    blocks: int = 8
    """Blocks of the GRU's weights."""
    classes: int = 16
    """Classes of each latent (in the published size of 12M; `sized` has 32)."""
    hidden: int = 256
    """Width of the layers of the dynamics."""
    prior_layers: int = 2
    """Hidden layers of the prior."""
    unimix: float = 0.01
    """Share of the uniform distribution in latents and discrete actions."""
    units: int = 256
    """Width of reward, continue, value, actor and vector networks."""
    layers: int = 3
    """Hidden layers of these networks, but of reward's and continue's."""
    head_layers: int = 1
    """Hidden layers of reward's and continue's networks."""
    error_scale: float = 1.0
    """Weight of the squared errors of what is seen."""
    numbers: Literal["two_hot", "symlog_two_hot", "gaussian"] = "two_hot"
    """What reward and value networks say of a number: two_hot = classes over symexp-spaced bins;
    symlog_two_hot = classes over even bins for its symlog (2023); gaussian = the mean of a Normal,
    as in DreamerV1 and V2."""
    bins: int = 255
    """two_hot, symlog_two_hot: bins."""

    # World model
    dyn_scale: float = 1.0
    """Weight of KL[sg(posterior) || prior]."""
    rep_scale: float = 0.1
    """Weight of KL[posterior || sg(prior)]."""
    free_nats: float = 1.0
    """Nats below which a KL term gives no gradient."""

    # Imagination
    horizon: int = 15
    """Imagined steps."""
    last: int = 64
    """The last so many records of each sequence are starts of imagination (as many as there are, if
    less)."""
    discount_horizon: float = 333.0
    """1 / (1 - gamma), in decisions; gamma is part of the continue prediction."""
    lambda_: float = 0.95
    """Mixing of the lambda-return."""
    actor_gradient: Literal["reinforce", "dynamics"] = "reinforce"
    """Of continuous actions: reinforce, or through the dynamics (2023). Discrete actions have
    reinforce."""
    entropy_scale: float = 3e-4
    """Weight of the policy's entropy (in nats) beside the normalised advantage."""
    excess_scale: float = 0.0
    """Weight of the squares by which the actor's raw means lie beyond 2 (continuous actions), where
    tanh is nearly flat: an actor whose means get there hardly learns (0: as published)."""
    actor_min_std: float = 0.1
    """Least standard deviation of a continuous action."""
    range_rate: float = 0.01
    """EMA rate of the returns' percentiles."""
    slow_rate: float = 0.02
    """EMA rate of the slow value network."""
    slow_scale: float = 1.0
    """Weight of the pull towards the slow value network."""
    replay_value_scale: float = 0.3
    """Weight of the value loss on replayed sequences."""
    stored_latents: bool = True
    """Replayed sequences begin with the latents that acting, or the last update, left there; else
    with zeros."""

    norm: Literal["rms", "layer"] = "rms"
    """Norm of all layers: by the root mean square, or LayerNorm."""

    # Optimiser
    optimiser: Literal["laprop", "adam"] = "laprop"
    """laprop = one for all weights; adam = one each for model, actor and value (2023)."""
    lr: float = 4e-5
    """Step size; adam: of the model."""
    behaviour_lr: float = 3e-5
    """adam: step size of actor and value."""
    agc: float = 0.3
    """laprop: largest norm of a tensor's gradient, as a share of the tensor's own."""
    warmup: int = 1000
    """laprop: updates over which the step size rises from 0."""
    lr_anneal: int = 0
    """Updates after which step sizes have fallen, linearly, to a tenth (0: they stay)."""


# GRU units, dense units, features of the first convolution, layers (table B.1 of 2023)
SIZES = {
    "xs": (256, 256, 24, 1),
    "s": (512, 512, 32, 2),
    "m": (1024, 640, 48, 3),
    "l": (2048, 768, 64, 4),
    "xl": (4096, 1024, 96, 5),
}


def sized(name: str) -> DreamerV3Config:
    """The widths of a published size, xs to xl, with 32 x 32 latents. Raises KeyError.

    In the networks of the final form, whose GRU has blocks, these are 8.2, 17.3, 33.7, 64.9 and
    155.6 million weights (64 x 64 pixels, six actions); table B.1 has 8, 18, 37, 77 and 200.
    """
    deter, units, depth, layers = SIZES[name]
    return DreamerV3Config(
        vision="halving", depth=depth, deter=deter, hidden=units, units=units, layers=layers,
        latents=32, classes=32,
    )  # fmt: skip


def first_form(config: DreamerV3Config) -> DreamerV3Config:
    """The form of 2023: one block, a prior of one hidden layer, weaker KL, LayerNorm, an Adam each
    for model, actor and value; reward's and continue's networks as deep as the others, bins for the
    symlog of numbers, continuous actions learnt through the dynamics; no replay value loss, no
    stored latents.

    As in 2025 stay the layers around the GRU, a zero first state (in 2023 it was learnt), the small
    first weights of the actor's last layer and the decoder's sigmoid.
    """
    return replace(
        config,
        blocks=1,
        prior_layers=1,
        head_layers=config.layers,
        numbers="symlog_two_hot",
        actor_gradient="dynamics",
        dyn_scale=0.5,
        replay_value_scale=0.0,
        stored_latents=False,
        norm="layer",
        optimiser="adam",
        lr=1e-4,
    )
