"""The host loop with stand-ins for its parts: what a cycle does, its order and its keys."""

import itertools
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer_jax.training import loop
from dreamer_jax.training.collect import Collected
from dreamer_jax.training.loop import Run, _act_keys

METHODS = ("_in_turns", "_at_once", "_add", "refresh")  # those of the run itself


def stand_in(overlap):
    """A run of two learners with two updates a cycle, and what happened to it."""
    happened = []

    def collect(meanwhile=lambda step: None):
        happened.append("collect")
        for step in range(2):
            meanwhile(step)
        count = np.array([[3 + run.cycle], [5]])
        return Collected(None, count, [])

    def add(ring, chunk, count):
        happened.append("add")
        return ring + count

    def refresh(state, starts, keys, count):
        happened.append(f"refresh {count}")
        return state

    run = SimpleNamespace(
        config=SimpleNamespace(
            overlap=overlap, updates=2, chunk=2, report_every=0, eval_every=0, cycles=9,
            env=SimpleNamespace(id="x"), envs=1, generated=SimpleNamespace(pool=6, fresh=2),
        ),
        collector=SimpleNamespace(frames=np.zeros(2)), learners=2, capacity=8, record=None,
        learner=SimpleNamespace(add=add, refresh=refresh, init=str, carry=str),
        scenes=SimpleNamespace(starts=None), keys=None, use_keys={"init": None}, mesh=None,
        ring=np.zeros((2, 1)), state=None, cycle=0, refreshes=0, known_healthy=np.ones(2, bool),
        collect=collect, update=lambda: happened.append("update") or {},
        _dispatch=lambda: happened.append("update"), _fetch=lambda tables: {}, _ready=lambda: True,
        _check=lambda figures, display: None, _put=lambda tree, axes=0: tree,
    )  # fmt: skip
    for name in METHODS:
        setattr(run, name, partial(getattr(Run, name), run))
    return run, happened


DISPLAY = SimpleNamespace(cycle=lambda *args: None)


@pytest.mark.parametrize("overlap", [False, True])
def test_all_that_a_cycle_collects_is_added_once(overlap):
    run, happened = stand_in(overlap)
    for expected in ([[3], [5]], [[3 + 4], [5 + 5]]):
        Run._cycle(run, DISPLAY)
        np.testing.assert_array_equal(run.ring, expected)
    assert run.cycle == happened.count("add") == 2


@pytest.mark.parametrize(
    ("overlap", "order"),
    [
        (False, ["collect", "add", "refresh {}", "update"]),
        (True, ["refresh {}", "collect", "update", "update", "add"]),
    ],
)
def test_images_are_renewed_once_a_cycle_before_the_updates(overlap, order):
    run, happened = stand_in(overlap)
    run.refreshes = 3
    for _ in range(2):
        Run._cycle(run, DISPLAY)
    assert happened == [what.format(count) for count in (3, 4) for what in order]
    assert run.refreshes == 5


def test_the_pool_is_full_before_the_first_cycle(monkeypatch):
    """Of 6 images, by 2 at a time."""
    monkeypatch.setattr(loop, "empty_replay", lambda *args: None)
    run, happened = stand_in(False)
    Run.start(run)
    assert happened == ["refresh 0", "refresh 1", "refresh 2"] and run.refreshes == 3


def test_every_step_of_every_cycle_acts_with_a_key_of_its_own():
    """The same again, and for a learner alone."""
    keys = jax.vmap(jax.random.key)(jnp.array([3, 5]))
    counts = list(itertools.product(range(3), range(3)))

    def data(keys, count):
        return jax.random.key_data(_act_keys(keys, np.array(count, np.uint32)))

    drawn = np.array([data(keys, count) for count in counts])  # [9, 2, words]
    assert drawn.shape[:2] == (9, 2)
    assert len(np.unique(drawn.reshape(18, -1), axis=0)) == 18
    np.testing.assert_array_equal(data(keys, counts[5]), drawn[5])
    np.testing.assert_array_equal(data(keys[1:], counts[5]), drawn[5, 1:])
