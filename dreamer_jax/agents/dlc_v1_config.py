"""Settings of DLC-V1."""

from __future__ import annotations

from dataclasses import dataclass

from dreamer_jax.nn.vision import Layer


@dataclass(frozen=True)
class DLCConfig:
    """Networks and losses; the defaults are the published sizes."""

    # Networks
    fold: int = 1
    """Side of the pixel blocks folded into channels before the encoder (1: none)."""
    encoder: tuple[Layer, ...] = ((32, 4, 3), (64, 4, 2), (128, 4, 2), (256, 4, 2))
    """Convolutions as (features, kernel, stride)."""
    embed: int = 512
    """Size of the encoder's output."""
    decoder_base: tuple[int, int] = (1, 1024)
    """Side and channels that the decoder's linear layer is unflattened to."""
    decoder: tuple[Layer, ...] = ((128, 5, 2), (64, 6, 2), (32, 6, 2), (3, 6, 3))
    """Transposed convolutions as (features, kernel, stride); the last one paints the pixels."""
    deter: int = 200
    """Size of the GRU's state."""
    stoch: int = 30
    """Size of the Gaussian latent."""
    hidden: int = 1000
    """Width of the representation and transition MLPs."""
    posterior_layers: int = 2
    """Linear layers of the representation MLP."""
    prior_layers: int = 3
    """Linear layers of the transition MLP."""
    min_std: float = 0.1
    """Smallest standard deviation of the latent."""
    head: int = 400
    """Width of the reward, continue, critic and actor MLPs."""
    head_layers: int = 3
    """Linear layers of reward, continue and critic."""
    actor_layers: int = 4
    """Linear layers of the actor."""
    actor_min_std: float = 0.1
    """Smallest standard deviation of the policy."""

    # World model
    kl_scale: float = 1.0
    """Weight of both KL terms."""
    free_nats: float = 1.0
    """Nats below which a KL term gives no gradient."""

    # Imagination
    horizon: int = 15
    """Imagined steps."""
    starts: int = 50
    """Replayed states from which imagination starts in each update."""
    gamma: float = 0.99
    """Discount per decision."""
    lambda_: float = 0.95
    """Mixing of the lambda-return."""
    dynamics_clip: float = 0.0
    """Largest norm of the gradient of one imagined return, in reward units, that comes back to an
    imagined state from later ones (0: no limit)."""
    actor_interval: int = 2
    """The actor is updated in every n-th update."""
    actor_warmup: int = 0
    """Updates before the actor learns: gradients through an untrained model only saturate it."""
    entropy_scale: float = 6e-4
    """Weight of the policy's entropy (in nats) beside the return (in reward units)."""
    target_rate: float = 0.02
    """EMA rate of the target critic."""

    # Optimisers
    model_lr: float = 6e-4
    """Adam's step size for the world model."""
    critic_lr: float = 6e-4
    """Adam's step size for the critic."""
    actor_lr: float = 1e-4
    """Adam's step size for the actor."""
    model_eps: float = 1e-8
    """Adam's epsilon for the world model."""
    actor_critic_eps: float = 1e-5
    """Adam's epsilon for actor and critic."""
    model_clip: float = 1000.0
    """Largest global gradient norm of the world model."""
    actor_critic_clip: float = 100.0
    """Largest global gradient norm of actor and critic."""
    lr_anneal: int = 0
    """Updates after which the step sizes have fallen, linearly, to a tenth (0: they stay); the
    actor's count from its first one on, so that it takes `actor_warmup` more."""


@dataclass(frozen=True)
class GeneratedConfig:
    """The arm "ddim": imagination from generated scenes; the defaults are the published ones."""

    fraction: float = 1.0
    """Share of the starts that are generated (0: exactly the baseline)."""
    steps: int = 30
    """Steps of DDIM sampling."""
    eta: float = 0.0
    """Noise of DDIM sampling: 0 is deterministic, 1 as much as DDPM adds."""
    pool: int = 250
    """Generated images at hand; an update takes the next `agent.starts` of them."""
    fresh: int = 250
    """Images generated anew before the updates of each cycle, in place of the oldest."""
    every: int = 4
    """Updates that use the same images before the next ones have their turn."""
    align_hidden: int = 256
    """Narrow layer of the alignment."""
    discriminator_hidden: tuple[int, ...] = (256, 128)
    """Hidden layers of the discriminator."""
    align_lr: float = 1e-4
    """Adam's step size for the alignment layer."""
    discriminator_lr: float = 1e-3
    """Adam's step size for the discriminator."""
    warm_up: int = 0
    """Posterior steps on the same image before imagination (0: from h = 0)."""
    reject_above: float = 1.0
    """Starts that the discriminator calls generated with a higher probability are replaced by
    replayed ones (1: none)."""
    from_update: int = 0
    """Updates before the first generated start."""
