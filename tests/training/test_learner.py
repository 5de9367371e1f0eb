"""Many updates and learners in one program: the same as one by one, and none spoils another."""

from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import AGENT, SPEC, play

from dreamer_jax.agents.dreamer_v1 import make_dreamer_v1
from dreamer_jax.agents.dreamer_v1_config import DreamerV1Config
from dreamer_jax.training.learner import Swept, empty_replay, freeze, make_learner, record_spec
from dreamer_jax.types import Agent, Spec

S, N, UPDATES, BATCH, LENGTH, RECORDS = 2, 2, 2, 4, 4, 40
KEYS = jax.random.split(jax.random.key(0), S)
FIT = jnp.ones(S, bool)
POINT = Spec({"place": ((1,), "float32")}, 2)


@pytest.fixture(scope="module")
def learner():
    return make_learner(AGENT, SPEC, N, UPDATES, BATCH, LENGTH)


@pytest.fixture(scope="module")
def single():
    """One update of one learner a call."""
    return make_learner(AGENT, SPEC, N, 1, BATCH, LENGTH)


@pytest.fixture(scope="module")
def initial(learner):
    return learner.init(KEYS)


@pytest.fixture(scope="module")
def ring(learner):
    """Each learner's own records; `reward` is the number of the record in its row, over 100."""
    chunks = [play(s, RECORDS, N) for s in range(S)]
    chunk = jax.tree.map(lambda *x: np.stack(x), *chunks)
    reward = np.broadcast_to(np.arange(RECORDS, dtype=np.float32)[:, None] / 100, (S, RECORDS, N))
    empty = empty_replay(record_spec(SPEC), S, N, RECORDS)
    return learner.add(empty, chunk.replace(reward=reward), np.full((S, N), RECORDS, np.int32))


def copy(tree):
    """For a donating call."""
    return jax.tree.map(jnp.copy, tree)


def own(state, s):
    """Learner s of a state, as a state of one learner."""

    def pick(axis, tree):
        return tree if axis is None else jax.tree.map(lambda x: x[s : s + 1], tree)

    return jax.tree.map(pick, AGENT.axes, state, is_leaf=lambda x: x is None)


def row(tree, s):
    return jax.tree.map(lambda x: x[s : s + 1], tree)


def same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def close(one, other):
    def check(a, b):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)

    jax.tree.map(check, one, other)


@pytest.fixture(scope="module")
def after(learner, initial, ring):
    """State, healthy and figures after one call."""
    return learner.update(copy(initial), ring, KEYS, FIT)


def alone(single, initial, ring, s, updates=UPDATES):
    """The same updates of learner s in a Python loop."""
    state, table = copy(own(initial, s)), []
    for _ in range(updates):
        state, _, healthy, figures = single.update(state, row(ring, s), KEYS[s : s + 1], FIT[:1])
        assert healthy.all()
        table.append(figures[0])
    return state, jnp.stack(table)


@pytest.mark.parametrize("s", range(S))
def test_equals_one_learner_and_one_update_at_a_time(single, initial, ring, after, s):
    state, figures = alone(single, initial, ring, s)
    close(own(after[0], s), state)
    close(after[3][..., s : s + 1], figures)


def test_a_learner_starts_like_one_alone(single, initial):
    close(own(initial, 1), single.init(KEYS[1:]))


def test_figures(learner, ring, after):
    figures = np.array(after[3])
    assert figures.shape == (UPDATES, len(learner.names()), S)
    assert list(learner.names()) == sorted(set(learner.names()))
    assert set(AGENT.losses) == set(learner.losses) <= set(learner.names())
    absent = {name for name, column in zip(learner.names(), figures[0], strict=True)
              if np.isnan(column).any()}  # fmt: skip
    assert absent == {"grad_norm/actor"}  # the first update is none of the actor
    seen = figures[:, learner.names().index("replay/reward")]
    for step in range(UPDATES):
        batch = learner.sample(ring, KEYS, jnp.int32(step))
        assert batch.reward.shape == (S, LENGTH, BATCH)
        np.testing.assert_allclose(seen[step], batch.reward.mean((1, 2)), rtol=1e-5)


def test_every_update_draws_its_own_noise(learner, initial, ring):
    """Where all windows are the same one, only the noise tells two updates apart."""
    same_rows = jax.tree.map(lambda x: x.at[:, 1].set(x[:, 0]), ring.data)
    one = ring.replace(data=same_rows, size=0 * ring.size + LENGTH, cursor=0 * ring.size + LENGTH)
    first, other = (
        learner.update(copy(initial).replace(step=jnp.int32(step)), one, KEYS, FIT)[3][0]
        for step in (0, 2)
    )
    name = learner.names().index
    np.testing.assert_array_equal(first[name("replay/reward")], other[name("replay/reward")])
    assert np.all(first[name("loss/image")] != other[name("loss/image")])


def test_swept_noise_is_that_of_the_learner():
    """Exploration stands in acting alone."""
    config, spec = DreamerV1Config(units=8, layers=1, deter=8, hidden=8, stoch=2), POINT
    make = lambda values: make_dreamer_v1(replace(config, **values), spec)  # noqa: E731
    swept = Swept(make, {"exploration": jnp.array([0.0, 1.0])})
    many = make_learner(make({}), spec, 64, 1, BATCH, LENGTH, swept)
    keys = jnp.stack([KEYS[0], KEYS[0]])
    obs = {"place": jnp.zeros((2, 64, 1))}
    inputs = (obs, jnp.ones((2, 64), bool), jnp.ones((2, 64), bool), keys)
    action, _ = many.act(many.init(keys), many.carry(2), *inputs, mode="train")
    for s, amount in enumerate((0.0, 1.0)):
        one = make_learner(make({"exploration": amount}), spec, 64, 1, BATCH, LENGTH)
        row_ = jax.tree.map(lambda x: x[:1], inputs)
        want, _ = one.act(one.init(keys[:1]), one.carry(1), *row_, mode="train")
        np.testing.assert_allclose(action[s], want[0], atol=1e-5)
    assert np.abs(action[0] - action[1]).mean() > 0.1
    calm, _ = many.act(many.init(keys), many.carry(2), *inputs, mode="eval")
    np.testing.assert_array_equal(calm[0], calm[1])


def test_a_second_call_compiles_nothing_and_reuses_the_memory(learner, initial, ring, after):
    state = copy(initial)
    kernel = jax.tree.leaves(state.model)[0]
    state, _, healthy, _ = learner.update(state, ring, KEYS, FIT)
    assert kernel.is_deleted() and not ring.size.is_deleted()
    learner.update(state, ring, KEYS, healthy)
    assert learner.program._cache_size() == 1


def test_the_update_never_leaves_the_device(learner, initial, ring):
    words = ("callback", "infeed", "outfeed", "stablehlo.send", "stablehlo.recv")
    text = learner.program.lower(initial, None, ring, KEYS, FIT).as_text()
    assert len(text) > 10_000 and not [word for word in words if word in text]
    loud = jax.jit(lambda x: jax.debug.print("{}", x)).lower(1.0).as_text()
    assert [word for word in words if word in loud]


# ---------------------------------------------------------------- one learner fails


def test_a_failing_learner_is_frozen_and_its_neighbour_goes_on(learner, initial, ring, after):
    bad = ring.replace(data=ring.data.replace(reward=ring.data.reward.at[1].set(jnp.nan)))
    state, _, healthy, figures = learner.update(copy(initial), bad, KEYS, FIT)
    assert healthy.tolist() == [True, False] and int(state.step) == UPDATES
    same(own(state, 0), own(after[0], 0))
    same(figures[..., 0], after[3][..., 0])
    same(own(state, 1).replace(step=0), own(initial, 1).replace(step=0))
    assert np.isnan(figures[:, learner.names().index("loss/reward"), 1]).all()
    # It stays as it is, even when its figures would be finite again.
    later, _, healthy, _ = learner.update(copy(state), ring, KEYS, healthy)
    assert healthy.tolist() == [True, False]
    same(own(later, 1).replace(step=0), own(initial, 1).replace(step=0))


def test_a_poisoned_parameter_freezes_its_learner(learner, initial, ring, after):
    state = copy(initial)
    bias = state.model["reward"]["params"]["Linear_1"]["bias"]
    bias = bias.at[0].set(jnp.inf)
    layer = state.model["reward"]["params"]["Linear_1"] | {"bias": bias}
    params = state.model["reward"]["params"] | {"Linear_1": layer}
    state = state.replace(model=state.model | {"reward": {"params": params}})
    new, _, healthy, _ = learner.update(copy(state), ring, KEYS, FIT)
    assert healthy.tolist() == [False, True]
    same(own(new, 1), own(after[0], 1))
    same(own(new, 0).replace(step=0), own(state, 0).replace(step=0))


def test_it_is_frozen_as_it_was_before_the_bad_update(learner, single, initial, ring):
    """A record that only the second batch holds is poisoned: one update remains."""
    first, second = (
        {tuple(window) for window in np.round(100 * batch.reward[1].T).astype(int).tolist()}
        for batch in (learner.sample(ring, KEYS, jnp.int32(step)) for step in range(2))
    )
    record = min({i for w in second for i in w} - {i for w in first for i in w})
    reward = ring.data.reward.at[1, :, record].set(jnp.nan)
    bad = ring.replace(data=ring.data.replace(reward=reward))
    state, _, healthy, figures = learner.update(copy(initial), bad, KEYS, FIT)
    assert healthy.tolist() == [True, False]
    want, _ = alone(single, initial, ring, 1, updates=1)
    close(own(state, 1).replace(step=0), want.replace(step=0))
    losses = figures[:, [learner.names().index(name) for name in learner.losses], 1]
    assert jnp.isfinite(losses[0]).all() and not jnp.isfinite(losses[1]).all()


def test_freeze_by_hand():
    axes, new, old = {"w": 0, "n": None}, {"w": jnp.ones((2, 3)), "n": 5}, {"w": jnp.zeros((2, 3))}
    got = freeze(jnp.array([False, True]), axes, new, old | {"n": 4})
    assert got["w"].tolist() == [[0, 0, 0], [1, 1, 1]] and got["n"] == 5


# ---------------------------------------------------------------- acting and adding


def test_environments_that_wait_keep_their_carry(learner, single, initial):
    obs = {"image": np.stack([play(s, 1, N).obs["image"][0] for s in range(S)])}
    carry = jax.tree.map(lambda x: x + 0.5, learner.carry(S))
    first, active = np.ones((S, N), bool), np.array([[True, False], [False, True]])
    for _ in range(2):
        action, new = learner.act(initial, carry, obs, first, active, KEYS, mode="train")
    assert action.shape == (S, N, SPEC.action) and learner.act._cache_size() == 1
    for was, now in zip(jax.tree.leaves(carry), jax.tree.leaves(new), strict=True):
        np.testing.assert_array_equal(was[~active], now[~active])
        assert not np.any(np.all(was[active] == now[active], axis=-1))
    both = learner.act(initial, carry, obs, first, FIT[:, None] | active, KEYS, mode="train")[0]
    np.testing.assert_array_equal(both, action)  # who waits does not change who acts
    one, _ = single.act(
        own(initial, 1), row(carry, 1), row(obs, 1), first[1:], active[1:], KEYS[1:], mode="train"
    )
    np.testing.assert_allclose(action[1], one[0], rtol=1e-4, atol=1e-5)


def test_an_empty_ring_has_a_place_for_every_record():
    ring = empty_replay(record_spec(SPEC), S, N, 7)
    jax.tree.map(
        lambda leaf, record: (
            (leaf.shape, leaf.dtype) == ((S, N, 7, *record.shape), record.dtype)
            or pytest.fail(f"{leaf.shape} {leaf.dtype}")
        ),
        ring.data,
        record_spec(SPEC),
    )
    assert ring.size.tolist() == ring.cursor.tolist() == [[0, 0], [0, 0]]


# ---------------------------------------------------------------- what stands beside the records


class Counting(NamedTuple):
    """What it leaves beside a record is one more than it read beside the record before."""

    step: jax.Array


def counting_agent():
    def update(state, batch, key):
        metrics = {"loss/total": jnp.mean(batch.reward), "seen": jnp.mean(batch.context)}
        return Counting(state.step + 1), metrics, batch.context[:-1] + 1.0

    return Agent(
        init=lambda key: Counting(jnp.zeros((), jnp.int32)),
        carry=lambda number: jnp.zeros((number, 3)),
        act=lambda state, carry, *rest, mode: (jnp.zeros((N, SPEC.action)), carry),
        update=update,
        report=lambda state, batch, key: {},
        axes=Counting(None),
        losses=("loss/total",),
        context=lambda carry: carry[:, 0] + 7.0,
    )


@pytest.fixture(scope="module")
def counted():
    """Agent's learner, a ring whose rewards say where a record stands and its contexts."""
    agent = counting_agent()
    learner = make_learner(agent, SPEC, N, UPDATES, 1, LENGTH)
    record = record_spec(SPEC, agent)
    place = 100.0 * np.arange(N) + np.arange(RECORDS)[:, None]
    place = np.broadcast_to(place, (S, RECORDS, N)).astype(np.float32)
    chunk = jax.tree.map(lambda *x: np.stack(x), *(play(s, RECORDS, N) for s in range(S)))
    chunk = chunk.replace(reward=place, context=1000.0 + 7.0 * place)
    ring = learner.add(empty_replay(record, S, N, 50), chunk, np.full((S, N), RECORDS, np.int32))
    return learner, ring


def renewed(learner, ring, s, updates=UPDATES):
    """The contexts of learner s after so many updates, one by one."""
    want = np.array(ring.data.context[s])
    for step in range(updates):
        window = learner.sample(ring, KEYS, jnp.int32(step))
        row, slot = divmod(int(window.reward[s, 0, 0]), 100)
        read = want[row, slot : slot + LENGTH].copy()
        want[row, slot + 1 : slot + LENGTH] = read[:-1] + 1
    return want


def test_what_an_agent_keeps_has_a_place_in_the_ring(counted):
    learner, ring = counted
    assert ring.data.context.shape == (S, N, 50)
    assert learner.context(jnp.zeros((S, N, 3))).tolist() == [[7.0] * N] * S
    assert record_spec(SPEC).context is None and record_spec(SPEC, AGENT).context is None


def test_an_update_reads_and_renews_the_contexts_of_its_records(counted):
    learner, ring = counted
    want = np.stack([renewed(learner, ring, s) for s in range(S)])
    _, new, healthy, _ = learner.update(learner.init(KEYS), copy(ring), KEYS, FIT)
    assert healthy.all() and (want != ring.data.context).sum() > S * (LENGTH - 1)
    np.testing.assert_array_equal(new.data.context, want)
    same(
        new.replace(data=new.data.replace(context=0)),
        ring.replace(data=ring.data.replace(context=0)),
    )


def test_contexts_are_written_in_place_and_without_another_compilation(counted):
    learner, ring = counted
    ring = copy(ring)
    _, new, healthy, _ = learner.update(learner.init(KEYS), ring, KEYS, FIT)
    assert ring.data.context.is_deleted() and not ring.data.reward.is_deleted()
    learner.update(learner.init(KEYS), new, KEYS, healthy)
    assert learner.program._cache_size() == 1


def test_a_failing_learner_leaves_its_contexts_as_they_were(counted):
    learner, ring = counted
    bad = copy(ring)
    bad = bad.replace(data=bad.data.replace(reward=bad.data.reward.at[1].set(jnp.nan)))
    _, new, healthy, _ = learner.update(learner.init(KEYS), bad, KEYS, FIT)
    assert healthy.tolist() == [True, False]
    np.testing.assert_array_equal(new.data.context[1], ring.data.context[1])
    np.testing.assert_array_equal(new.data.context[0], renewed(learner, ring, 0))
