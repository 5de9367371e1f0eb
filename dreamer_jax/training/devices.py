"""The learners of a run spread over the devices of this process.

Learners know nothing of each other: each device runs the program for its own share, and nothing
crosses between them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

LEARNERS = "learners"


def learner_mesh(learners: int) -> Mesh | None:
    """The most local devices that share `learners` out evenly; None where that is one."""
    devices = jax.local_devices()
    count = max(n for n in range(1, len(devices) + 1) if learners % n == 0)
    return Mesh(np.array(devices[:count]), (LEARNERS,)) if count > 1 else None


def describe(learners: int, mesh: Mesh) -> str:
    """How the learners lie on the devices, for the user."""
    idle = len(jax.local_devices()) - mesh.size
    rest = f" ({idle} idle: they do not share {learners} learners evenly)" if idle else ""
    return f"{mesh.size}, each with {share(learners, mesh)} of the learners{rest}"


def share(learners: int, mesh: Mesh | None) -> int:
    """Learners of one device."""
    return learners if mesh is None else learners // mesh.size


def spread(function: Callable, in_axes: tuple, out_axes: Any, mesh: Mesh | None) -> Callable:
    """`function` over S learners, run on every device of `mesh` for its own learners.

    Args:
      in_axes, out_axes: where S stands in each argument and result, as prefix trees like those of
        `jax.vmap`; None for what all learners share.
    """
    if mesh is None:
        return function
    return jax.shard_map(
        function,
        mesh=mesh,
        in_specs=tuple(map(_specs, in_axes)),
        out_specs=_specs(out_axes),
        check_vma=False,  # random bits and scatters have no rule for it
    )


def one_by_one(function: Callable, in_axes: tuple, out_axes: Any) -> Callable:
    """`jax.vmap` as a loop: what a learner computes is what it would alone, bit for bit.

    Args:
      in_axes, out_axes: as of `spread`; arguments have S in front or not at all. Results without an
        axis are those of the last learner.
    """

    # Hidden from the compiler: a loop known to have one round, or a branch known to be taken, is
    # merged with what stands around it, and rounds differently.
    hidden = jax.lax.optimization_barrier

    def loop(*args):
        count = _learners(in_axes, args)

        def take(i, axis, x):
            return x if axis is None else jax.lax.dynamic_index_in_dim(x, i, keepdims=False)

        def put_in(i, axis, row, rows):
            return row if axis is None else jax.lax.dynamic_update_index_in_dim(rows, row, i, axis)

        def room(axis, x):
            shape = x.shape if axis is None else (*x.shape[:axis], count, *x.shape[axis:])
            return jnp.zeros(shape, x.dtype)

        def body(i, results):
            own = _by_axis(partial(take, i), in_axes, args)
            new = jax.lax.cond(hidden(True), lambda: function(*own), lambda: _zeros(shapes))
            return _by_axis(partial(put_in, i), out_axes, new, results)

        shapes = jax.eval_shape(lambda: function(*_by_axis(partial(take, 0), in_axes, args)))
        return jax.lax.fori_loop(
            0, hidden(jnp.int32(count)), body, _by_axis(room, out_axes, shapes)
        )

    return loop


def mapping(side_by_side: bool | None = None) -> Callable:
    """How a function of one learner becomes one of S: `jax.vmap` side by side, else `one_by_one`.

    Default: turns on a CPU, side by side on an accelerator.
    """
    if side_by_side is None:
        side_by_side = jax.default_backend() != "cpu"
    return jax.vmap if side_by_side else one_by_one


def _zeros(shapes: Any) -> Any:
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)


def _learners(axes: tuple, args: tuple) -> int:
    sizes = _by_axis(lambda axis, x: None if axis is None else x.shape[0], axes, args)
    return jax.tree.leaves(sizes)[0]


def _by_axis(function: Callable, axes: Any, *trees: Any) -> Any:
    """`function(axis, *leaves)` over trees of one structure, of which `axes` is a prefix."""

    def part(axis, *parts):
        return jax.tree.map(partial(function, axis), *parts)

    return jax.tree.map(part, axes, *trees, is_leaf=lambda x: x is None)


def put(tree: Any, mesh: Mesh | None, axes: Any = 0) -> Any:
    """Arrays onto the devices, S where `axes` (a prefix tree) says."""
    if mesh is None:
        return jax.device_put(tree)

    return _by_axis(lambda axis, x: jax.device_put(x, sharding(mesh, axis)), axes, tree)


def placed(tree: Any, mesh: Mesh | None, axes: Any = 0) -> Any:
    """Shapes that also say where `put` would lay such arrays."""
    if mesh is None:
        return tree

    def place(axis, x):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding(mesh, axis))

    return _by_axis(place, axes, tree)


def sharding(mesh: Mesh, axis: int | None) -> NamedSharding:
    """Of arrays with S at `axis`; None: a copy on each device."""
    return NamedSharding(mesh, _spec(axis))


def _specs(axes: Any) -> Any:
    return jax.tree.map(_spec, axes, is_leaf=lambda x: x is None)


def _spec(axis: int | None) -> PartitionSpec:
    return PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, LEARNERS)
