"""Sequence replay on the device: one ring per environment row, pure functions (no S axis here).

flashbax's trajectory buffer has this shape, but adds the same number of records to every row; with
one episode a cycle each learner brings another number, so `add` here takes a count per row.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class ReplayState:
    """`data` leaves are [N, capacity, ...]; `cursor` is the next slot, `size` the filled length."""

    data: Any
    cursor: jax.Array  # int32 [N]
    size: jax.Array  # int32 [N]


def replay_bytes(record: Any, rows: int, capacity: int) -> int:
    """Memory of a ring for `record`, a pytree of ShapeDtypeStructs or arrays, in bytes."""
    leaves = jax.tree.leaves(record)
    return rows * capacity * sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def init(record: Any, rows: int, capacity: int) -> ReplayState:
    """An empty ring for `rows` streams of records shaped like `record`."""
    data = jax.tree.map(lambda x: jnp.zeros((rows, capacity, *x.shape), x.dtype), record)
    return ReplayState(data, jnp.zeros((rows,), jnp.int32), jnp.zeros((rows,), jnp.int32))


def add(state: ReplayState, chunk: Any, count: jax.Array) -> ReplayState:
    """Append the first `count[n]` records of row n: chunk leaves [K, N, ...], count int32 [N].

    Raises:
      AssertionError: another dtype or shape than the ring's, or K larger than the capacity.
    """
    rows, capacity = jax.tree.leaves(state.data)[0].shape[:2]
    length = jax.tree.leaves(chunk)[0].shape[0]
    if length > capacity:
        raise AssertionError(f"a chunk of {length} does not fit a ring of {capacity}")
    for ring, new in zip(jax.tree.leaves(state.data), jax.tree.leaves(chunk), strict=True):
        chex.assert_shape(new, (length, rows, *ring.shape[2:]))
        chex.assert_type(new, ring.dtype)
    offset = jnp.arange(length)[:, None]
    slot = jnp.where(offset < count, (state.cursor + offset) % capacity, capacity)
    row = jnp.broadcast_to(jnp.arange(rows), slot.shape)
    data = jax.tree.map(lambda x, new: x.at[row, slot].set(new, mode="drop"), state.data, chunk)
    return ReplayState(
        data, (state.cursor + count) % capacity, jnp.minimum(state.size + count, capacity)
    )


def grow(state: ReplayState, capacity: int) -> ReplayState:
    """The same records in rings of `capacity`, each row's oldest in its first slot.

    Raises:
      AssertionError: a capacity below the ring's own.
    """
    rows, length = jax.tree.leaves(state.data)[0].shape[:2]
    if capacity < length:
        raise AssertionError(f"a ring of {length} does not fit one of {capacity}")
    oldest = jnp.where(state.size == length, state.cursor, 0)[:, None]
    offset = jnp.arange(capacity)
    slot = jnp.where(offset < length, (oldest + offset) % length, length)
    row = jnp.arange(rows)[:, None]
    data = jax.tree.map(lambda x: x.at[row, slot].get(mode="fill", fill_value=0), state.data)
    return ReplayState(data, state.size % capacity, state.size)


def windows(size: jax.Array, length: int) -> jax.Array:
    """Number of windows of `length` records in rows of `size` records: int32 [N]."""
    return jnp.maximum(size - length + 1, 0)


class Places(NamedTuple):
    """Where records stand."""

    row: jax.Array  # int32 [1, B]
    slot: jax.Array  # int32 [T, B]


def sample(state: ReplayState, key: jax.Array, batch: int, length: int) -> Any:
    """`batch` windows of `length` consecutive records: leaves [T, B, ...]; see `draw`."""
    return read(state, draw(state, key, batch, length))


def draw(state: ReplayState, key: jax.Array, batch: int, length: int) -> Places:
    """Windows of `length` consecutive records, uniform over all windows of all rows.

    Windows never cross the seam (newest to oldest) nor leave a row; they may cross episode ends,
    which `is_first` marks. With no whole window in the ring the result is meaningless: `Run` makes
    no updates until there is one.
    """
    capacity = jax.tree.leaves(state.data)[0].shape[1]
    ends = jnp.cumsum(windows(state.size, length))
    number = jax.random.randint(key, (batch,), 0, jnp.maximum(ends[-1], 1))
    row = jnp.searchsorted(ends, number, side="right")
    row = jnp.minimum(row, ends.shape[0] - 1)
    oldest = state.cursor[row] - state.size[row]
    start = oldest + number - jnp.where(row > 0, ends[row - 1], 0)
    slot = (start[None] + jnp.arange(length)[:, None]) % capacity
    return Places(row[None], slot)


def read(state: ReplayState, places: Places) -> Any:
    """The records there: leaves [T, B, ...]."""
    return jax.tree.map(lambda x: x[places], state.data)


def write(data: Any, places: Places, new: Any) -> Any:
    """`data`, leaves [N, capacity, ...], with `new`, leaves [T, B, ...], in these places.

    Of several records for one place the last one [T, B] wins, whole: left to the scatter it might
    be another on an accelerator, and for each leaf.
    """
    leaves = jax.tree.leaves(data)
    if not leaves:  # agents that keep no latents
        return data
    number = jnp.arange(places.slot.size, dtype=jnp.int32).reshape(places.slot.shape)
    place = jnp.zeros(leaves[0].shape[:2], jnp.int32)
    last = place.at[places].max(number)[places]

    def put(x, n):
        return x.at[places].set(n.reshape(-1, *n.shape[2:])[last])

    return jax.tree.map(put, data, new)
