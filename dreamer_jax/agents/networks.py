"""Networks that the agents of the Dreamer family share, and how they are configured."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import jax

from dreamer_jax.nn.blocks import MLP, NormSiLU
from dreamer_jax.nn.centred import CentredDecoder, CentredEncoder
from dreamer_jax.nn.vision import Decoder, DoublingDecoder, Encoder, HalvingEncoder, Layer, fitted
from dreamer_jax.ops.heads import Head
from dreamer_jax.types import Spec
from dreamer_jax.world_models.dynamics import Dynamics
from dreamer_jax.world_models.model import WorldModel
from dreamer_jax.world_models.senses import SenseDecoder, SenseEncoder, nothing_seen, prepare

Norm = Callable[[], Callable]  # a module: normalisation and activation


@dataclass(frozen=True)
class NetworkConfig:
    """Encoders, decoders and heads."""

    vision: Literal["halving", "folded"] = "halving"
    """Image networks: halving = convolutions of stride 2 down to 4x4 (of 96 pixels: 6x6), of
    doubling width; folded = the layers named below, on folded pixels."""
    depth: int = 32
    """halving: features of the first convolution."""
    fold: int = 1
    """folded: side of the pixel blocks folded into channels before the encoder."""
    encoder: tuple[Layer, ...] = ()
    """folded: convolutions as (features, kernel, stride)."""
    embed: int = 256
    """folded: size of the encoder's output."""
    decoder_base: tuple[int, int] = (1, 1)
    """folded: side and channels that the decoder's linear layer is unflattened to; the side is
    larger where the picture needs it."""
    decoder: tuple[Layer, ...] = ()
    """folded: transposed convolutions as (features, kernel, stride); the last one's features follow
    the picture."""
    centre: Literal["grey", "mean"] = "grey"
    """What pictures are seen and painted as differences from: even grey, as published, or the mean
    picture of the first 100 updates (for small figures on a still field)."""
    units: int = 400
    """Width of reward, continue, value, actor and vector networks."""
    layers: int = 3
    """Hidden layers of these networks."""
    error_scale: float = 0.5
    """Weight of the squared errors of what is seen; 1/2: a Gaussian of variance 1."""


@dataclass(frozen=True)
class GaussianConfig(NetworkConfig):
    """Of agents with a Gaussian RSSM; the defaults are those of PlaNet and DreamerV1."""

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


@dataclass(frozen=True)
class CategoricalConfig(NetworkConfig):
    """Of agents with categorical latents; the defaults are those of DreamerV2."""

    deter: int = 600
    """Size of the GRU's state."""
    blocks: int = 1
    """Blocks of the GRU's weights."""
    latents: int = 32
    """Categorical latent variables."""
    classes: int = 32
    """Classes of each."""
    estimator: Literal["straight_through", "gumbel_softmax", "straight_through_gumbel"] = (
        "straight_through"
    )
    """How gradients get through the sampling of latents."""
    temperature: float = 1.0
    """Of the Gumbel estimators; `straight_through` has none, nor a use for the next two."""
    final_temperature: float = 0.5
    """What the temperature falls to, geometrically, over `anneal_updates`."""
    anneal_updates: int = 0
    """Updates until then (0: the temperature stays)."""
    hidden: int = 600
    """Width of the layers of the dynamics."""


def mlp(config: NetworkConfig, out: int, norm: Norm, layers: int = 0, scale: float = 1.0) -> MLP:
    """A head with `layers` hidden layers (0: those of the settings)."""
    return MLP((layers or config.layers) + 1, config.units, out, scale, norm)


def make_world(
    config: NetworkConfig,
    spec: Spec,
    dynamics: Dynamics,
    head: Head,
    norm: Norm = NormSiLU,
    layers: int = 0,
    scale: float = 1.0,
) -> WorldModel:
    """The world model for what `spec` gives to see; `layers` and `scale` are those of reward's and
    continue's networks.

    Raises:
      ValueError: sizes that do not fit together, those of several pictures included, naming the
        setting.
    """
    block = config.fold if config.vision == "folded" else 1
    _check_pictures(spec, block)
    kinds = jax.eval_shape(lambda: prepare(nothing_seen(spec, (1,)), block))
    encoders, decoders = {}, {}
    if "image" in kinds:
        encoder, decoder = _vision(config, kinds["image"].shape[1:], norm)
        if config.centre == "mean":
            encoder, decoder = CentredEncoder(encoder), CentredDecoder(decoder)
        encoders["image"], decoders["image"] = encoder, decoder
    if "vector" in kinds:
        encoders["vector"] = mlp(config, config.units, norm)
        decoders["vector"] = mlp(config, kinds["vector"].shape[-1], norm)
    return WorldModel(
        encoder=SenseEncoder(encoders),
        dynamics=dynamics,
        decoder=SenseDecoder(decoders),
        reward=mlp(config, head.outputs, norm, layers, scale),
        cont=mlp(config, 1, norm, layers),
        head=head,
        fold=block,
        error_scale=config.error_scale,
    )


def _check_pictures(spec: Spec, block: int) -> None:
    """Raises ValueError where they cannot be folded or put on top of each other."""
    sides = {name: shape[:2] for name, (shape, dtype) in spec.obs.items() if dtype == "uint8"}
    for name, (height, width) in sides.items():
        if height % block or width % block:
            fitting = max(1, min(height, width) // block) * block
            raise ValueError(
                f"agent.fold={block} must divide {name}, {height}x{width}; choose a size that it "
                f"divides, as --env.size {fitting} (--env.pixels where they are rendered), or "
                "another --agent.fold"
            )
    for one, other in itertools.pairwise(sides):
        if sides[one] != sides[other]:
            said = " and ".join(f'"{x}", {sides[x][0]}x{sides[x][1]},' for x in (one, other))
            raise ValueError(
                f"the pictures {said} are seen on top of each other and must have one size; give "
                "all of them one with --env.size, as --env.size=64"
            )


def _vision(config: NetworkConfig, shape: tuple[int, int, int], norm: Norm):
    if config.vision == "halving":
        return HalvingEncoder(config.depth, norm), DoublingDecoder(config.depth, shape, norm)
    if not config.decoder:
        raise ValueError("agent.decoder is empty; name its layers, or use agent.vision=halving")
    decoder = Decoder(*fitted(config.decoder_base, config.decoder, shape), shape, norm)
    return Encoder(config.encoder, config.embed, norm), decoder
