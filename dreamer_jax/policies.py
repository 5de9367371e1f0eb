"""Policies as distributions over actions: what an actor's raw outputs mean.

Each is a tuple of pure functions, so that agents are the same for continuous and discrete actions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.scipy.special import ndtr, ndtri

from dreamer_jax.ops import categorical, gaussian

FLAT = 2.0  # tanh is 0.96 there, and rises by 0.07


class Policy(NamedTuple):
    """A family of distributions over actions [..., A], A entries in [-1, 1] or one-hot.

    outputs:  number of raw values that the actor gives
    sample:   (raw [..., outputs], key) -> action [..., A]; differentiable in raw
    mode:     (raw) -> the action [..., A] of a deterministic evaluation: the likeliest, but for
              `tanh_normal` the median
    log_prob: (raw, action) -> [...] in nats; no gradient to the action
    entropy:  (raw) -> [...] in nats
    excess:   (raw) -> [...]: sum of squares by which raw means lie beyond `FLAT`, where tanh is
              nearly flat and little gradient is left
    """

    outputs: int
    sample: Callable[[jax.Array, jax.Array], jax.Array]
    mode: Callable[[jax.Array], jax.Array]
    log_prob: Callable[[jax.Array, jax.Array], jax.Array]
    entropy: Callable[[jax.Array], jax.Array]
    excess: Callable[[jax.Array], jax.Array]


def bounded_normal(size: int, min_std: float = 0.1, max_std: float = 1.0) -> Policy:
    """Normal with a mean in (-1, 1) and a standard deviation in (min_std, max_std) (DreamerV3).

    Samples are not clipped: whoever executes them clips, and `log_prob` is that of the Normal.
    """

    def split(raw):
        chex.assert_axis_dimension(raw, -1, 2 * size)
        mean, std = jnp.split(raw, 2, axis=-1)
        return jnp.tanh(mean), min_std + (max_std - min_std) * jax.nn.sigmoid(std + 2.0)

    def sample(raw, key):
        mean, std = split(raw)
        return mean + std * jax.random.normal(key, mean.shape)

    def log_prob(raw, action):
        mean, std = split(raw)
        return _normal_log_prob(mean, std, jax.lax.stop_gradient(action))

    return Policy(
        2 * size,
        sample,
        lambda raw: split(raw)[0],
        log_prob,
        lambda r: gaussian.entropy(split(r)[1]),
        lambda raw: _excess(raw, size),
    )


def truncated_normal(size: int, min_std: float = 0.1) -> Policy:
    """Normal cut off at -1 and 1, its mean in (-1, 1) (DreamerV2).

    A mean near a border leaves half of the Normal and half of its spread, so that an entropy bonus
    draws means back from there, where the entropy of `bounded_normal` knows nothing of them.
    Samples are quantiles of a uniform number, differentiable in mean and standard deviation.
    """

    def split(raw):
        chex.assert_axis_dimension(raw, -1, 2 * size)
        mean, std = jnp.split(raw, 2, axis=-1)
        mean, std = jnp.tanh(mean), 2.0 * jax.nn.sigmoid(std / 2.0) + min_std
        return mean, std, (-1.0 - mean) / std, (1.0 - mean) / std

    def mass(low, high):
        return ndtr(high) - ndtr(low)

    def sample(raw, key):
        mean, std, low, high = split(raw)
        part = ndtr(low) + mass(low, high) * jax.random.uniform(key, mean.shape)
        edge = 1e-6  # the quantiles of 0 and 1 are infinite
        action = mean + std * ndtri(jnp.clip(part, edge, 1.0 - edge))
        return jnp.clip(action, -1.0, 1.0)  # rounding

    def log_prob(raw, action):
        mean, std, low, high = split(raw)
        inside = jnp.sum(jnp.log(mass(low, high)), axis=-1)
        return _normal_log_prob(mean, std, jax.lax.stop_gradient(action)) - inside

    def entropy(raw):
        _, std, low, high = split(raw)
        inside = mass(low, high)
        bent = (low * _density(low) - high * _density(high)) / (2.0 * inside)
        return gaussian.entropy(std) + jnp.sum(jnp.log(inside) + bent, axis=-1)

    return Policy(
        2 * size,
        sample,
        lambda raw: split(raw)[0],
        log_prob,
        entropy,
        lambda raw: _excess(raw, size),
    )


def tanh_normal(size: int, min_std: float = 1e-4, start_std: float = 5.0) -> Policy:
    """tanh of a Normal (DreamerV1): always inside (-1, 1); means are kept within (-5, 5).

    The entropy has no closed form: given is that of the Normal before tanh. `mode` is the median;
    the authors take the likeliest of 100 samples, which lies nearer to the border where the Normal
    is wide.
    """
    offset = math.log(math.expm1(start_std))  # softplus of it is start_std

    def split(raw):
        chex.assert_axis_dimension(raw, -1, 2 * size)
        mean, std = jnp.split(raw, 2, axis=-1)
        return 5.0 * jnp.tanh(mean / 5.0), jax.nn.softplus(std + offset) + min_std

    def sample(raw, key):
        mean, std = split(raw)
        return jnp.tanh(mean + std * jax.random.normal(key, mean.shape))

    def log_prob(raw, action):
        mean, std = split(raw)
        action = jnp.clip(jax.lax.stop_gradient(action), -1.0 + 1e-6, 1.0 - 1e-6)
        slope = jnp.sum(jnp.log1p(-jnp.square(action)), axis=-1)
        return _normal_log_prob(mean, std, jnp.arctanh(action)) - slope

    return Policy(
        2 * size,
        sample,
        lambda raw: jnp.tanh(split(raw)[0]),
        log_prob,
        lambda raw: gaussian.entropy(split(raw)[1]),
        lambda raw: _excess(raw, size),
    )


def one_hot(size: int, unimix: float = 0.01) -> Policy:
    """Categorical with a share of the uniform one; samples are one-hot, straight-through."""

    def log_probs(raw):
        chex.assert_axis_dimension(raw, -1, size)
        return categorical.unimix(raw, unimix)

    def log_prob(raw, action):
        return jnp.sum(jax.lax.stop_gradient(action) * log_probs(raw), axis=-1)

    return Policy(
        size,
        lambda raw, key: categorical.straight_through(key, log_probs(raw)),
        lambda raw: jax.nn.one_hot(jnp.argmax(raw, axis=-1), size),
        log_prob,
        lambda raw: categorical.entropy(log_probs(raw)[..., None, :]),
        lambda raw: jnp.zeros(raw.shape[:-1]),
    )


def _excess(raw: jax.Array, size: int) -> jax.Array:
    beyond = jax.nn.relu(jnp.abs(raw[..., :size]) - FLAT)
    return jnp.sum(jnp.square(beyond), axis=-1)


def _density(x: jax.Array) -> jax.Array:
    return jnp.exp(-0.5 * jnp.square(x)) / math.sqrt(2.0 * math.pi)


def _normal_log_prob(mean: jax.Array, std: jax.Array, x: jax.Array) -> jax.Array:
    logs = -0.5 * jnp.square((x - mean) / std) - jnp.log(std) - 0.5 * math.log(2.0 * math.pi)
    return jnp.sum(logs, axis=-1)


def explore(action: jax.Array, key: jax.Array, discrete: bool, amount: float) -> jax.Array:
    """Noise for collection: of standard deviation `amount` on [..., A], or that share of uniformly
    random one-hot actions."""
    if not discrete:
        return action + amount * jax.random.normal(key, action.shape)
    key_whether, key_which = jax.random.split(key)
    whether = jax.random.bernoulli(key_whether, amount, action.shape[:-1])
    size = action.shape[-1]
    which = jax.nn.one_hot(jax.random.randint(key_which, action.shape[:-1], 0, size), size)
    return jnp.where(whether[..., None], which, action)
