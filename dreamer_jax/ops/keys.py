"""Random keys split by name, so that adding a use does not move the others."""

from __future__ import annotations

import zlib

import jax


def named_key(key: jax.Array, name: str) -> jax.Array:
    """The key of one use of randomness."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()) & 0x7FFFFFFF)
