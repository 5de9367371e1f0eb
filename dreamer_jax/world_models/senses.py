"""Encoders and decoders of dictionary observations: any number of images and of vectors.

Images (uint8, rank 3) are scaled to [0, 1] and put on top of each other; vectors pass through
symlog, so that no scale of theirs needs to be known (Hafner et al. 2023, "world model learning").
"""

from __future__ import annotations

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from dreamer_jax.nn.conv import fold, to_unit
from dreamer_jax.ops.transforms import symlog
from dreamer_jax.types import Spec

Observation = Mapping[str, jax.Array]


def prepare(obs: Observation, block: int = 1) -> dict[str, jax.Array]:
    """{"image": [..., h, w, c] in [0, 1], folded; "vector": symlog [..., n]}, what there is of it.

    Entries of a kind are joined along their last axis, in the order of their names.
    """
    entries = [obs[name] for name in sorted(obs)]
    images = [x for x in entries if x.dtype == jnp.uint8]
    vectors = [x for x in entries if x.dtype != jnp.uint8]
    kinds = {}
    if images:
        kinds["image"] = to_unit(fold(jnp.concatenate(images, axis=-1), block))
    if vectors:
        kinds["vector"] = symlog(jnp.concatenate(vectors, axis=-1).astype(jnp.float32))
    return kinds


def nothing_seen(spec: Spec, lead: tuple[int, ...]) -> dict[str, jax.Array]:
    """Zero observations with these leading axes."""
    return {name: jnp.zeros((*lead, *shape), dtype) for name, (shape, dtype) in spec.obs.items()}


class SenseEncoder(nn.Module):
    """Prepared observations [B, ...] -> [B, E]: what each network makes of its kind, joined."""

    networks: Mapping[str, nn.Module]  # by kind

    @nn.compact
    def __call__(self, kinds: Observation) -> jax.Array:
        return jnp.concatenate(
            [self.networks[kind](kinds[kind]) for kind in sorted(kinds)], axis=-1
        )


class SenseDecoder(nn.Module):
    """Features [B, F] -> predictions by kind, as `prepare` gives them."""

    networks: Mapping[str, nn.Module]

    @nn.compact
    def __call__(self, features: jax.Array) -> dict[str, jax.Array]:
        return {kind: network(features) for kind, network in self.networks.items()}


def reconstruction_losses(prediction: Observation, truth: Observation) -> dict[str, jax.Array]:
    """{"loss/KIND": squared error summed over an observation, mean over the batch []}."""
    return {
        f"loss/{kind}": jnp.mean(
            jnp.sum(jnp.square(prediction[kind] - truth[kind]), axis=range(1, truth[kind].ndim))
        )
        for kind in truth
    }
