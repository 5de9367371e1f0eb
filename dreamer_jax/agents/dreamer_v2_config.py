"""Settings of DreamerV2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dreamer_jax.agents.networks import CategoricalConfig


@dataclass(frozen=True)
class DreamerV2Config(CategoricalConfig):
    """Networks and losses; the defaults are those of the authors' program for Atari (Hafner et al.
    2021; the paper's own table D.1 has a discount of 0.995), where `train.py` adds the transformed
    rewards."""

    depth: int = 48
    """halving: features of the first convolution."""
    layers: int = 4
    """Hidden layers of these networks."""
    kl_scale: float = 0.1
    """Weight of the KL."""
    kl_balance: float = 0.8
    """Share of the KL that trains the prior; the rest trains the posterior."""
    free_nats: float = 0.0
    """Nats of KL below which it gives no gradient."""
    cont_scale: float = 5.0
    """Weight of the continue loss."""
    horizon: int = 15
    """Imagined steps."""
    last: int = 50
    """The last so many records of each sequence are starts of imagination (as many as there are, if
    less)."""
    gamma: float = 0.999
    """Discount per decision."""
    lambda_: float = 0.95
    """Mixing of the lambda-return."""
    reinforce: float | None = None
    """rho: share of REINFORCE in the actor's gradient; the rest goes through the dynamics (None: 1
    for discrete actions, 0 for continuous ones)."""
    entropy_scale: float | None = None
    """Weight of the policy's entropy in nats (None: 1e-3 for discrete actions, else 1e-4)."""
    reward_transform: Literal["none", "tanh"] = "none"
    """What is learnt of rewards: they or, as published for Atari, their tanh."""
    slow_every: int = 100
    """Updates between copies of the value network into its slow one, which values the returns."""
    dynamics_clip: float = 0.0
    """Largest norm of the gradient that the returns of one rollout send back to one of its states,
    in reward units (0: no limit)."""
    model_lr: float = 2e-4
    """Adam's step size for the world model."""
    actor_lr: float = 4e-5
    """Adam's step size for the actor."""
    value_lr: float = 1e-4
    """Adam's step size for the value network."""
    weight_decay: float = 1e-6
    """Share of every weight that an update takes, whatever the step size."""
    clip: float = 100.0
    """Largest global gradient norm of each."""
