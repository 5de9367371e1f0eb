"""Settings of DreamerV1."""

from __future__ import annotations

from dataclasses import dataclass

from dreamer_jax.agents.networks import GaussianConfig


@dataclass(frozen=True)
class DreamerV1Config(GaussianConfig):
    """Networks and losses; the defaults are the published ones (Hafner et al. 2020, appendix A)."""

    cont_scale: float = 10.0
    """Weight of the continue loss."""
    horizon: int = 15
    """Imagined steps."""
    last: int = 50
    """The last so many records of each sequence are starts of imagination (as many as there are, if
    less)."""
    gamma: float = 0.99
    """Discount per decision."""
    lambda_: float = 0.95
    """Mixing of the lambda-return."""
    exploration: float = 0.3
    """Standard deviation of the noise on sampled actions; share of random ones if discrete."""
    dynamics_clip: float = 0.0
    """Largest norm of the gradient that the returns of one rollout send back to one of its states,
    in reward units (0: no limit)."""
    model_lr: float = 6e-4
    """Adam's step size for the world model."""
    actor_lr: float = 8e-5
    """Adam's step size for the actor."""
    value_lr: float = 8e-5
    """Adam's step size for the value network."""
    clip: float = 100.0
    """Largest global gradient norm of each."""
