"""Records of the counting environment, laid out for the replay: nothing lost, nothing shifted."""

import json

import jax
import numpy as np
import pytest
from counting_env import MakeCounting

from dreamer_jax.training.collect import Collector, Decision
from envs.vector import VectorEnv

S, N = 2, 2  # environment e belongs to learner e // 2
CHUNK = 12


def seeds(e):
    """Even seeds terminate, odd ones are truncated; episodes take 2 + seed % 3 decisions."""
    return lambda episode: 40 * e + 7 * (e % 2) + episode


@pytest.fixture(scope="module")
def worker():
    """One environment process for all tests; each starts from an unplayed state."""
    with VectorEnv(MakeCounting(), [seeds(e) for e in range(S * N)], num_workers=1) as env:
        unplayed = env.snapshot()
        yield lambda: env.restore(unplayed) and env


def stream(e, length):
    """What environment e gives, one by one: (seed, count, first, last, terminal)."""
    found, episode = [], 0
    while len(found) < length:
        seed = seeds(e)(episode)
        steps = 2 + seed % 3
        for count in range(steps + 1):
            last = count == steps
            found.append((seed, count, count == 0, last, last and seed % 2 == 0))
        episode += 1
    return found[:length]


def leaves(chunk):
    """The arrays of a chunk by name; seen without the resets, which earlier tests made too."""
    kept = {name: x for name, x in vars(chunk).items() if x is not None}
    return kept | {"obs": chunk.obs["vector"][..., :2]}


def policy(record, active, step):
    """An action that tells its environment and depends on what is seen."""
    e = np.arange(S * N)
    count = record.observation["vector"][:, 1]
    return Decision(np.stack([count / 10, e + record.reward / 100], 1).astype(np.float32))


def check_row(chunk, e, expected):
    """The first records of row e, with the actions that `policy` took one record earlier."""
    s, n = divmod(e, N)
    seen, reward = 0, 0.0  # count and reward of the record before
    for k, (seed, count, first, _, terminal) in enumerate(expected):
        action = np.array([seen / 10, e + reward / 100], np.float32)
        reward = 0.0 if first else np.float32(count + float(action[0]))
        assert chunk.obs["vector"][s, k, n, :2].tolist() == [seed, count]
        assert chunk.is_first[s, k, n] == first and chunk.is_terminal[s, k, n] == terminal
        np.testing.assert_array_equal(chunk.prev_action[s, k, n], 0 * action if first else action)
        assert chunk.reward[s, k, n] == reward
        seen = count


def test_steps_bring_each_record_once_with_the_action_that_led_to_it(worker):
    got = Collector(worker(), S, CHUNK).steps(policy, 11)
    assert got.count.tolist() == [[11, 11], [11, 11]] and got.count.dtype == np.int32
    assert got.chunk.obs["vector"].shape == (S, CHUNK, N, 3)
    assert got.chunk.prev_action.shape == (S, CHUNK, N, 2)
    assert got.chunk.reward.dtype == got.chunk.prev_action.dtype == np.float32
    assert got.chunk.obs["vector"].dtype == np.float32
    for e in range(S * N):
        check_row(got.chunk, e, stream(e, 11))
    assert not any(leaf[:, 11].any() for leaf in jax.tree.leaves(got.chunk))  # beyond the count


def test_only_true_ends_are_terminal(worker):
    chunk = Collector(worker(), S, CHUNK).steps(policy, 11).chunk
    ends = {
        seed: chunk.is_terminal[e // N, k, e % N]
        for e in range(S * N)
        for k, (seed, _, _, last, _) in enumerate(stream(e, 11))
        if last
    }
    assert len(ends) == 8 and all(end == (seed % 2 == 0) for seed, end in ends.items())


def test_a_cycle_goes_on_where_the_last_one_ended(worker):
    collector, parts = Collector(worker(), S, CHUNK), []
    for number in (4, 1, 6):
        parts.append(collector.steps(policy, number))
    whole = Collector(worker(), S, CHUNK).steps(policy, 11)
    for name, want in leaves(whole.chunk).items():
        pieces = [
            leaves(part.chunk)[name][:, :number]
            for part, number in zip(parts, (4, 1, 6), strict=True)
        ]
        np.testing.assert_array_equal(np.concatenate(pieces, 1), want[:, :11])
    assert [x for part in parts for x in part.episodes] == whole.episodes


def test_episodes_by_hand(worker):
    """Learner 0 has seeds 0, 1, .. and 47, 48, ..; decisions 2, 3, 4, .. and 4, 2, 3, ..

    Both reset at step 0. Environment 0 ends at step 2 after rewards 1 + 0.0 and 2 + 0.1; both have
    made 2 decisions of 3 frames by then. Environment 1 ends at step 4; by then environment 0, reset
    at step 3, has made one more: 7 decisions.
    """
    collector = Collector(worker(), S, CHUNK)
    first, second = (x for x in collector.steps(policy, 5).episodes if x.learner == 0)
    assert (first.decisions, first.frames, first.frames_total) == (2, 6, 12)
    assert first.reward == pytest.approx(3.1) and first.lap
    assert first.progress == pytest.approx(0.2)
    assert (second.decisions, second.frames, second.frames_total) == (4, 12, 21)
    assert second.reward == pytest.approx(1 + 2.1 + 3.2 + 4.3)
    # Seeds 80 and 127 make 4 and 3 decisions: after 4 steps and the reset 4 + 3 of them
    assert collector.frames.tolist() == [21, 21]
    # The next episode of environment 0 starts from nothing: 3 decisions, ending at step 6
    third = next(x for x in collector.steps(policy, 2).episodes if x.learner == 0)
    assert (third.decisions, third.frames) == (3, 9)
    assert third.reward == pytest.approx(1 + 2.1 + 3.2)


def test_what_the_policy_knew_stands_beside_the_record_that_followed(worker):
    def knowing(record, active, step):
        known = {"seen": record.observation["vector"][:, :2], "step": np.full(S * N, step)}
        return policy(record, active, step)._replace(context=known)

    env = worker()
    shapes = {"seen": jax.ShapeDtypeStruct((2,), np.float32), "step": jax.ShapeDtypeStruct((), int)}
    chunk = Collector(env, S, CHUNK, shapes).steps(knowing, 11).chunk
    assert chunk.context["step"][:, :11].tolist() == [[[k] * N for k in range(11)]] * S
    seen, obs = chunk.context["seen"][:, 1:11], chunk.obs["vector"][:, :10, :, :2]
    np.testing.assert_array_equal(seen, obs)
    drawn = Collector(worker(), S, CHUNK, shapes).steps(policy, 11).chunk.context
    assert not drawn["seen"].any() and drawn["step"].shape == (S, CHUNK, N)


@pytest.mark.parametrize("number", [1, 2])
def test_whole_episodes_end_exactly_at_their_ends(worker, number):
    env, asked = worker(), []

    def counting(record, active, step):
        asked.append(active.copy())
        return policy(record, active, step)

    collector = Collector(env, S, CHUNK)
    for cycle in range(2):  # the second begins with a reset of all
        got = collector.episodes(counting, number)
        assert len(got.episodes) == S * N * number
        for e in range(S * N):
            before = [2 + seeds(e)(i) % 3 + 1 for i in range(cycle * number)]
            records = [2 + seeds(e)(cycle * number + i) % 3 + 1 for i in range(number)]
            assert got.count[e // N, e % N] == sum(records)
            assert all(active[e] == (i < sum(records)) for i, active in enumerate(asked))
            taken = stream(e, sum(before) + sum(records))[sum(before) :]
            s, n = divmod(e, N)
            flags = got.chunk.is_first[s, : sum(records), n].tolist()
            assert flags == [first for _, _, first, _, _ in taken] and flags[0]
            assert got.chunk.obs["vector"][s, sum(records) - 1, n, 1] == taken[-1][1]
        asked.clear()
    made = [2 + seeds(e)(i) % 3 for e in range(S * N) for i in range(2 * number)]
    decisions = np.reshape(made, (S, -1)).sum(1)
    assert collector.frames.tolist() == (3 * decisions).tolist()  # nothing for waiting


def test_what_the_policy_saw_is_not_overwritten(worker):
    kept, copies = [], []

    def keeping(record, active, step):
        kept.append(record)
        copies.append([field.copy() for field in record.arrays()])
        return policy(record, active, step)

    Collector(worker(), S, CHUNK).steps(keeping, 6)
    for record, then in zip(kept, copies, strict=True):
        for field, value in zip(record.arrays(), then, strict=True):
            np.testing.assert_array_equal(field, value)


@pytest.mark.parametrize("before", [0, 1, 3, 5])
def test_it_continues_from_its_state(worker, before):
    collector = Collector(worker(), S, CHUNK)
    if before:
        collector.steps(policy, before)
    state = json.loads(json.dumps(collector.get_state()))
    want = collector.steps(policy, 8)
    after = collector.get_state()
    other = Collector(worker(), S, CHUNK)
    other.steps(policy, 2)  # to be forgotten
    other.set_state(state)
    got = other.steps(policy, 8)
    for name, value in leaves(want.chunk).items():
        np.testing.assert_array_equal(leaves(got.chunk)[name], value)
    assert got.episodes == want.episodes
    assert other.get_state() == after


@pytest.mark.parametrize("before", [0, 1, 3, 5])
def test_it_may_go_on_with_new_episodes(worker, before):
    """Of the next seeds, from their resets on; what was under way is neither played nor counted."""
    collector = Collector(worker(), S, CHUNK)
    if before:
        collector.steps(policy, before)
    state = json.loads(json.dumps(collector.get_state()))
    collector.set_state(state, same_episodes=False)
    assert collector.frames.tolist() == state["frames"]
    got = collector.episodes(policy, 1)
    for e, past in enumerate(state["streams"]):
        seed = seeds(e)(past["episode"] + past["started"])
        seen = got.chunk.obs["vector"][e // N, : 3 + seed % 3, e % N, :2]
        assert seen.tolist() == [[seed, count] for count in range(3 + seed % 3)]
        assert got.chunk.is_first[e // N, :, e % N].tolist() == [True] + [False] * (CHUNK - 1)
        assert 2 + seed % 3 in [x.decisions for x in got.episodes if x.learner == e // N]
    assert len(got.episodes) == S * N
