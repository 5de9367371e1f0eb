"""Many environments as streams of records, played in worker processes."""

import atexit
import contextlib
import itertools
import multiprocessing
import os
import pickle
import signal
import sys
import time
import types
from collections.abc import Callable, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from envs import worker
from envs.cores import worker_count
from envs.records import Record, entries, need_box

REMEDY = "Continue from the last checkpoint with --resume."
START_SECONDS = 300.0  # a process imports, perhaps over a network, and makes its environments
GRACE_SECONDS = 5.0  # from asking the processes to end until they are killed


class EnvironmentDied(RuntimeError):
    """An environment raised, hung or was killed; the text names it, its seed and step.

    Args:
        reason: what happened.
        remedy: what the user can do; who has more than an environment in hand knows better, and
            raises the same reason again with a remedy of its own.
    """

    def __init__(self, reason: str, remedy: str = REMEDY):
        super().__init__(f"{reason}. {remedy}")
        self.reason = reason


class VectorEnv:
    """E environments, each a stream: reset, steps up to the end, next episode's reset, ...

    A `step` gives each active environment one record: the reset's if it has not started or its
    episode has ended (the action is then ignored), else the action's. Inactive ones stay as they
    are, record included. The e-th environment plays its i-th episode on seed `seeds[e](i)`.

    An environment with the attribute `worker.PLAYERS`, (C,), has C streams: its fields have a
    second axis C but for the observation, whose own first axis is C. Its next episode begins when
    all have ended.

    `observation_space` is a Dict of the entries, `action_space` a Box, and `discrete` says whether
    an action is one of A, the largest entry (the environment has an attribute of that name).

    Args:
        make_env: picklable; called in the workers, once per environment. The observation space must
            be a Box or a Dict of Boxes, the action space a Box: see `envs.adapters`.
        seeds: one function per environment, episode index -> seed, called in this process.
        num_workers: processes, each playing a contiguous slice; the default is one per
            environment, but no more than this process has processors.
        timeout: seconds that one reset, one step or one replayed action may take, beyond which the
            environment counts as hung. Starting the processes has START_SECONDS at least.

    Raises:
        ValueError: bad arguments, `make_env`'s own ValueError included.
        EnvironmentDied: an environment failed, here or in any later call; all processes are then
            ended.
    """

    def __init__(
        self,
        make_env: Callable[[], gymnasium.Env],
        seeds: Sequence[Callable[[int], int]],
        num_workers: int | None = None,
        timeout: float = 120.0,
    ):
        self._workers: list[_Worker] = []
        self.num_envs, self._seeds = len(seeds), tuple(seeds)
        if not seeds:
            raise ValueError("seeds: empty; give one function per environment.")
        count = worker_count(self.num_envs) if num_workers is None else num_workers
        if not 1 <= count <= self.num_envs:
            raise ValueError(f"num_workers: {count} given; use 1 to {self.num_envs}.")
        if not timeout > 0:
            raise ValueError(f"timeout: {timeout} given; use a number of seconds above 0.")
        self._timeout = timeout
        self._arrays: dict[str, np.ndarray] = {}
        self._failure: str | None = None
        self._episodes = [-1] * self.num_envs  # -1: not started
        self._ended = np.zeros(self.num_envs, bool)
        self._actions: list[list[np.ndarray]] = [[] for _ in seeds]  # of the current episodes
        try:
            self._start(make_env, count)
        except BaseException:
            self.close()
            raise

    def _start(self, make_env: Callable, count: int) -> None:
        payload = _pickled(make_env)
        bounds = [self.num_envs * w // count for w in range(count + 1)]
        for first, last in itertools.pairwise(bounds):
            self._workers.append(_Worker(payload, first, last - first))
        seen, action, players, self.discrete = self._receive("start")[0][1:]
        named = entries(seen, players)
        self.observation_space, self.action_space = spaces.Dict(named), need_box(action)
        fields = worker.layout(self.num_envs, named, action, players)
        path = worker.create_mapping(fields)
        try:
            self._arrays = worker.map_arrays(path, fields)
            self._send((path, fields))
            self._receive("start")
        finally:
            os.unlink(path)  # mapped by all who need it, or by nobody
        own = (self._arrays[name] for name in Record._fields[1:])
        self._record = Record(worker.observation_of(self._arrays), *own)

    @property
    def record(self) -> Record:
        """The last record of each environment; zeros where it has not started."""
        return self._record

    @property
    def over(self) -> np.ndarray:
        """bool [E]: the episode has ended, for all its players."""
        return self._ended

    def step(
        self,
        actions: np.ndarray,
        active: np.ndarray | None = None,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> Record:
        """float32 [E, A], bool [E] (None: all) -> the records, valid until the next call.

        `meanwhile` is called while the processes are at work.

        Raises:
            ValueError: wrong shapes, or an action that is not finite where one is used.
            EnvironmentDied: an environment failed; every later call fails likewise.
        """
        self._check_usable()
        actions = np.asarray(actions, np.float32)
        active = np.ones(self.num_envs, bool) if active is None else np.asarray(active, bool)
        order = self._orders(actions, active)
        for e in np.flatnonzero(order == worker.RESET):
            self._arrays["seed"][e] = self._seeds[e](self._episodes[e] + 1)
        self._arrays["action"][:], self._arrays["order"][:] = actions, order
        self._record.given[:] = False
        self._exchange("step", meanwhile)
        for e in np.flatnonzero(order):  # only now: until here the snapshot is the step before
            if order[e] == worker.RESET:
                self._episodes[e], self._actions[e] = self._episodes[e] + 1, []
            else:
                self._actions[e].append(actions[e].copy())
        self._ended = self._arrays["over"].copy()
        return self._record

    def _orders(self, actions: np.ndarray, active: np.ndarray) -> np.ndarray:
        if actions.shape != self._arrays["action"].shape or active.shape != (self.num_envs,):
            raise ValueError(
                f"actions, active: shapes {actions.shape}, {active.shape} given; "
                f"{self._arrays['action'].shape}, {(self.num_envs,)} are needed."
            )
        begins = (np.array(self._episodes) < 0) | self._ended
        order = np.where(begins, worker.RESET, worker.STEP) * active
        finite = np.isfinite(actions.reshape(self.num_envs, -1)).all(axis=1)
        if (bad := np.flatnonzero((order == worker.STEP) & ~finite)).size:
            raise ValueError(f"actions: not finite for environments {bad}; check the policy.")
        return order

    def snapshot(self) -> list[dict[str, Any]]:
        """Per environment, as JSON types, what `restore` needs; costs no communication.

        After a failed or interrupted `step` it is the state before that step.
        """
        return [
            {
                "episode": max(self._episodes[e], 0),
                "actions": [action.tolist() for action in self._actions[e]],
                "ended": bool(self._ended[e]),
                "started": self._episodes[e] >= 0,
            }
            for e in range(self.num_envs)
        ]

    def restore(self, snapshot: Sequence[dict[str, Any]]) -> Record:
        """Brings every environment to where it stood by replaying its episode's actions.

        Returns the records as they stood, so that a policy can go on from them. Needs the same
        `make_env` and seeds as the snapshot's. Where an episode has ended without any actions,
        there is nothing to replay (zeros for a record), and the next one comes.

        Raises:
            ValueError: the snapshot is of another number of environments.
            EnvironmentDied: a replay failed or led elsewhere.
        """
        self._check_usable()
        if len(snapshot) != self.num_envs:
            raise ValueError(
                f"snapshot: holds {len(snapshot)} environments, this has {self.num_envs}; "
                "use as many as when it was taken."
            )
        replays = [
            {"seed": self._seeds[e](past["episode"]), **past}
            if past["started"] and (past["actions"] or not past["ended"])
            else None
            for e, past in enumerate(snapshot)
        ]
        self._episodes = [past["episode"] if past["started"] else -1 for past in snapshot]
        self._actions = [[np.array(a, np.float32) for a in past["actions"]] for past in snapshot]
        self._ended = np.array([past["ended"] for past in snapshot], bool)
        for field in self._record.arrays():
            field[:] = 0  # of those not replayed
        self._exchange(replays)
        self._record.given[:] = False
        return self._record

    def close(self) -> None:
        """Ends the processes; may be called again. Records already given stay readable."""
        workers, self._workers = self._workers, []
        for each in workers:
            each.ask_to_end(at_once=self._failure is not None)
        deadline = time.monotonic() + GRACE_SECONDS
        for each in workers:
            each.end(deadline)

    def __enter__(self) -> "VectorEnv":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def __del__(self):
        with contextlib.suppress(Exception):  # the interpreter may be half gone
            self.close()

    def _check_usable(self) -> None:
        if self._failure is not None:
            raise EnvironmentDied(self._failure)
        if not self._workers:
            raise RuntimeError("VectorEnv: closed; make a new one and restore a snapshot.")

    def _exchange(self, message: str | list, meanwhile: Callable = lambda: None) -> None:
        """Sends "step", or one entry per environment, and waits for all workers."""
        self._failure = "An earlier call was interrupted, answers are outstanding"
        self._send(message)
        meanwhile()
        self._receive("step" if message == "step" else "restore")
        self._failure = None

    def _send(self, message: str | tuple | list) -> None:
        for each in self._workers:
            part = message
            if isinstance(message, list):
                part = message[each.first : each.first + each.count]
            with contextlib.suppress(OSError):  # a dead one is found on receiving
                each.connection.send(part)

    def _receive(self, task: str) -> list[tuple]:
        """One answer per worker, in order; fails at the first bad one, without awaiting others."""
        limit = max(self._timeout, START_SECONDS) if task == "start" else self._timeout
        tick = min(limit / 4, 1.0)
        answers, pending = {}, {each.connection: each for each in self._workers}
        for each in self._workers:
            each.quiet = 0.0
        while pending:
            ready = wait(list(pending), tick)
            if not ready:
                self._look_for_hung(list(pending.values()), task, tick, limit)
            for connection in ready:
                each = pending.pop(connection)
                try:
                    answer = connection.recv()
                except (EOFError, OSError):
                    raise self._death(each.envs, each.fate()) from None
                if answer[0] == "error":
                    _, e, text, is_value_error = answer
                    if task == "start":  # the same again would fail again
                        raise ValueError(text if is_value_error else f"cannot be made: {text}")
                    raise self._death([e], text)
                answers[each.first] = answer
        return [answers[each.first] for each in self._workers]

    def _look_for_hung(
        self, waiting: list["_Worker"], task: str, tick: float, limit: float
    ) -> None:
        """Called after each `tick` seconds without an answer.

        Ticks are counted and not the clock's seconds: Ctrl-Z stops the workers as well as us.
        """
        for each in waiting:
            beats = sum(self._arrays["beat"][each.envs].tolist()) if self._arrays else 0
            each.quiet = each.quiet + tick if beats == each.beats else 0.0
            each.beats = beats
        hung = [each for each in waiting if each.quiet >= limit]
        if not hung:
            return
        busy = self._arrays.get("busy", np.zeros(self.num_envs, bool))
        envs = [e for each in hung for e in each.envs if busy[e] or not busy[each.envs].any()]
        if task == "step" and all(self._arrays["order"][envs] == worker.RESET):
            task = f"reset to seed {', '.join(map(str, self._arrays['seed'][envs]))}"
        raise self._death(
            envs,
            f"hung in {task}, nothing done for {limit:g} s; its process was ended (if it is only "
            "slow, raise --env.timeout)",
        )

    def _death(self, envs: Sequence[int], reason: str) -> EnvironmentDied:
        """The exception to raise; ends all processes, of which none is of use any more."""
        places = "; ".join(self._place(e) for e in envs)
        self._failure = f"{places}: {reason}"
        self.close()
        return EnvironmentDied(self._failure)

    def _place(self, e: int) -> str:
        if self._episodes[e] < 0:
            return f"environment {e} (not started)"
        seed = self._seeds[e](self._episodes[e])
        steps = f"after {len(self._actions[e])} steps"
        return f"environment {e} (episode {self._episodes[e]}, seed {seed}, {steps})"


class _Worker:
    """A process and this side's end of its pipe; plays environments first .. first + count - 1."""

    def __init__(self, payload: bytes, first: int, count: int):
        self.first, self.count, self.envs = first, count, range(first, first + count)
        self.quiet, self.beats = 0.0, 0  # seconds without progress; the progress then
        context = multiprocessing.get_context("spawn")  # a fork of a process that runs JAX hangs
        self.connection, theirs = context.Pipe()
        arguments = (theirs, payload, first, count)
        self.process = context.Process(target=worker.run_worker, args=arguments, daemon=True)
        with theirs, _main_hidden(unless=b"__main__" in payload), _stops_blocked():
            self.process.start()
        # Before multiprocessing's own end, which waits for SIGTERM.
        atexit.register(self.process.kill)

    def fate(self) -> str:
        """How the process ended, in words."""
        self.process.join(timeout=5)
        code = self.process.exitcode
        if code is None or code >= 0:
            return f"its process ended with exit code {code}"
        with contextlib.suppress(ValueError):
            return f"its process was killed by {signal.Signals(-code).name}"
        return f"its process was killed by signal {-code}"

    def ask_to_end(self, at_once: bool) -> None:
        if at_once:
            self.process.kill()
        with contextlib.suppress(OSError):
            self.connection.send("close")

    def end(self, deadline: float) -> None:
        """Waits until the clock's `deadline`, then kills."""
        self.process.join(timeout=max(deadline - time.monotonic(), 0))
        if self.process.is_alive():
            self.process.kill()
            self.process.join(timeout=GRACE_SECONDS)
        atexit.unregister(self.process.kill)
        self.connection.close()
        with contextlib.suppress(ValueError):  # not even killed: waits for a disk
            self.process.close()


def _pickled(make_env: Callable) -> bytes:
    try:
        return pickle.dumps(make_env)
    except Exception as error:
        raise ValueError(
            f"make_env: cannot be sent to another process ({error}); "
            "use envs.make.MakeEnv or a function at the top of a module."
        ) from error


@contextlib.contextmanager
def _stops_blocked():
    """So too in what is started within: it has no handlers yet, and would die of such a signal."""
    resource_tracker.ensure_running()  # it would unblock them
    before = signal.pthread_sigmask(signal.SIG_BLOCK, worker.STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _main_hidden(unless: bool):
    """Keeps a started process from importing the script that starts it, and JAX with it."""
    main = sys.modules["__main__"]
    if not unless:
        sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
