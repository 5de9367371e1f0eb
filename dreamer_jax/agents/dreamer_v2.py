"""DreamerV2 (Hafner et al. 2021): categorical latents, KL balancing, REINFORCE and dynamics mixed.

update:  batch -> posterior states -> reconstruction, reward, continue, balanced KL
         the last states of each sequence -> rollout of H steps -> lambda-returns of the slow value
         network
         actor: rho REINFORCE + (1 - rho) gradient through the dynamics + entropy
         value: regress the returns;  slow value: a copy, every so many updates

The recurrent network is DreamerV3's with one block, latent and action behind one layer, and SiLU
stands for ELU.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from dreamer_jax.agents.dreamer_v2_config import DreamerV2Config
from dreamer_jax.agents.groups import Parts, Rules, make_group_agent
from dreamer_jax.agents.networks import make_world, mlp
from dreamer_jax.nn.blocks import NormSiLU
from dreamer_jax.nn.centred import learnt
from dreamer_jax.ops import categorical
from dreamer_jax.ops.heads import gaussian_head
from dreamer_jax.ops.optimisers import clipped_adamw
from dreamer_jax.policies import one_hot, truncated_normal
from dreamer_jax.types import Agent, Spec
from dreamer_jax.world_models.discrete_rssm import JoinedRSSM
from dreamer_jax.world_models.dynamics import discrete_dynamics


def make_dreamer_v2(config: DreamerV2Config, spec: Spec) -> Agent:
    """The agent as pure functions. Raises ValueError for sizes that do not fit together."""
    sizes = (config.deter, config.latents, config.classes, config.hidden, config.blocks)
    rssm = JoinedRSSM(*sizes, prior_layers=1, unimix=0.0, norm=NormSiLU)
    policy = one_hot(spec.action, 0.0) if spec.discrete else truncated_normal(spec.action)
    draw = categorical.estimator(config.estimator, config.temperature)
    parts = Parts(
        world=make_world(config, spec, discrete_dynamics(rssm, draw), gaussian_head()),
        actor=mlp(config, policy.outputs, NormSiLU),
        value=mlp(config, 1, NormSiLU),
        policy=policy,
        head=gaussian_head(),
    )
    rates = {"model": config.model_lr, "actor": config.actor_lr, "value": config.value_lr}
    optimisers = {
        name: clipped_adamw(rate, 1e-5, config.clip, config.weight_decay, learnt)
        for name, rate in rates.items()
    }

    rho, entropy_scale = config.reinforce, config.entropy_scale
    if rho is None:
        rho = 1.0 if spec.discrete else 0.0
    if entropy_scale is None:
        entropy_scale = 1e-3 if spec.discrete else 1e-4

    def kl(posterior, prior):
        """Algorithm 2: the prior is drawn to the posterior more than the other way round."""
        balanced, nats = categorical.balanced_kl(posterior.logits, prior, config.kl_balance)
        weighted = config.kl_scale * jnp.maximum(jnp.mean(balanced), config.free_nats)
        return weighted, jnp.mean(nats)

    def objective(raw, actions, returns, values):
        """Equation 6: score times advantage, the returns' own gradient, entropy."""
        advantage = jax.lax.stop_gradient(returns) - values
        score = parts.policy.log_prob(raw, actions) * advantage
        bonus = entropy_scale * parts.policy.entropy(raw)
        return rho * score + (1.0 - rho) * returns + bonus

    def slow(old, value, updates):
        """A copy, every `slow_every` updates."""
        due = updates % config.slow_every == 0
        return jax.tree.map(lambda o, v: jnp.where(due, v, o), old, value)

    reward = {"none": lambda reward: reward, "tanh": jnp.tanh}[config.reward_transform]
    rules = Rules(kl, objective, slow, reward=reward)
    return make_group_agent(parts, spec, config, optimisers, rules)
