"""The replay against plain Python deques, and what it may and may not sample."""

from collections import deque
from functools import partial

import flashbax as fbx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer_jax import replay

ROWS, CAPACITY, LENGTH = 3, 7, 3
RECORD = {"x": jax.ShapeDtypeStruct((2,), jnp.float32), "n": jax.ShapeDtypeStruct((), jnp.int32)}
add = jax.jit(replay.add)
sample = jax.jit(replay.sample, static_argnames=("batch", "length"))


def number(row, i):
    """The n of row's i-th record: tells row and place."""
    return 1000 * (row + 1) + i


def chunk(first, length, rows=ROWS):
    """Records first[row] .. first[row] + length - 1 of each row, leaves [K, N, ...]."""
    n = np.array([[number(r, first[r] + k) for r in range(rows)] for k in range(length)], np.int32)
    return {"x": np.stack([n, -n], axis=-1).astype(np.float32), "n": n}


def filled(counts, capacity=CAPACITY, most=4):
    """A ring to which row r got counts[r] records, a few at a time."""
    state, done = replay.init(RECORD, len(counts), capacity), np.zeros(len(counts), int)
    while (done < counts).any():
        new = np.minimum(np.array(counts) - done, most)
        state = add(state, chunk(done, most, len(counts)), jnp.array(new, jnp.int32))
        done += new
    return state


def contents(state, row):
    """The records of a row from the oldest to the newest."""
    size, cursor = int(state.size[row]), int(state.cursor[row])
    return [int(state.data["n"][row, (cursor - size + i) % CAPACITY]) for i in range(size)]


@pytest.mark.parametrize("seed", range(8))
def test_equals_a_deque_and_never_crosses_the_seam(seed):
    rng = np.random.default_rng(seed)
    state, done = replay.init(RECORD, ROWS, CAPACITY), np.zeros(ROWS, int)
    model = [deque(maxlen=CAPACITY) for _ in range(ROWS)]
    for step in range(25):
        count = rng.integers(0, 6, ROWS) * (rng.uniform(size=ROWS) < 0.7)
        state = add(state, chunk(done, 5), jnp.array(count, jnp.int32))
        for row in range(ROWS):
            model[row].extend(number(row, done[row] + k) for k in range(count[row]))
            assert contents(state, row) == list(model[row])
        done += count
        runs = {tuple(list(m)[i : i + LENGTH]) for m in model for i in range(len(m) - LENGTH + 1)}
        assert int(replay.windows(state.size, LENGTH).sum()) == len(runs)
        if runs:
            got = sample(state, jax.random.key(step), batch=32, length=LENGTH)
            assert got["n"].shape == (LENGTH, 32) and got["x"].shape == (LENGTH, 32, 2)
            assert {tuple(column) for column in np.array(got["n"]).T.tolist()} <= runs
            np.testing.assert_array_equal(got["x"][..., 0], got["n"])  # leaves stay together
            np.testing.assert_array_equal(got["x"][..., 1], -got["n"])


def test_windows_are_uniform_over_unequal_rows():
    # sizes 7 (wrapped), 4, 2 -> 5 + 2 + 0 windows of 3, each with probability 1/7
    state = filled([10, 4, 2])
    draws = 7000
    starts = np.array(sample(state, jax.random.key(0), batch=draws, length=LENGTH)["n"][0])
    expected = [number(0, i) for i in range(3, 8)] + [number(1, i) for i in range(2)]
    values, counts = np.unique(starts, return_counts=True)
    assert values.tolist() == expected
    # chi-square with 6 degrees of freedom: 22.5 is exceeded with probability 0.001
    assert np.sum((counts - draws / 7) ** 2 / (draws / 7)) < 22.5


def test_a_single_window_is_always_found():
    state = filled([2, 3, 0])
    got = sample(state, jax.random.key(0), batch=8, length=LENGTH)["n"]
    np.testing.assert_array_equal(got, np.tile([[2000], [2001], [2002]], 8))


def test_count_zero_changes_nothing():
    state = filled([10, 4, 0])
    after = add(state, chunk([50, 50, 50], 5), jnp.zeros(ROWS, jnp.int32))
    jax.tree.map(np.testing.assert_array_equal, after, state)


def test_a_longer_ring_has_the_same_records_and_room_for_more():
    """Rows full and turned, full and unturned, not full; then all are added to."""
    old = replay.init({"x": jnp.zeros((), jnp.int32)}, rows=3, capacity=4)
    chunk = {"x": jnp.arange(12).reshape(4, 3)}
    for count in ([4, 4, 1], [2, 0, 1]):
        old = replay.add(old, chunk, jnp.array(count))
    new = replay.grow(old, 6)
    np.testing.assert_array_equal(new.cursor, [4, 4, 2])
    np.testing.assert_array_equal(new.size, [4, 4, 2])
    want = [[6, 9, 0, 3, 0, 0], [1, 4, 7, 10, 0, 0], [2, 2, 0, 0, 0, 0]]
    np.testing.assert_array_equal(new.data["x"], want)
    more = replay.add(new, {"x": jnp.full((3, 3), 50)}, jnp.array([1, 3, 2]))
    want = [[6, 9, 0, 3, 50, 0], [50, 4, 7, 10, 50, 50], [2, 2, 50, 50, 0, 0]]
    np.testing.assert_array_equal(more.data["x"], want)
    np.testing.assert_array_equal(replay.grow(old, 4).data["x"][0], [6, 9, 0, 3])
    with pytest.raises(AssertionError, match="ring of 4 does not fit one of 3"):
        replay.grow(old, 3)


def test_what_does_not_fit_is_refused():
    state, count = replay.init(RECORD, ROWS, CAPACITY), jnp.zeros(ROWS, jnp.int32)
    good = chunk([0] * ROWS, 5)
    for bad in (
        good | {"n": good["n"].astype(np.float32)},
        good | {"x": good["x"][..., :1]},
        good | {"n": good["n"][:-1]},
        chunk([0] * 2, 5, rows=2),
        chunk([0] * ROWS, CAPACITY + 1),
    ):
        with pytest.raises(AssertionError):
            replay.add(state, bad, count)


def test_bytes_by_hand():
    # 3 rows x 7 records x (2 floats + 1 int) x 4 bytes
    assert replay.replay_bytes(RECORD, ROWS, CAPACITY) == 3 * 7 * 3 * 4


def test_two_learners_under_vmap_equal_each_alone():
    alone = [filled([10, 4, 2]), filled([3, 9, 20])]
    stack = partial(jax.tree.map, lambda *x: jnp.stack(x))
    chunks, counts = chunk([30] * ROWS, 4), jnp.array([[4, 1, 2], [0, 3, 4]], jnp.int32)
    keys = jax.random.split(jax.random.key(3), 2)
    both = jax.vmap(replay.add)(stack(*alone), stack(chunks, chunks), counts)
    batch = jax.vmap(lambda r, k: replay.sample(r, k, 6, LENGTH))(both, keys)
    for s in range(2):
        one = add(alone[s], chunks, counts[s])
        jax.tree.map(lambda x, y, s=s: np.testing.assert_array_equal(x[s], y), both, one)
        want = sample(one, keys[s], batch=6, length=LENGTH)
        jax.tree.map(lambda x, y, s=s: np.testing.assert_array_equal(x[s], y), batch, want)


def test_of_two_records_for_one_place_the_last_is_written_whole():
    """Two windows of row 1 and one of row 0; place 2 of row 1 is in both of the first."""
    places = replay.Places(jnp.array([[1, 1, 0]]), jnp.array([[1, 2, 6], [2, 3, 0]]))
    data = {"x": jnp.zeros((2, CAPACITY, 2)), "n": jnp.zeros((2, CAPACITY), jnp.int32)}
    n = jnp.array([[10, 20, 30], [11, 21, 31]])
    new = {"x": jnp.stack([n, -n], -1).astype(jnp.float32), "n": n}
    got = jax.jit(replay.write)(data, places, new)
    want = np.zeros((2, CAPACITY), int)
    want[0, [6, 0]], want[1, [1, 2, 3]] = (30, 31), (10, 11, 21)
    np.testing.assert_array_equal(got["n"], want)
    np.testing.assert_array_equal(got["x"], np.stack([want, -want], -1))
    assert replay.write({"x": None}, places, {"x": None}) == {"x": None}  # nothing is kept


def test_a_donated_ring_is_written_in_place():
    donating = jax.jit(replay.add, donate_argnums=0)
    state = filled([1, 1, 1])
    old = state.data["x"]
    place = old.unsafe_buffer_pointer()
    state = donating(state, chunk([1] * ROWS, 2), jnp.full(ROWS, 2, jnp.int32))
    assert old.is_deleted() and state.data["x"].unsafe_buffer_pointer() == place
    assert contents(state, 2) == [3000, 3001, 3002]


@pytest.mark.parametrize("total", [5, 10])  # before and after the ring wraps
def test_same_windows_as_flashbax(total):
    rows, counts = 2, [total, total]
    buffer = fbx.make_trajectory_buffer(
        add_batch_size=rows,
        sample_batch_size=64,
        sample_sequence_length=LENGTH,
        period=1,
        min_length_time_axis=LENGTH,
        max_length_time_axis=CAPACITY,
    )
    theirs = buffer.init({"n": jnp.zeros((), jnp.int32)})
    for i in range(0, total, 5):
        part = chunk([i] * rows, 5, rows)["n"]
        theirs = buffer.add(theirs, {"n": jnp.array(part.T)})
    ours = filled(counts, most=5)
    got, want = set(), set()
    for seed in range(4):
        key = jax.random.key(seed)
        got |= {tuple(w) for w in np.array(sample(ours, key, batch=64, length=LENGTH)["n"]).T}
        want |= {tuple(w) for w in np.array(buffer.sample(theirs, key).experience["n"])}
    assert got == want and len(got) == rows * (min(total, CAPACITY) - LENGTH + 1)
