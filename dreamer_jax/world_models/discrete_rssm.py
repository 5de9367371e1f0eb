"""Recurrent state-space model with categorical latents, with DreamerV3's block GRU and norms.

    h_t = BlockGRU(h_{t-1}, [h_{t-1}, z_{t-1}, a_{t-1}])     each input behind a layer of its own
    prior      p(z_t | h_t)                                  V latents of K classes
    posterior  q(z_t | h_t, e_t)

As in `rssm`, the embeddings' share of the posterior's first layer is one product outside the scan,
and the prior of a whole sequence is computed after it. How samples pass on gradients is an
argument: any `(key, logits) -> [..., V, K]`, see `ops.categorical`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from dreamer_jax.nn.blocks import Linear, RMSNormSiLU
from dreamer_jax.nn.recurrent import BlockGRU
from dreamer_jax.ops.categorical import straight_through, unimix
from dreamer_jax.types import DiscreteState, Params

Estimator = Callable[[jax.Array, jax.Array], jax.Array]


class DiscreteRSSM(nn.Module):
    """One step of each path; sequences are the functions below."""

    streams = 3  # that `read` gives

    deter: int
    latents: int
    classes: int
    hidden: int
    blocks: int = 8
    prior_layers: int = 2  # hidden layers of the prior
    unimix: float = 0.01
    norm: type[nn.Module] = RMSNormSiLU

    def setup(self):
        self.inputs = [Linear(self.hidden) for _ in range(self.streams)]
        self.input_norms = [self.norm() for _ in range(self.streams)]
        self.cell = BlockGRU(self.deter, self.blocks, self.norm)
        self.prior_hidden = [Linear(self.hidden) for _ in range(self.prior_layers)]
        self.prior_norms = [self.norm() for _ in range(self.prior_layers)]
        self.prior_out = Linear(self.latents * self.classes)
        self.post_embed = Linear(self.hidden, use_bias=False)  # that of `post_deter` is enough
        self.post_deter = Linear(self.hidden)
        self.post_norm = self.norm()
        self.post_out = Linear(self.latents * self.classes)

    def read(self, deter: jax.Array, stoch: jax.Array, action: jax.Array) -> tuple[jax.Array, ...]:
        """What the GRU reads, each behind a layer of its own."""
        return deter, stoch, action

    def project(self, embed: jax.Array) -> jax.Array:
        """The embedding's share of the posterior's first layer: [..., E] -> [..., hidden]."""
        return self.post_embed(embed)

    def recur(self, deter: jax.Array, stoch: jax.Array, action: jax.Array) -> jax.Array:
        """h_{t-1}, z_{t-1}, a_{t-1} -> h_t. Actions beyond [-1, 1] are scaled back to it."""
        action = action / jax.lax.stop_gradient(jnp.maximum(1.0, jnp.abs(action)))
        streams = self.read(deter, stoch, action)
        parts = zip(self.input_norms, self.inputs, streams, strict=True)
        return self.cell(deter, jnp.concatenate([norm(f(x)) for norm, f, x in parts], axis=-1))

    def prior(self, deter: jax.Array) -> jax.Array:
        """h_t -> log-probabilities [..., V, K] of p(z_t | h_t)."""
        x = deter
        for norm, layer in zip(self.prior_norms, self.prior_hidden, strict=True):
            x = norm(layer(x))
        return self._logits(self.prior_out(x))

    def posterior(self, deter: jax.Array, projected: jax.Array) -> jax.Array:
        """h_t and the projected embedding -> log-probabilities [..., V, K] of q(z_t | h_t, e_t)."""
        return self._logits(self.post_out(self.post_norm(self.post_deter(deter) + projected)))

    def _logits(self, x: jax.Array) -> jax.Array:
        return unimix(x.reshape(*x.shape[:-1], self.latents, self.classes), self.unimix)

    def __call__(self, embed: jax.Array, action: jax.Array) -> jax.Array:
        """Touches every parameter once; only for `init`."""
        state = initial_state(self, embed.shape[:1])
        deter = self.recur(state.deter, state.stoch, action)
        return self.prior(deter) + self.posterior(deter, self.project(embed))


class JoinedRSSM(DiscreteRSSM):
    """Latent and action behind one layer (DreamerV2).

    There the norm divides by the size of both. Behind a layer of the action's own it hides how
    large an action is until the bias has grown, and a gradient through it turns actions but does
    not shorten them.
    """

    streams = 2

    def read(self, deter: jax.Array, stoch: jax.Array, action: jax.Array) -> tuple[jax.Array, ...]:
        """State; latent and action."""
        return deter, jnp.concatenate([stoch, action], axis=-1)


def initial_state(rssm: DiscreteRSSM, lead: tuple[int, ...]) -> DiscreteState:
    """All zeros, the state before the first observation of an episode."""
    size = rssm.latents * rssm.classes
    return DiscreteState(
        jnp.zeros((*lead, rssm.deter)),
        jnp.zeros((*lead, size)),
        jnp.zeros((*lead, rssm.latents, rssm.classes)),
    )


@struct.dataclass
class Compact:
    """A state as the replay keeps it."""

    deter: jax.Array  # float16 [..., D]; a mixture of tanhs, so in [-1, 1]
    chosen: jax.Array  # uint8 or uint16 [..., V], the class of each variable, from 1; 0: none


def pack(rssm: DiscreteRSSM, state: DiscreteState) -> Compact:
    """What `unpack` needs; a soft sample becomes its largest class. Zeros stay zeros."""
    stoch = state.stoch.reshape(*state.stoch.shape[:-1], rssm.latents, rssm.classes)
    chosen = jnp.where(jnp.any(stoch > 0, axis=-1), jnp.argmax(stoch, axis=-1) + 1, 0)
    kind = jnp.uint8 if rssm.classes <= 255 else jnp.uint16
    return Compact(state.deter.astype(jnp.float16), chosen.astype(kind))


def unpack(rssm: DiscreteRSSM, compact: Compact) -> DiscreteState:
    """The state to go on from; its logits, which nothing that follows reads, are zero."""
    lead = compact.chosen.shape[:-1]
    stoch = jax.nn.one_hot(compact.chosen.astype(jnp.int32) - 1, rssm.classes)
    deter = compact.deter.astype(jnp.float32)
    return initial_state(rssm, lead).replace(deter=deter, stoch=stoch.reshape(*lead, -1))


class Storage(NamedTuple):
    """How the replay keeps states: `pack(state)` gives what `unpack` goes on from."""

    pack: Callable
    unpack: Callable


def by_class(rssm: DiscreteRSSM) -> Storage:
    """For one-hot samples: 1 byte or 2 a variable."""
    return Storage(partial(pack, rssm), partial(unpack, rssm))


def whole(rssm: DiscreteRSSM) -> Storage:
    """For soft samples, which their largest class would change: float16 [..., D + V K]."""

    def pack_whole(state: DiscreteState) -> jax.Array:
        return state.features.astype(jnp.float16)

    def unpack_whole(kept: jax.Array) -> DiscreteState:
        deter, stoch = jnp.split(kept.astype(jnp.float32), [rssm.deter], axis=-1)
        return initial_state(rssm, kept.shape[:-1]).replace(deter=deter, stoch=stoch)

    return Storage(pack_whole, unpack_whole)


def _state(deter: jax.Array, logits: jax.Array, key: jax.Array, draw: Estimator) -> DiscreteState:
    stoch = draw(key, logits)
    return DiscreteState(deter, stoch.reshape(*stoch.shape[:-2], -1), logits)


def observe(
    rssm: DiscreteRSSM,
    params: Params,
    embed: jax.Array,
    prev_action: jax.Array,
    is_first: jax.Array,
    start: DiscreteState,
    key: jax.Array,
    draw: Estimator = straight_through,
) -> tuple[DiscreteState, jax.Array]:
    """Filter a sequence of embeddings.

    Args:
      embed: [T, B, E]; prev_action: [T, B, A], entry t led to observation t; is_first: bool [T, B],
        where True state and action are set to zero before the step.
      start: state before the sequence, leading axis [B].

    Returns:
      posterior states [T, B, ...] and the prior's log-probabilities [T, B, V, K].
    """
    length, batch = is_first.shape
    chex.assert_shape([embed, prev_action], (length, batch, None))
    projected = rssm.apply(params, embed, method=rssm.project)

    def step(carry, inputs):
        state = _filter(rssm, params, *carry, *inputs, draw)
        return (state.deter, state.stoch), state

    inputs = (prev_action, projected, is_first, jax.random.split(key, length))
    _, states = jax.lax.scan(step, (start.deter, start.stoch), inputs)
    return states, rssm.apply(params, states.deter, method=rssm.prior)


def observe_step(
    rssm: DiscreteRSSM,
    params: Params,
    state: DiscreteState,
    prev_action: jax.Array,
    embed: jax.Array,
    is_first: jax.Array,
    key: jax.Array,
    draw: Estimator = straight_through,
) -> DiscreteState:
    """One step of `observe` for acting: state [N, ...], embed [N, E]."""
    projected = rssm.apply(params, embed, method=rssm.project)
    carry = (state.deter, state.stoch)
    return _filter(rssm, params, *carry, prev_action, projected, is_first, key, draw)


def _filter(rssm, params, deter, stoch, action, projected, is_first, key, draw) -> DiscreteState:
    keep = 1.0 - is_first[..., None].astype(jnp.float32)
    deter = rssm.apply(params, deter * keep, stoch * keep, action * keep, method=rssm.recur)
    return _state(deter, rssm.apply(params, deter, projected, method=rssm.posterior), key, draw)


def imagine_step(
    rssm: DiscreteRSSM,
    params: Params,
    state: DiscreteState,
    action: jax.Array,
    key: jax.Array,
    draw: Estimator = straight_through,
) -> DiscreteState:
    """One step of the prior: no observation. Differentiable in state and action."""
    deter = rssm.apply(params, state.deter, state.stoch, action, method=rssm.recur)
    return _state(deter, rssm.apply(params, deter, method=rssm.prior), key, draw)
