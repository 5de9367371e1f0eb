"""Settings of DreamerV1."""

from __future__ import annotations

from dataclasses import dataclass

from dreamer_jax.agents.networks import NetworkConfig


@dataclass(frozen=True)
class DreamerV1Config(NetworkConfig):
    """Networks and losses; the defaults are the published ones (Hafner et al. 2020, appendix A)."""

    deter: int = 200
    """Size of the GRU's state."""
    stoch: int = 30
    """Size of the Gaussian latent."""
    hidden: int = 200
    """Width of the layers of the dynamics."""
    min_std: float = 0.1
    """Smallest standard deviation of the latent."""
    kl_scale: float = 1.0
    """Weight of the KL."""
    free_nats: float = 3.0
    """Nats of KL, averaged over the batch, below which it gives no gradient."""
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
    """Largest norm of the gradient of one imagined return, in reward units, that comes back to an
    imagined state from later ones (0: no limit)."""
    model_lr: float = 6e-4
    """Adam's step size for the world model."""
    actor_lr: float = 8e-5
    """Adam's step size for the actor."""
    value_lr: float = 8e-5
    """Adam's step size for the value network."""
    clip: float = 100.0
    """Largest global gradient norm of each."""
