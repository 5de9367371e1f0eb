"""Vectors of categorical variables as logits [..., V, K]: V variables of K classes each.

Three interchangeable estimators draw samples that gradients go through. `straight_through` is
DreamerV2's and V3's (Bengio et al. 2013); `gumbel_softmax` gives soft samples whose gradient is
exact for them (Jang et al. 2017, Maddison et al. 2017); `straight_through_gumbel` gives hard
samples with the gradient of the soft ones.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import chex
import jax
import jax.numpy as jnp


def unimix(logits: jax.Array, share: float = 0.01) -> jax.Array:
    """Log-probabilities of (1 - share) softmax + share uniform: no class can die out.

    [..., K] -> [..., K] (Hafner et al. 2023, "world model learning").
    """
    if not share:
        return jax.nn.log_softmax(logits, axis=-1)
    classes = logits.shape[-1]
    return jnp.log((1.0 - share) * jax.nn.softmax(logits, axis=-1) + share / classes)


def entropy(logits: jax.Array) -> jax.Array:
    """In nats, summed over the variables: [..., V, K] -> [...]."""
    log_probs = jax.nn.log_softmax(logits, axis=-1)
    return -jnp.sum(jnp.exp(log_probs) * log_probs, axis=(-2, -1))


def kl(logits_p: jax.Array, logits_q: jax.Array) -> jax.Array:
    """KL[p || q] in nats, summed over the variables: [..., V, K] -> [...]."""
    chex.assert_equal_shape([logits_p, logits_q])
    log_p, log_q = jax.nn.log_softmax(logits_p, axis=-1), jax.nn.log_softmax(logits_q, axis=-1)
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=(-2, -1))


def balanced_kl(
    post: jax.Array, prior: jax.Array, alpha: float = 0.8
) -> tuple[jax.Array, jax.Array]:
    """DreamerV2's KL balancing (Hafner et al. 2021, algorithm 2).

    alpha KL[sg(post) || prior] + (1 - alpha) KL[post || sg(prior)]: the prior moves towards the
    posterior faster than the posterior towards it. Returns that and the plain KL, each [...].
    """
    sg = jax.lax.stop_gradient
    both = alpha * kl(sg(post), prior) + (1.0 - alpha) * kl(post, sg(prior))
    return both, sg(kl(post, prior))


def free_nats_kl(
    post: jax.Array, prior: jax.Array, free: float = 1.0
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """DreamerV3's two clipped terms (Hafner et al. 2023, eq. 5).

    Returns dynamics max(free, KL[sg(post) || prior]), representation
    max(free, KL[post || sg(prior)]) and the unclipped KL, each [...].
    """
    sg = jax.lax.stop_gradient
    dynamics, representation = kl(sg(post), prior), kl(post, sg(prior))
    return jnp.maximum(dynamics, free), jnp.maximum(representation, free), sg(dynamics)


def straight_through(key: jax.Array, logits: jax.Array) -> jax.Array:
    """One-hot samples [..., K]; the gradient is that of the probabilities."""
    probs = jax.nn.softmax(logits, axis=-1)
    sample = jax.nn.one_hot(draw_classes(key, jax.lax.stop_gradient(probs)), logits.shape[-1])
    return sample + (probs - jax.lax.stop_gradient(probs))  # adds an exact 0


def draw_classes(key: jax.Array, probs: jax.Array) -> jax.Array:
    """Classes int32 [...] of probabilities float32 [..., K], by their running sum.

    One random number a variable, where Gumbel noise takes one a class and its logarithms.
    """
    sums = jnp.cumsum(probs, axis=-1)
    level = 1.0 - jax.random.uniform(key, probs.shape[:-1])  # in (0, 1]: no class of nothing
    return jnp.sum(sums[..., :-1] < (level * sums[..., -1])[..., None], axis=-1)


def gumbel_softmax(key: jax.Array, logits: jax.Array, temperature: float) -> jax.Array:
    """Soft samples [..., K] on the simplex, differentiable as they are.

    The colder, the nearer to one-hot and the larger the variance of gradients.
    """
    noise = jax.random.gumbel(key, logits.shape)
    return jax.nn.softmax((jax.nn.log_softmax(logits, axis=-1) + noise) / temperature, axis=-1)


def straight_through_gumbel(key: jax.Array, logits: jax.Array, temperature: float) -> jax.Array:
    """One-hot samples [..., K] as probable as the logits say; the gradient is the soft sample's."""
    soft = gumbel_softmax(key, logits, temperature)
    hard = jax.nn.one_hot(jnp.argmax(soft, axis=-1), logits.shape[-1])
    return hard + (soft - jax.lax.stop_gradient(soft))


def estimator(name: str, temperature: float = 1.0) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """One of the three above by its name: (key, logits [..., V, K]) -> samples.

    Raises:
      ValueError: another name.
    """
    known = {
        "straight_through": straight_through,
        "gumbel_softmax": partial(gumbel_softmax, temperature=temperature),
        "straight_through_gumbel": partial(straight_through_gumbel, temperature=temperature),
    }
    if name not in known:
        raise ValueError(f"estimator={name} cannot be: use one of {', '.join(known)}")
    return known[name]


def annealed(step: jax.Array, start: float, end: float, steps: int) -> jax.Array:
    """Temperature that falls geometrically from `start` at step 0 to `end` at `steps`."""
    done = jnp.clip(step / steps, 0.0, 1.0)
    return start * (end / start) ** done
