"""Streams of records from worker processes: order, masks, restoring, and dying well."""

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from multiprocessing.context import SpawnProcess
from pathlib import Path

import numpy as np
import pytest
from counting_env import MakeCounting, Numbered
from hanging_env import MakeHanging

from envs.make import EpisodeSeeds, MakeEnv
from envs.vector import EnvironmentDied, VectorEnv

RACE = MakeEnv("DreamerCarRacing-v3", {"time_limit": 90})


def counting(num_envs, fault="", at_step=2, **options):
    seeds = [Numbered(e) for e in range(num_envs)]
    return VectorEnv(MakeCounting(fault, at_step), seeds, **options)


def expected_stream(e, length):
    """Environment e's (seed, count, resets), is_first, is_last, is_terminal, one by one."""
    stream, episode = [], 0
    while len(stream) < length:
        seed = 100 * e + episode
        episode += 1
        steps = 2 + seed % 3
        for count in range(steps + 1):
            last = count == steps
            stream.append(((seed, count, episode), count == 0, last, last and seed % 2 == 0))
    return stream[:length]


def check_row(record, e, expected, action):
    observation, is_first, is_last, is_terminal = expected
    assert tuple(record.observation["vector"][e]) == observation
    flags = (record.is_first[e], record.is_last[e], record.is_terminal[e], record.lap_finished[e])
    assert flags == (is_first, is_last, is_terminal, is_last)
    assert record.frames[e] == (0 if is_first else 3)
    assert record.reward[e] == (0 if is_first else np.float32(observation[1] + float(action[0])))


@pytest.mark.parametrize("num_workers", [1, 2])
def test_each_observation_comes_exactly_once(num_workers):
    rng = np.random.default_rng(0)
    with counting(3, num_workers=num_workers) as envs:
        assert envs.num_envs == 3 and envs.observation_space["vector"].shape == (3,)
        streams = [expected_stream(e, 40) for e in range(3)]
        for step in range(40):
            actions = rng.uniform(-1, 1, (3, 2)).astype(np.float32)
            record = envs.step(actions)
            for e in range(3):
                check_row(record, e, streams[e][step], actions[e])


def test_inactive_environments_are_not_touched():
    rng = np.random.default_rng(1)
    with counting(3, num_workers=2) as envs:
        streams, taken = [expected_stream(e, 60) for e in range(3)], [0, 0, 0]
        before = envs.record.copy()
        for _ in range(60):
            actions = rng.uniform(-1, 1, (3, 2)).astype(np.float32)
            active = rng.uniform(size=3) < [0.9, 0.5, 0.1]
            actions[~active] = np.nan  # what stands there is nobody's business
            record = envs.step(actions, active)
            np.testing.assert_array_equal(record.given, active)
            for e in range(3):
                if active[e]:
                    check_row(record, e, streams[e][taken[e]], actions[e])
                    taken[e] += 1
                else:
                    for now, then in zip(
                        record.arrays(), before._replace(given=active).arrays(), strict=True
                    ):
                        np.testing.assert_array_equal(now[e], then[e])
            before = record.copy()
        assert min(taken) > 0


def test_what_is_done_meanwhile_is_done_once_and_may_fail():
    calls = []
    with counting(2) as envs:
        envs.step(np.zeros((2, 2)), meanwhile=lambda: calls.append(envs.record.given.copy()))
        assert len(calls) == 1

        def fail():
            raise KeyError("meanwhile")

        with pytest.raises(KeyError):
            envs.step(np.zeros((2, 2)), meanwhile=fail)
        with pytest.raises(EnvironmentDied, match="interrupted"):
            envs.step(np.zeros((2, 2)))


def test_actions_arrive_and_are_kept_as_float32():
    action = np.array([[1 / 3, 1e-7]], np.float32)
    with counting(1) as envs:
        envs.step(action)
        assert envs.step(action.astype(np.float64)).reward[0] == np.float32(1 + float(action[0, 0]))
        kept = json.loads(json.dumps(envs.snapshot()))[0]["actions"]
        np.testing.assert_array_equal(np.array(kept, np.float32), action)


def test_a_race_continues_from_its_snapshot():
    rng, seeds = np.random.default_rng(2), [EpisodeSeeds(e) for e in range(4)]
    active = np.array([True, True, True, False])
    with VectorEnv(RACE, seeds, num_workers=2) as envs:
        while not envs.record.is_last[0]:  # 0: at its end
            envs.step(rng.uniform(-1, 1, (4, 2)), np.array([True, False, False, False]))
        envs.step(rng.uniform(-1, 1, (4, 2)), np.array([False, True, True, False]))  # 2: just reset
        for _ in range(7):  # 1: amidst an episode; 3: not started
            envs.step(rng.uniform(-1, 1, (4, 2)), np.array([False, True, False, False]))
        snapshot, then = json.loads(json.dumps(envs.snapshot())), envs.record.copy()
        actions = rng.uniform(-1, 1, (20, 4, 2)).astype(np.float32)
        later = [envs.step(actions[i], active if i < 3 else None).copy() for i in range(20)]
    assert [past["started"] for past in snapshot] == [True, True, True, False]
    assert [past["ended"] for past in snapshot] == [True, False, False, False]
    with VectorEnv(RACE, seeds, num_workers=1) as envs:
        then = then._replace(given=np.zeros(4, bool))
        for now, before in zip(envs.restore(snapshot).arrays(), then.arrays(), strict=True):
            np.testing.assert_array_equal(now, before)
        assert envs.snapshot() == snapshot
        for i, expected in enumerate(later):
            record = envs.step(actions[i], active if i < 3 else None)
            for now, before in zip(record.arrays(), expected.arrays(), strict=True):
                np.testing.assert_array_equal(now, before)


def test_restoring_drops_what_was_played_since():
    with counting(2, num_workers=1) as envs:
        zeros = np.zeros((2, 2))
        envs.step(zeros)
        snapshot = envs.snapshot()
        for _ in range(9):
            envs.step(zeros)
        assert list(envs.restore(snapshot).observation["vector"][:, 1]) == [0, 0]
        assert list(envs.step(zeros).observation["vector"][:, 1]) == [1, 1]
        with pytest.raises(ValueError, match="snapshot"):
            envs.restore(snapshot[:1])
        snapshot[1]["actions"] = [[0.0, 0.0]] * 30
        with pytest.raises(EnvironmentDied, match="do not lead"):
            envs.restore(snapshot)


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        ("step", "ArithmeticError: wheel came off"),
        ("pipe", "ConnectionResetError: the simulator hung up"),
        ("kill", "killed by SIGKILL"),
        ("reset", "OSError: no more tracks"),
        ("modules", "jax imported: False"),
    ],
)
def test_a_failing_environment_is_named(fault, text):
    envs, zeros = counting(2, fault, num_workers=2), np.zeros((2, 2))
    with pytest.raises(EnvironmentDied, match=text) as died:
        for _ in range(8):
            before = envs.snapshot()
            envs.step(zeros)
    assert "environment" in str(died.value) and "seed" in str(died.value)
    assert "--resume" in str(died.value)
    assert envs.snapshot() == before
    for call in (lambda: envs.step(zeros), lambda: envs.restore(before)):
        with pytest.raises(EnvironmentDied, match=text):
            call()
    envs.close()
    envs.close()


def test_a_worker_killed_amidst_a_step_is_noticed_at_once():
    envs, zeros = counting(3, "hang", num_workers=2), np.zeros((3, 2))
    envs.step(zeros)
    envs.step(zeros)
    pid = envs._workers[1].process.pid
    killer = threading.Timer(0.5, os.kill, (pid, signal.SIGKILL))
    start = time.monotonic()
    killer.start()
    with pytest.raises(EnvironmentDied, match=r"environment 1 .*seed 100, after 1 steps.*SIGKILL"):
        envs.step(zeros)
    assert time.monotonic() - start < 5
    envs.close()  # the other one still hangs
    assert time.monotonic() - start < 8
    killer.join()


def hanging(num_envs, place, *options, num_workers=2, timeout=1.0):
    """Environments of `MakeHanging` and the process ids of their workers."""
    seeds = [Numbered(e) for e in range(num_envs)]
    make = MakeHanging(place, *options)
    envs = VectorEnv(make, seeds, num_workers=num_workers, timeout=timeout)
    return envs, [each.process.pid for each in envs._workers]


def past(episode, steps):
    """What a snapshot says of an environment in the midst of an episode."""
    return {"episode": episode, "actions": [[0.0] * 2] * steps, "ended": False, "started": True}


def test_an_environment_that_hangs_in_step_is_named_and_ended():
    envs, pids = hanging(3, "step", 1e6, 100)  # environments 1 and 2 share the second worker
    envs.step(np.zeros((3, 2)))
    before, start = envs.snapshot(), time.monotonic()
    text = r"^environment 1 \(episode 0, seed 100, after 0 steps\): hung in step, .* for 1 s.*--res"
    with pytest.raises(EnvironmentDied, match=text):
        envs.step(np.zeros((3, 2)))
    assert 1 < time.monotonic() - start < 4
    assert not any(alive(pid) for pid in pids)
    assert envs.snapshot() == before
    with pytest.raises(EnvironmentDied, match=text):
        envs.restore(before)
    envs.close()


def test_an_environment_that_hangs_in_reset_is_named_and_ended():
    envs, pids = hanging(2, "reset", 1e6, 100)
    envs.step(np.zeros((2, 2)), np.array([True, False]))
    text = r"^environment 1 \(not started\): hung in reset to seed 100,"
    with pytest.raises(EnvironmentDied, match=text):
        envs.step(np.zeros((2, 2)))
    assert not any(alive(pid) for pid in pids)


def test_an_environment_that_hangs_while_it_is_restored_is_named_and_ended():
    envs, pids = hanging(2, "step", 1e6, 100)
    text = r"^environment 1 .*seed 100, after 1 steps\): hung in restore"
    with pytest.raises(EnvironmentDied, match=text):
        envs.restore([past(0, 1)] * 2)
    assert not any(alive(pid) for pid in pids)


def test_an_environment_that_hangs_in_its_constructor_is_named(monkeypatch):
    monkeypatch.setattr("envs.vector.START_SECONDS", 0.1)
    with pytest.raises(EnvironmentDied, match=r"environment 0 \(not started\): hung in start"):
        hanging(1, "start", num_workers=1)


def test_a_process_that_ignores_being_asked_is_killed(monkeypatch):
    monkeypatch.setattr("envs.vector.GRACE_SECONDS", 0.2)
    envs, pids = hanging(2, "step", 1e6)
    envs.step(np.zeros((2, 2)))
    start = time.monotonic()
    with pytest.raises(EnvironmentDied, match=r"environment 0 .*; environment 1 .*: hung"):
        envs.step(np.zeros((2, 2)))
    assert time.monotonic() - start < 4
    assert not any(alive(pid) for pid in pids)


def test_a_stopped_process_counts_as_hung(monkeypatch):
    monkeypatch.setattr("envs.vector.GRACE_SECONDS", 0.2)
    envs, pids = hanging(2, "nowhere", num_workers=1)
    os.kill(pids[0], signal.SIGSTOP)
    with pytest.raises(EnvironmentDied, match=r"environment 0 .*; environment 1 .*: hung"):
        envs.step(np.zeros((2, 2)))
    assert not alive(pids[0])


def test_the_limit_is_for_one_environment_and_one_action():
    envs, _ = hanging(3, "step", 0.5, num_workers=1, timeout=1.3)
    with envs:
        envs.step(np.zeros((3, 2)))
        start = time.monotonic()
        assert list(envs.step(np.zeros((3, 2))).observation["vector"][:, 1]) == [1] * 3
        assert time.monotonic() - start > 1.3
        start = time.monotonic()
        idle = past(0, 0) | {"started": False}
        assert envs.restore([past(2, 3), idle, idle]).observation["vector"][0, 1] == 3
        assert time.monotonic() - start > 1.3


def test_time_in_which_we_stand_still_does_not_count(monkeypatch):
    envs, _ = hanging(1, "step", 0.5, num_workers=1, timeout=1.3)
    clock = itertools.count(step=3600.0)  # an hour at every look
    with envs:
        envs.step(np.zeros((1, 2)))
        with monkeypatch.context() as patch:
            patch.setattr(time, "monotonic", lambda: next(clock))
            assert envs.step(np.zeros((1, 2))).observation["vector"][0, 1] == 1


def test_an_interrupted_step_is_not_played_on(monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    with counting(2, num_workers=1) as envs:
        envs.step(np.zeros((2, 2)))
        before = envs.snapshot()
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr("envs.vector.wait", interrupt)
            envs.step(np.zeros((2, 2)))
        assert envs.snapshot() == before
        with pytest.raises(EnvironmentDied, match="interrupted"):
            envs.step(np.zeros((2, 2)))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_all_processes_leaves_the_environments_at_work(number):
    """Whoever started them decides: a cycle can be finished and saved."""
    with counting(2, num_workers=2) as envs:
        for each in envs._workers:
            os.kill(each.process.pid, number)
        assert envs.step(np.zeros((2, 2))).given.all()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finds_no_process_that_is_only_starting(number, monkeypatch):
    """Python itself takes its time to begin, and would die of either."""
    start = SpawnProcess.start

    def signalled(process):
        start(process)
        os.kill(process.pid, number)

    monkeypatch.setattr(SpawnProcess, "start", signalled)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    with counting(2, num_workers=2) as envs:
        assert envs.step(np.zeros((2, 2))).given.all()
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before


SCRIPT = """  # unguarded: a worker that imported it would start workers of its own
import os, signal
from envs.make import EpisodeSeeds, MakeEnv
from envs.vector import VectorEnv
envs = VectorEnv(MakeEnv("DreamerCarRacing-v3"), [EpisodeSeeds(0), EpisodeSeeds(1)], 2)
print(*(each.process.pid for each in envs._workers), flush=True)
"""
KILLED = SCRIPT + "os.kill(os.getpid(), signal.SIGKILL)"


@pytest.mark.parametrize("script", [SCRIPT, KILLED])
def test_workers_leave_the_script_alone_and_end_with_their_parent(script, tmp_path):
    (tmp_path / "script.py").write_text(script)
    path = os.pathsep.join(filter(None, sys.path))
    result = subprocess.run(
        [sys.executable, tmp_path / "script.py"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=30,
    )
    pids = [int(pid) for pid in result.stdout.split()]
    assert len(pids) == 2 and not result.stderr
    for _ in range(100):
        if not any(alive(pid) for pid in pids):
            return
        time.sleep(0.05)
    raise AssertionError("workers outlived their parent")


def alive(pid):
    try:  # where nobody reaps orphans a dead one stays listed as a zombie
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def test_errors_of_construction_keep_their_text():
    with pytest.raises(ValueError, match="fault: 'init' is not allowed here"):
        counting(2, "init")
    with pytest.raises(ValueError, match="time_limit: 0 given"):
        VectorEnv(MakeEnv("DreamerCarRacing-v3", {"time_limit": 0}), [EpisodeSeeds(0)])
    with pytest.raises(ValueError, match="num_workers"):
        counting(2, num_workers=3)
    with pytest.raises(ValueError, match="timeout: 0 given"):
        counting(2, timeout=0)
    with pytest.raises(ValueError, match="seeds"):
        counting(0)
    with pytest.raises(ValueError, match="make_env: cannot be sent"):
        VectorEnv(lambda: None, [Numbered(0)])


def test_bad_calls_are_refused_and_change_nothing():
    with counting(2, num_workers=1) as envs:
        with pytest.raises(ValueError, match="shapes"):
            envs.step(np.zeros(2))
        envs.step(np.full((2, 2), np.nan))  # resets take no action
        with pytest.raises(ValueError, match=r"not finite for environments \[1\]"):
            envs.step(np.array([[0, 0], [0, np.inf]]))
        assert list(envs.step(np.zeros((2, 2))).observation["vector"][:, 1]) == [1, 1]
    with pytest.raises(RuntimeError, match="closed"):
        envs.step(np.zeros((2, 2)))


def test_records_outlive_the_environments_and_no_file_is_left():
    folder = "/dev/shm" if os.access("/dev/shm", os.W_OK) else "/tmp"
    before = {name for name in os.listdir(folder) if name.startswith("envs-")}
    envs = counting(2, num_workers=1)
    record = envs.step(np.zeros((2, 2)))
    assert {name for name in os.listdir(folder) if name.startswith("envs-")} <= before
    pids = [each.process.pid for each in envs._workers]
    del envs
    assert tuple(record.observation["vector"][1]) == (100, 0, 1)
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
