"""What DLC-V1 is made of: networks, optimisers and the state of a learner."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct

from dreamer_jax.agents.dlc_v1_config import DLCConfig
from dreamer_jax.nn.blocks import MLP
from dreamer_jax.nn.conv import fold, to_unit
from dreamer_jax.nn.vision import Decoder, Encoder
from dreamer_jax.ops.keys import named_key
from dreamer_jax.ops.optimisers import clipped_adam
from dreamer_jax.types import Params, Spec
from dreamer_jax.world_models.rssm import RSSM


@struct.dataclass
class DLCState:
    """Everything a learner is. `step` counts updates and is the same for all learners."""

    model: Params
    actor: Params
    critic: Params
    target: Params
    model_opt: optax.OptState
    actor_opt: optax.OptState
    critic_opt: optax.OptState
    step: jax.Array  # int32 []


class Parts(NamedTuple):
    """The networks; each can be swapped for another module of the same call."""

    encoder: Encoder
    rssm: RSSM
    decoder: Decoder
    reward: MLP
    cont: MLP
    actor: MLP
    critic: MLP


class Optimisers(NamedTuple):
    """One for each group of parameters."""

    model: optax.GradientTransformation
    actor: optax.GradientTransformation
    critic: optax.GradientTransformation


def make_parts(config: DLCConfig, spec: Spec) -> Parts:
    """Build the modules.

    Raises:
      ValueError: sizes that do not fit together, naming the setting; no picture "image", or more
        than that to see; discrete actions, which a gradient through the dynamics cannot choose
        among.
    """
    height, width, channels = spec.image
    if others := [f'"{name}"' for name in spec.obs if name != "image"]:
        raise ValueError(
            'the agent dlc_v1 sees the picture "image" alone, but the environment also gives '
            f"{', '.join(others)}; choose an agent that reads all, as --agent dreamer_v3"
        )
    if spec.discrete:
        raise ValueError(
            f"the agent dlc_v1 acts continuously, but here one of {spec.action} actions is to be "
            "taken; choose another, as --agent dreamer_v3"
        )
    if height % config.fold or width % config.fold:
        raise ValueError(f"agent.fold={config.fold} must divide the image, {height}x{width}")
    folded = (height // config.fold, width // config.fold, channels * config.fold**2)
    if config.decoder[-1][0] != folded[-1]:
        raise ValueError(
            f"agent.decoder must end with {folded[-1]} features (3 x fold^2), "
            f"not {config.decoder[-1][0]}"
        )
    head = MLP(config.head_layers, config.head, 1)
    return Parts(
        encoder=Encoder(config.encoder, config.embed),
        rssm=RSSM(
            config.deter,
            config.stoch,
            config.hidden,
            config.posterior_layers,
            config.prior_layers,
            config.min_std,
        ),
        decoder=Decoder(config.decoder_base, config.decoder, folded),
        reward=head,
        cont=head,
        actor=MLP(config.actor_layers, config.head, 2 * spec.action),
        critic=MLP(config.head_layers, config.head, 1, out_scale=0.0),
    )


def make_optimisers(config: DLCConfig) -> Optimisers:
    """Adam with a clipped global norm for each of the three."""
    eps, clip = config.actor_critic_eps, config.actor_critic_clip

    def adam(lr: float, eps: float, clip: float, every: int = 1):
        return clipped_adam(lr, eps, clip, config.lr_anneal // every)

    return Optimisers(
        model=adam(config.model_lr, config.model_eps, config.model_clip),
        actor=adam(config.actor_lr, eps, clip, config.actor_interval),
        critic=adam(config.critic_lr, eps, clip),
    )


def init_state(parts, spec, config, key, optimisers: Optimisers) -> DLCState:
    """Parameters of every part from its own key; the target is a copy of the critic."""
    image = jnp.zeros((1, *spec.image), jnp.uint8)
    features = jnp.zeros((1, config.deter + config.stoch))
    inputs = {
        "encoder": (to_unit(fold(image, config.fold)),),
        "rssm": (jnp.zeros((1, config.embed)), jnp.zeros((1, spec.action))),
    }
    params = {
        name: part.init(named_key(key, name), *inputs.get(name, (features,)))
        for name, part in parts._asdict().items()
    }
    actor, critic = params.pop("actor"), params.pop("critic")
    return DLCState(
        model=params,
        actor=actor,
        critic=critic,
        target=jax.tree.map(jnp.copy, critic),
        model_opt=optimisers.model.init(params),
        actor_opt=optimisers.actor.init(actor),
        critic_opt=optimisers.critic.init(critic),
        step=jnp.zeros((), jnp.int32),
    )
