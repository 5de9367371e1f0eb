"""Recurrent state-space model with a Gaussian latent (Hafner et al. 2019, section 3).

    h_t = GRU(h_{t-1}, [z_{t-1}, a_{t-1}])      deterministic path
    prior      p(z_t | h_t)                     "transition" MLP
    posterior  q(z_t | h_t, e_t)                "representation" MLP

The posterior's first layer is split, W [h; e] = W_h h + W_e e, so that the part of the embeddings
is one large product outside the scan; the prior of a whole sequence is computed after the scan.
"""

from __future__ import annotations

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from dreamer_jax.nn.blocks import MLP, Linear, NormSiLU
from dreamer_jax.nn.recurrent import LayerNormGRU
from dreamer_jax.types import LatentState, Params


class RSSM(nn.Module):
    """One step of each path; sequences are the functions below."""

    deter: int
    stoch: int
    hidden: int
    posterior_layers: int  # linear layers of the representation MLP, the output among them (>= 2)
    prior_layers: int  # the same of the transition MLP
    min_std: float

    def setup(self):
        self.input = Linear(self.hidden)
        self.input_norm = NormSiLU()
        self.cell = LayerNormGRU(self.deter)
        self.prior_net = MLP(self.prior_layers, self.hidden, 2 * self.stoch)
        self.post_embed = Linear(self.hidden, use_bias=False)  # that of `post_deter` is enough
        self.post_deter = Linear(self.hidden)
        self.post_norm = NormSiLU()
        self.post_net = MLP(self.posterior_layers - 1, self.hidden, 2 * self.stoch)

    def project(self, embed: jax.Array) -> jax.Array:
        """The embedding's share of the posterior's first layer: [..., E] -> [..., hidden]."""
        return self.post_embed(embed)

    def recur(self, deter: jax.Array, stoch: jax.Array, action: jax.Array) -> jax.Array:
        """h_{t-1}, z_{t-1}, a_{t-1} -> h_t."""
        x = self.input_norm(self.input(jnp.concatenate([stoch, action], axis=-1)))
        return self.cell(deter, x)

    def prior(self, deter: jax.Array) -> tuple[jax.Array, jax.Array]:
        """h_t -> mean, std of p(z_t | h_t)."""
        return self._gaussian(self.prior_net(deter))

    def posterior(self, deter: jax.Array, projected: jax.Array) -> tuple[jax.Array, jax.Array]:
        """h_t and the projected embedding -> mean, std of q(z_t | h_t, e_t)."""
        x = self.post_norm(self.post_deter(deter) + projected)
        return self._gaussian(self.post_net(x))

    def _gaussian(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        mean, raw = jnp.split(x, 2, axis=-1)
        return mean, nn.softplus(raw) + self.min_std

    def __call__(self, embed: jax.Array, action: jax.Array) -> jax.Array:
        """Touches every parameter once; only for `init`."""
        deter = jnp.zeros((embed.shape[0], self.deter))
        stoch = jnp.zeros((embed.shape[0], self.stoch))
        deter = self.recur(deter, stoch, action)
        return self.prior(deter)[0] + self.posterior(deter, self.project(embed))[0]


def initial_state(rssm: RSSM, lead: tuple[int, ...]) -> LatentState:
    """All zeros, the state before the first observation of an episode."""
    zeros = jnp.zeros((*lead, rssm.stoch))
    return LatentState(jnp.zeros((*lead, rssm.deter)), zeros, zeros, zeros)


def observe(
    rssm: RSSM,
    params: Params,
    embed: jax.Array,
    prev_action: jax.Array,
    is_first: jax.Array,
    start: LatentState,
    key: jax.Array,
) -> tuple[LatentState, tuple[jax.Array, jax.Array]]:
    """Filter a sequence of embeddings.

    Args:
      embed: [T, B, E]; prev_action: [T, B, A], entry t led to observation t; is_first: bool [T, B],
        where True state and action are set to zero before the step.
      start: state before the sequence, leading axis [B].

    Returns:
      posterior states [T, B, ...] and the prior's (mean, std), each [T, B, Z].
    """
    length, batch = is_first.shape
    chex.assert_shape([embed, prev_action], (length, batch, None))
    projected = rssm.apply(params, embed, method=rssm.project)
    noise = jax.random.normal(key, (length, batch, rssm.stoch))

    def step(carry, inputs):
        state = _filter(rssm, params, *carry, *inputs)
        return (state.deter, state.stoch), state

    inputs = (prev_action, projected, is_first, noise)
    _, states = jax.lax.scan(step, (start.deter, start.stoch), inputs)
    return states, rssm.apply(params, states.deter, method=rssm.prior)


def observe_step(
    rssm: RSSM,
    params: Params,
    state: LatentState,
    prev_action: jax.Array,
    embed: jax.Array,
    is_first: jax.Array,
    noise: jax.Array,
) -> LatentState:
    """One step of `observe` for acting: state [N, ...], embed [N, E]; noise 0 is the mean."""
    projected = rssm.apply(params, embed, method=rssm.project)
    return _filter(rssm, params, state.deter, state.stoch, prev_action, projected, is_first, noise)


def _filter(rssm, params, deter, stoch, action, projected, is_first, noise) -> LatentState:
    keep = 1.0 - is_first[..., None].astype(jnp.float32)
    deter = rssm.apply(params, deter * keep, stoch * keep, action * keep, method=rssm.recur)
    mean, std = rssm.apply(params, deter, projected, method=rssm.posterior)
    return LatentState(deter, mean + std * noise, mean, std)


def imagine_step(
    rssm: RSSM, params: Params, state: LatentState, action: jax.Array, noise: jax.Array
) -> LatentState:
    """One step of the prior: no observation. Differentiable in state and action."""
    deter = rssm.apply(params, state.deter, state.stoch, action, method=rssm.recur)
    mean, std = rssm.apply(params, deter, method=rssm.prior)
    return LatentState(deter, mean + std * noise, mean, std)
