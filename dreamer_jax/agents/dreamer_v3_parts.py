"""What DreamerV3 is made of: networks, optimiser and the state of a learner."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct

from dreamer_jax.agents.dreamer_v3_config import DreamerV3Config
from dreamer_jax.agents.networks import make_world, mlp
from dreamer_jax.nn.blocks import MLP, NormSiLU, RMSNormSiLU
from dreamer_jax.ops.categorical import estimator
from dreamer_jax.ops.heads import Head, gaussian_head, symlog_two_hot_head, two_hot_head
from dreamer_jax.ops.keys import named_key
from dreamer_jax.ops.moments import Range, init_range
from dreamer_jax.ops.optimisers import clipped_adam, dreamer_v3_optimiser
from dreamer_jax.policies import Policy, bounded_normal, one_hot
from dreamer_jax.types import Params, Spec
from dreamer_jax.world_models.discrete_rssm import DiscreteRSSM, Storage, by_class, whole
from dreamer_jax.world_models.dynamics import discrete_dynamics
from dreamer_jax.world_models.model import WorldModel


@struct.dataclass
class DreamerV3State:
    """Everything a learner is. `step` counts updates and is the same for all learners."""

    params: Params  # by part
    slow: Params  # of the value network
    opt: optax.OptState
    returns: Range
    step: jax.Array  # int32 []


class Parts(NamedTuple):
    """The networks, and what goes with them; each can be swapped for another of the same call."""

    world: WorldModel
    storage: Storage  # of states in the replay
    actor: MLP
    value: MLP
    policy: Policy
    head: Head  # what the value network's outputs mean


def make_parts(config: DreamerV3Config, spec: Spec) -> Parts:
    """Build the modules.

    Raises:
      ValueError: sizes that do not fit together, naming the setting.
    """
    policy = bounded_normal(spec.action, config.actor_min_std)
    if spec.discrete:
        policy = one_hot(spec.action, config.unimix)
    norm = {"rms": RMSNormSiLU, "layer": NormSiLU}[config.norm]
    rssm = DiscreteRSSM(
        config.deter,
        config.latents,
        config.classes,
        config.hidden,
        config.blocks,
        config.prior_layers,
        config.unimix,
        norm,
    )
    heads = {"two_hot": two_hot_head, "symlog_two_hot": symlog_two_hot_head}
    head = heads[config.numbers](config.bins) if config.numbers in heads else gaussian_head()
    dynamics = discrete_dynamics(rssm, estimator(config.estimator, config.temperature))
    return Parts(
        world=make_world(config, spec, dynamics, head, norm, config.head_layers, scale=0.0),
        storage=(whole if config.estimator == "gumbel_softmax" else by_class)(rssm),
        actor=mlp(config, policy.outputs, norm, scale=0.01),
        value=mlp(config, head.outputs, norm, scale=0.0),
        policy=policy,
        head=head,
    )


def make_optimiser(config: DreamerV3Config) -> optax.GradientTransformation:
    """LaProp behind AGC for all weights, or an Adam each for model, actor and value."""
    if config.optimiser == "laprop":
        return dreamer_v3_optimiser(config.lr, config.agc, config.warmup, config.lr_anneal)
    groups = {"actor": "actor", "value": "value"}

    def by_group(params):
        return {name: groups.get(name, "model") for name in params}

    falls = config.lr_anneal
    adams = {name: clipped_adam(config.behaviour_lr, 1e-5, 100.0, falls) for name in groups}
    adams["model"] = clipped_adam(config.lr, 1e-8, 1000.0, falls)
    return optax.multi_transform(adams, by_group)


def init_state(parts: Parts, spec: Spec, key, optimiser) -> DreamerV3State:
    """Parameters of every part from its own key; the slow value network is a copy."""
    params, features = parts.world.init(key, spec), jnp.zeros((1, parts.world.dynamics.size))
    for name in ("actor", "value"):
        params[name] = getattr(parts, name).init(named_key(key, name), features)
    return DreamerV3State(
        params=params,
        slow=jax.tree.map(jnp.copy, params["value"]),
        opt=optimiser.init(params),
        returns=init_range(),
        step=jnp.zeros((), jnp.int32),
    )
