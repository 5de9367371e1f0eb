"""Settings of PlaNet."""

from __future__ import annotations

from dataclasses import dataclass

from dreamer_jax.agents.networks import GaussianConfig


@dataclass(frozen=True)
class PlaNetConfig(GaussianConfig):
    """Networks, losses and planner; the defaults are the published ones (Hafner et al. 2019)."""

    free_nats: float = 3.0
    """Nats of one state's KL below which it gives no gradient."""
    units: int = 200
    """Width of reward, continue and vector networks."""
    layers: int = 2
    """Hidden layers of these networks."""
    reward_scale: float = 10.0
    """Weight of the reward loss (in the authors' program; the paper names none)."""
    overshooting: int = 0
    """Steps of latent overshooting: priors so many steps ahead are trained too (0 and 1: none)."""
    overshooting_scale: float = 1.0
    """Weight of all these KLs together."""
    plan_horizon: int = 12
    """Decisions that a plan looks ahead."""
    iterations: int = 10
    """Rounds of drawing and refitting."""
    candidates: int = 1000
    """Plans drawn in a round."""
    top: int = 100
    """Plans kept of them."""
    exploration: float = 0.3
    """Standard deviation of the noise on actions; share of random ones if discrete."""
    model_lr: float = 1e-3
    """Adam's step size."""
    clip: float = 1000.0
    """Largest global gradient norm."""
