"""Both latent dynamics behind the same calls, so that an agent can take either."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dreamer_jax.ops.categorical import straight_through
from dreamer_jax.world_models import discrete_rssm, rssm
from dreamer_jax.world_models.discrete_rssm import DiscreteRSSM, Estimator
from dreamer_jax.world_models.rssm import RSSM


class Dynamics(NamedTuple):
    """A recurrent state-space model as pure functions; states have `.deter` and `.features`.

    module:  the Flax module, for `init(key, embed [B, E], action [B, A])`
    size:    of the features
    initial: (lead shape) -> state before the first observation
    observe: (params, embed [T, B, E], prev_action [T, B, A], is_first [T, B], start, key)
             -> posterior states [T, B, ...], parameters of the prior
    filter:  (params, state, prev_action [N, A], embed [N, E], is_first [N], key or None) -> state;
             without a key the most probable latent
    imagine: (params, state, action, key or None) -> state, likewise
    """

    module: Any
    size: int
    initial: Callable
    observe: Callable
    filter: Callable
    imagine: Callable


def gaussian_dynamics(module: RSSM) -> Dynamics:
    """Of a Gaussian RSSM; the prior is (mean, std)."""

    def noise(state, key):
        return 0.0 if key is None else jax.random.normal(key, state.stoch.shape)

    def filter_(params, state, prev_action, embed, is_first, key):
        args = (module, params, state, prev_action, embed, is_first)
        return rssm.observe_step(*args, noise(state, key))

    return Dynamics(
        module,
        module.deter + module.stoch,
        lambda lead: rssm.initial_state(module, lead),
        lambda *args: rssm.observe(module, *args),
        filter_,
        lambda params, state, action, key: rssm.imagine_step(
            module, params, state, action, noise(state, key)
        ),
    )


def discrete_dynamics(module: DiscreteRSSM, draw: Estimator = straight_through) -> Dynamics:
    """Of an RSSM with categorical latents, whose samples pass on gradients as `draw` does; the
    prior is log-probabilities [T, B, V, K]."""

    def chosen(key):
        return (jax.random.key(0), _most_probable) if key is None else (key, draw)

    return Dynamics(
        module,
        module.deter + module.latents * module.classes,
        lambda lead: discrete_rssm.initial_state(module, lead),
        lambda *args: discrete_rssm.observe(module, *args, draw),
        lambda *args: discrete_rssm.observe_step(module, *args[:-1], *chosen(args[-1])),
        lambda *args: discrete_rssm.imagine_step(module, *args[:-1], *chosen(args[-1])),
    )


def _most_probable(key: jax.Array, logits: jax.Array) -> jax.Array:
    return jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1])
