"""DreamerV1 (Hafner et al. 2020, algorithm 1): values and gradients through learnt dynamics.

update:  batch -> posterior states -> reconstruction, reward, continue, KL above its free nats
         the last states of each sequence -> rollout of H steps -> lambda-returns
         actor: maximise the returns, by their gradient through the dynamics
         value: regress the returns

Dense layers and the GRU have LayerNorms, and SiLU stands for ELU; published were none.
"""

from __future__ import annotations

from functools import partial

import jax.numpy as jnp

from dreamer_jax.agents.dreamer_v1_config import DreamerV1Config
from dreamer_jax.agents.groups import Parts, Rules, make_group_agent
from dreamer_jax.agents.networks import make_world, mlp
from dreamer_jax.nn.blocks import NormSiLU
from dreamer_jax.ops import gaussian
from dreamer_jax.ops.heads import gaussian_head
from dreamer_jax.ops.optimisers import clipped_adam
from dreamer_jax.policies import explore, one_hot, tanh_normal
from dreamer_jax.types import Agent, Spec
from dreamer_jax.world_models.dynamics import gaussian_dynamics
from dreamer_jax.world_models.rssm import RSSM


def make_dreamer_v1(config: DreamerV1Config, spec: Spec) -> Agent:
    """The agent as pure functions. Raises ValueError for sizes that do not fit together."""
    rssm = RSSM(config.deter, config.stoch, config.hidden, 2, 2, config.min_std)
    policy = one_hot(spec.action, 0.0) if spec.discrete else tanh_normal(spec.action)
    parts = Parts(
        world=make_world(config, spec, gaussian_dynamics(rssm), gaussian_head()),
        actor=mlp(config, policy.outputs, NormSiLU),
        value=mlp(config, 1, NormSiLU),
        policy=policy,
        head=gaussian_head(),
    )
    rates = {"model": config.model_lr, "actor": config.actor_lr, "value": config.value_lr}
    optimisers = {name: clipped_adam(rate, 1e-8, config.clip) for name, rate in rates.items()}

    def kl(posterior, prior):
        """Free nats of the mean: below them the posterior costs nothing."""
        nats = jnp.mean(gaussian.kl(posterior.mean, posterior.std, *prior))
        return config.kl_scale * jnp.maximum(nats, config.free_nats), nats

    def objective(raw, actions, returns, values):
        """Equation 7; the gradient is that of the learnt dynamics."""
        return returns

    def slow(old, value, updates):
        """Returns are valued by the value network itself."""
        return value

    wander = partial(explore, discrete=spec.discrete, amount=config.exploration)
    return make_group_agent(parts, spec, config, optimisers, Rules(kl, objective, slow, wander))
