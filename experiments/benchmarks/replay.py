"""Our replay ring beside flashbax's buffer."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from benchmarks.measuring import MIB, extra_mib, machine, measure, save, table
from dreamer_jax import replay as ring
from dreamer_jax.errors import UserError
from dreamer_jax.training.learner import record_spec
from dreamer_jax.training.memory import free_bytes
from dreamer_jax.training.presets import LAPTOP, PAPER
from dreamer_jax.types import Spec, Transition

SHARE = 0.6  # of the free memory that a benchmark may fill


@dataclass(frozen=True)
class Size:
    """Of the replay benchmark; capacity and chunk are records of one row."""

    learners: int
    rows: int
    capacity: int
    chunk: int
    batch: int
    length: int
    image: int

    def record(self) -> Transition:
        """One record as the agents store it."""
        return record_spec(Spec({"image": ((self.image, self.image, 3), "uint8")}, action=2))

    def records(self, *lead: int) -> Transition:
        """Random ones, leaves [S, *lead, ...]."""
        rng, lead = np.random.default_rng(0), (self.learners, *lead)
        return jax.tree.map(
            lambda x: jnp.asarray(rng.integers(0, 256, (*lead, *x.shape)).astype(x.dtype)),
            self.record(),
        )

    def bytes(self) -> int:
        """Of one candidate's records."""
        return self.learners * ring.replay_bytes(self.record(), self.rows, self.capacity)

    def fitting(self) -> Size:
        """With a capacity of which two rings fit the free memory."""
        share = SHARE * free_bytes() / (2 * self.bytes())
        capacity = max(int(min(share, 1) * self.capacity), self.chunk, self.length)
        return dataclasses.replace(self, capacity=capacity)


def replay(
    sizes: tuple[Literal["laptop", "paper"], ...] = ("laptop", "paper"),
    repeats: int = 41,
    learners: int = 1,
    rows: int | None = None,
    capacity: int | None = None,
    chunk: int | None = None,
    batch: int | None = None,
    length: int | None = None,
    image: int = 96,
    out: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
) -> None:
    """Our ring (add, sample) against flashbax's trajectory buffer: both full, the same records.

    flashbax adds equally many records to every row and gives batch-major windows. So its add stands
    against ours with full counts (the ragged add has no counterpart), and its sample also with the
    transposition to time-major that a sequence model needs.

    Args:
        sizes: Of which presets; the options from `rows` on replace single figures.
        repeats: Rounds.
        learners: Replays under one vmap, as in training.
        rows: Environments of a learner.
        capacity: Records a row holds.
        chunk: Records a row is given in one add.
        batch: Windows of a sample.
        length: Records of a window.
        image: Height and width of the frames.
        out: File for all figures.
    """
    given = (rows, capacity, chunk, batch, length)
    report = {"benchmark": "replay", "machine": machine(), "sizes": {}}
    for name in sizes:
        its = {"laptop": LAPTOP, "paper": PAPER}[name]
        usual = (its.envs, its.replay // its.envs, its.chunk, its.batch, its.length)
        shape = [u if g is None else g for u, g in zip(usual, given, strict=True)]
        size = (wanted := Size(learners, *shape, image)).fitting()
        print(f"{name}: {size.bytes() / MIB:.0f} MiB each, {size}", flush=True)
        if size != wanted:
            print(f"  capacity is not {wanted.capacity}: memory is wanting", flush=True)
        parts = replay_parts(size, repeats)
        for part, figures in parts.items():
            print(f" {part}\n{table(figures, 'flashbax')}", flush=True)
        report["sizes"][name] = {"size": dataclasses.asdict(size), **parts}
    save(report, out)


def replay_parts(size: Size, repeats: int) -> dict[str, dict[str, dict[str, Any]]]:
    """{"add": rows, "sample": rows} for `table`."""
    theirs, ours = flashbax_buffer(size), our_ring(size)
    full = jnp.full((1, size.learners, size.rows), size.chunk, jnp.int32)
    key, shape = jax.random.key(1), (64, *full.shape[1:])
    add = {
        "flashbax": theirs.adder(full),
        "ours, counts full": ours.adder(full),
        "ours, counts ragged": ours.adder(jax.random.randint(key, shape, 0, size.chunk + 1)),
    }
    sample = {
        "flashbax": theirs.sampler(),
        "flashbax, made time-major": theirs.sampler(lambda x: jnp.swapaxes(x, 0, 1)),
        "ours (time-major)": ours.sampler(),
    }
    parts = {}
    for part, candidates in {"add": add, "sample": sample}.items():
        functions = {name: each.run for name, each in candidates.items()}
        first = measure(functions, 0)
        if part == "add":  # until every page of memory was written to
            measure(functions, -(-size.capacity // size.chunk))
        timings = measure(functions, repeats)
        parts[part] = {
            name: timings[name].figures(timings["flashbax"])
            | {"first_call_ms": 1e3 * first[name].first, "extra_mib": each.extra_mib()}
            for name, each in candidates.items()
        }
    return parts


class Candidate(NamedTuple):
    run: Callable[[], Any]
    extra_mib: Callable[[], float]


class Buffer:
    """A replay of S learners; `init() -> state`, `add` and `sample` are the functions of one."""

    def __init__(self, size: Size, init: Callable, add: Callable, sample: Callable, *lead: int):
        self.learners, self.add, self.sample = size.learners, add, sample
        self.state = jax.jit(jax.vmap(lambda _: init()))(jnp.arange(size.learners))
        self.chunk = size.records(*lead)

    def adder(self, counts: jax.Array) -> Candidate:
        """Adds the chunk to the state, with each of int32 [C, S, N] in turn."""
        function = jax.jit(jax.vmap(self.add), donate_argnums=0)
        count = itertools.cycle(list(counts))

        def run() -> Any:
            self.state = function(self.state, self.chunk, next(count))
            return self.state

        return Candidate(run, lambda: extra_mib(function, self.state, self.chunk, counts[0]))

    def sampler(self, after: Callable = lambda leaf: leaf) -> Candidate:
        """Windows, `after` done to each leaf, with another key each time."""
        keys = jax.random.split(jax.random.key(0), self.learners)
        number = itertools.count()

        @jax.jit
        def function(state: Any, number: jax.Array) -> Any:
            def one(state: Any, key: jax.Array) -> Any:
                return jax.tree.map(after, self.sample(state, jax.random.fold_in(key, number)))

            return jax.vmap(one)(state, keys)

        return Candidate(
            lambda: function(self.state, next(number)), lambda: extra_mib(function, self.state, 0)
        )


def our_ring(size: Size) -> Buffer:
    sample = partial(ring.sample, batch=size.batch, length=size.length)
    init = partial(ring.init, size.record(), size.rows, size.capacity)
    return Buffer(size, init, ring.add, sample, size.chunk, size.rows)


def flashbax_buffer(size: Size) -> Buffer:
    """Raises UserError where flashbax is not installed."""
    try:
        import flashbax
    except ImportError as error:
        raise UserError(f"{error}; flashbax comes with: pip install -e '.[test]'") from error
    buffer = flashbax.make_trajectory_buffer(
        add_batch_size=size.rows,
        sample_batch_size=size.batch,
        sample_sequence_length=size.length,
        period=1,  # windows start anywhere, as ours
        min_length_time_axis=size.length,
        max_length_time_axis=size.capacity,
    )
    record = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), size.record())
    return Buffer(
        size,
        lambda: buffer.init(record),
        lambda state, chunk, count: buffer.add(state, chunk),
        lambda state, key: buffer.sample(state, key).experience,
        size.rows,
        size.chunk,
    )
