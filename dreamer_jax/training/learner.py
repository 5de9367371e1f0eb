"""The jitted entry points of an agent.

Everything has a leading axis S of independent learners, also when S = 1.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from dreamer_jax import replay
from dreamer_jax.ops.keys import named_key
from dreamer_jax.ops.trees import select
from dreamer_jax.training.devices import mapping, put, sharding, spread
from dreamer_jax.types import Agent, Spec, Transition


class Learner(NamedTuple):
    """Compiled functions over S learners.

    init:   (keys [S]) -> state
    carry:  (S) -> acting carry, leaves [S, N, ...]
    act:    (state, carry, obs {name: [S, N, ...]}, is_first [S, N], active [S, N], keys [S], mode)
            -> (action [S, N, A], carry); inactive environments keep their carry
    add:    (replay, chunk [S, K, N, ...], count [S, N]) -> replay; donates the replay
    update: (state, replay, keys [S], healthy bool [S])
            -> (state, replay, healthy, figures [M, n, S]); M updates in one program, donates the
            state and, of the replay, the contexts, which agents that have them renew. A learner
            whose loss stops being finite is frozen as it was before that update, and `healthy`
            turns False
    program: what `update` compiles: (state, contexts, replay without them, keys, healthy)
    context: (carry) -> leaves [S, N, ...] to store beside the next records. None: nothing
    sample: (replay, keys [S], step []) -> the batch [S, T, B, ...] that update number `step` saw
    report: (state, batch [S, T, B, ...], keys [S]) -> arrays to look at, leading S
    refresh: (state, starts, keys [S], count []) -> state with new generated images, the same for
            the same keys and count; donates the state. None for agents without
    names:  () -> names of the n figures
    """

    init: Any
    carry: Any
    act: Any
    add: Any
    update: Any
    program: Any
    context: Any
    sample: Any
    report: Any
    refresh: Any
    names: Callable[[], tuple[str, ...]]
    losses: tuple[str, ...]


class Swept(NamedTuple):
    """Settings that differ between learners.

    agent: (values of one learner, scalars by name) -> Agent; the same state as the others'.
    values: float32 [S] by name
    """

    agent: Callable[[dict[str, jax.Array]], Agent]
    values: dict[str, jax.Array]


def record_spec(spec: Spec, agent: Agent | None = None) -> Transition:
    """Shape and dtype of one record, with what the agent keeps beside it."""
    scalar = partial(jax.ShapeDtypeStruct, ())
    return Transition(
        obs={n: jax.ShapeDtypeStruct(shape, dtype) for n, (shape, dtype) in spec.obs.items()},
        prev_action=jax.ShapeDtypeStruct((spec.action,), jnp.float32),
        reward=scalar(jnp.float32),
        is_first=scalar(jnp.bool_),
        is_terminal=scalar(jnp.bool_),
        context=context_spec(agent),
    )


def context_spec(agent: Agent | None) -> Any:
    """Shapes and dtypes of what the replay keeps of an agent's carry; None: nothing."""
    if agent is None or agent.context is None:
        return None
    shapes = jax.eval_shape(lambda: agent.context(agent.carry(1)))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), shapes)


def make_learner(
    agent: Agent,
    spec: Spec,
    envs: int,
    updates: int,
    batch: int,
    length: int,
    swept: Swept | None = None,
    mesh: Mesh | None = None,
    side_by_side: bool | None = None,
) -> Learner:
    """Map the agent over learners and compile its entry points.

    With `swept`, learner s acts, updates and reports as `swept.agent` makes it of its own values.
    With `mesh`, each of its devices runs its share of the learners. `side_by_side` makes the
    learners of a device one batch (vmap), as an accelerator wants it; without, they take turns,
    each with the arithmetic of a learner alone. Default: turns on a CPU.
    """
    axes = agent.axes
    each = mapping(side_by_side)
    of, values = (lambda _: agent, {}) if swept is None else swept

    def update_with_context(v, *args):
        state, metrics, *context = of(v).update(*args)
        return state, metrics, context[0] if agent.context else None

    one_update = each(update_with_context, in_axes=(0, axes, 0, 0), out_axes=(axes, 0, 0))
    one_report = each(lambda v, *args: of(v).report(*args), in_axes=(0, axes, 0, 0), out_axes=0)

    def draw(ring, keys, step):
        keys = jax.vmap(lambda key: jax.random.fold_in(named_key(key, "sample"), step))(keys)
        return jax.vmap(lambda r, k: replay.draw(r, k, batch, length))(ring, keys)

    def sample(ring, keys, step):
        return jax.vmap(replay.read)(ring, draw(ring, keys, step))

    def one(values, ring, keys, carry, _):
        state, contexts, healthy = carry
        places = draw(ring, keys, state.step)
        data = jax.vmap(replay.read)(with_contexts(ring, contexts), places)
        step_keys = jax.vmap(lambda k: jax.random.fold_in(named_key(k, "update"), state.step))(keys)
        new, metrics, renewed = one_update(values, state, data, step_keys)
        figures = jnp.stack([metrics[name].astype(jnp.float32) for name in sorted(metrics)])
        losses = jnp.stack([metrics[name] for name in agent.losses])
        healthy = healthy & jnp.all(jnp.isfinite(losses), axis=0)
        renewed = freeze(healthy, 0, renewed, jax.tree.map(lambda x: x[:, 1:], data.context))
        later = places._replace(slot=places.slot[:, 1:])
        contexts = jax.vmap(replay.write)(contexts, later, renewed)
        return (freeze(healthy, axes, new, state), contexts, healthy), figures

    def update_many(values, state, contexts, ring, keys, healthy):
        (state, contexts, healthy), figures = jax.lax.scan(
            partial(one, values, ring, keys), (state, contexts, healthy), None, length=updates
        )
        return state, contexts, healthy, figures

    def update(state, ring, keys, healthy):
        contexts, ring = ring.data.context, with_contexts(ring, None)
        state, contexts, healthy, figures = program(state, contexts, ring, keys, healthy)
        return state, with_contexts(ring, contexts), healthy, figures

    def act(values, state, carry, obs, is_first, active, keys, mode):
        one = each(lambda v, *args: of(v).act(*args, mode=mode), (0, axes, 0, 0, 0, 0), out_axes=0)
        action, new = one(values, state, carry, obs, is_first, keys)
        return action, select(active, new, carry)

    def refresh(state, starts, keys, count):
        keys = jax.vmap(lambda k: jax.random.fold_in(named_key(k, "refresh"), count))(keys)
        one_learner = each(agent.refresh, in_axes=(axes, None, 0), out_axes=axes)
        return one_learner(state, starts, keys)

    over = partial(spread, mesh=mesh)
    act_axes = {"in_axes": (0, axes, 0, 0, 0, 0, 0), "out_axes": (0, 0)}
    update_all = over(update_many, in_axes=(0, axes, 0, 0, 0, 0), out_axes=(axes, 0, 0, 2))
    program = jax.jit(partial(update_all, values), donate_argnums=(0, 1))
    report_all = over(one_report, in_axes=(0, axes, 0, 0), out_axes=0)
    refresh_all = over(refresh, in_axes=(axes, None, 0, None), out_axes=axes)
    return Learner(
        init=jax.jit(over(each(agent.init, in_axes=(0,), out_axes=axes), (0,), axes)),
        carry=lambda learners: put(_stacked(agent.carry(envs), learners), mesh),
        act=jax.jit(
            lambda *args, mode: over(partial(act, mode=mode), **act_axes)(values, *args),
            static_argnames="mode",
        ),
        add=jax.jit(over(jax.vmap(replay.add), in_axes=(0, 0, 0), out_axes=0), donate_argnums=0),
        update=update,
        program=program,
        context=jax.jit(jax.vmap(agent.context)) if agent.context else None,
        sample=jax.jit(over(sample, in_axes=(0, 0, None), out_axes=0)),
        report=jax.jit(partial(report_all, values)),
        refresh=jax.jit(refresh_all, donate_argnums=0) if agent.refresh else None,
        names=cache(partial(figure_names, agent, spec, batch, length)),
        losses=agent.losses,
    )


def with_contexts(ring: replay.ReplayState, contexts: Any) -> replay.ReplayState:
    """The ring with other contexts beside its records."""
    return ring.replace(data=ring.data.replace(context=contexts))


def freeze(healthy: jax.Array, axes: Any, new: Any, old: Any) -> Any:
    """`new` for healthy learners [S], `old` for the others; what all share moves on."""

    def pick(axis, n, o):
        return n if axis is None else select(healthy, n, o)

    return jax.tree.map(pick, axes, new, old, is_leaf=lambda x: x is None)


def figure_names(agent: Agent, spec: Spec, batch: int, length: int) -> tuple[str, ...]:
    """Names of the scalar metrics that `agent.update` returns."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(agent.init, key)
    data = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((length, batch, *x.shape), x.dtype),
        record_spec(spec, agent),
    )
    _, metrics, *_ = jax.eval_shape(agent.update, state, data, key)
    return tuple(sorted(metrics))


def empty_replay(
    record: Transition, learners: int, envs: int, capacity: int, mesh: Mesh | None = None
) -> replay.ReplayState:
    """Rings for all learners, `capacity` records (see `record_spec`) per environment."""
    one = jax.eval_shape(lambda: replay.init(record, envs, capacity))
    where = None if mesh is None else sharding(mesh, 0)  # made there: one device may not hold all
    return jax.tree.map(lambda x: jnp.zeros((learners, *x.shape), x.dtype, device=where), one)


def _stacked(tree: Any, learners: int) -> Any:
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (learners, *x.shape)), tree)
