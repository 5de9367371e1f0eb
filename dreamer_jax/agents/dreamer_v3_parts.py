"""What DreamerV3 is made of: networks, optimiser and the state of a learner."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct

from dreamer_jax.agents.dreamer_v3_config import DreamerV3Config
from dreamer_jax.nn.blocks import MLP, RMSNormSiLU
from dreamer_jax.nn.vision import Decoder, DoublingDecoder, Encoder, HalvingEncoder
from dreamer_jax.ops.keys import named_key
from dreamer_jax.ops.moments import Range, init_range
from dreamer_jax.policies import Policy, bounded_normal, one_hot
from dreamer_jax.types import Params, Spec
from dreamer_jax.world_models.discrete_rssm import DiscreteRSSM
from dreamer_jax.world_models.dynamics import Dynamics, discrete_dynamics
from dreamer_jax.world_models.senses import SenseDecoder, SenseEncoder, nothing_seen, prepare


@struct.dataclass
class DreamerV3State:
    """Everything a learner is. `step` counts updates and is the same for all learners."""

    params: Params  # by part
    slow: Params  # of the value network
    opt: optax.OptState
    returns: Range
    step: jax.Array  # int32 []


class Parts(NamedTuple):
    """The networks; each can be swapped for another of the same call."""

    encoder: SenseEncoder
    dynamics: Dynamics
    decoder: SenseDecoder
    reward: MLP
    cont: MLP
    actor: MLP
    value: MLP
    policy: Policy


def make_parts(config: DreamerV3Config, spec: Spec) -> Parts:
    """Build the modules.

    Raises:
      ValueError: sizes that do not fit together, naming the setting.
    """
    kinds = jax.eval_shape(lambda: prepare(nothing_seen(spec, (1,)), config.fold))
    encoders, decoders = {}, {}
    if "image" in kinds:
        encoders["image"], decoders["image"] = _vision(config, kinds["image"].shape[1:])
    if "vector" in kinds:
        size = kinds["vector"].shape[-1]
        encoders["vector"] = _mlp(config, config.layers, config.units)
        decoders["vector"] = _mlp(config, config.layers, size)
    policy = one_hot(spec.action, config.unimix) if spec.discrete else bounded_normal(spec.action)
    rssm = DiscreteRSSM(
        config.deter,
        config.latents,
        config.classes,
        config.hidden,
        config.blocks,
        config.prior_layers,
        config.unimix,
    )
    return Parts(
        encoder=SenseEncoder(encoders),
        dynamics=discrete_dynamics(rssm),
        decoder=SenseDecoder(decoders),
        reward=_mlp(config, 1, config.bins, scale=0.0),
        cont=_mlp(config, 1, 1),
        actor=_mlp(config, config.layers, policy.outputs, scale=0.01),
        value=_mlp(config, config.layers, config.bins, scale=0.0),
        policy=policy,
    )


def _mlp(config: DreamerV3Config, layers: int, out: int, scale: float = 1.0) -> MLP:
    return MLP(layers + 1, config.units, out, scale, RMSNormSiLU)


def _vision(config: DreamerV3Config, shape: tuple[int, int, int]):
    if config.vision == "halving":
        return HalvingEncoder(config.depth), DoublingDecoder(config.depth, shape)
    if not config.decoder or config.decoder[-1][0] != shape[-1]:
        raise ValueError(f"agent.decoder must end with {shape[-1]} features (channels x fold^2)")
    return (
        Encoder(config.encoder, config.embed, RMSNormSiLU),
        Decoder(config.decoder_base, config.decoder, shape, RMSNormSiLU),
    )


def init_state(parts: Parts, spec: Spec, config, key, optimiser) -> DreamerV3State:
    """Parameters of every part from its own key; the slow value network is a copy."""
    kinds = prepare(nothing_seen(spec, (1,)), config.fold)
    encoder = parts.encoder.init(named_key(key, "encoder"), kinds)
    embed = parts.encoder.apply(encoder, kinds)
    features = jnp.zeros((1, parts.dynamics.size))
    action = jnp.zeros((1, spec.action))
    params = {
        "encoder": encoder,
        "dynamics": parts.dynamics.module.init(named_key(key, "dynamics"), embed, action),
    }
    for name in ("decoder", "reward", "cont", "actor", "value"):
        params[name] = getattr(parts, name).init(named_key(key, name), features)
    return DreamerV3State(
        params=params,
        slow=jax.tree.map(jnp.copy, params["value"]),
        opt=optimiser.init(params),
        returns=init_range(),
        step=jnp.zeros((), jnp.int32),
    )
