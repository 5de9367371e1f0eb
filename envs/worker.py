"""The side of `VectorEnv` that runs in another process: plays a slice of the environments.

Frames and actions lie in memory that both sides map; the pipe carries one short message each way.
"""

import contextlib
import mmap
import os
import pickle
import signal
import tempfile
import traceback
from typing import Any

import numpy as np
from gymnasium import Env, spaces
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker

OBSERVATION = "observation/"  # stands before the names of its entries in the mapped arrays
PLAYERS = "_players_of_this_race"  # an attribute that no environment has by chance
IDLE, STEP, RESET = 0, 1, 2  # orders, one per environment, in the mapped array `order`
STOP_SIGNALS = {signal.SIGINT, signal.SIGTERM}
STATELESS_WRAPPERS = (OrderEnforcing, PassiveEnvChecker)

Layout = dict[str, tuple[tuple[int, ...], str]]  # name -> shape, dtype


def layout(
    num_envs: int, observation: dict[str, spaces.Box], action: spaces.Box, players: tuple
) -> Layout:
    """The arrays both sides map; E = num_envs leads every shape.

    observation: its entries by name, see `envs.records.entries`.
    players: () for environments of one player, (C,) where each has C, with a reward and so on for
    each of them.
    """
    own = {
        "reward": "f4",
        "is_first": "?",
        "is_last": "?",
        "is_terminal": "?",
        "frames": "i4",
        "progress": "f4",
        "lap_finished": "?",
        "given": "?",  # the last step brought this record
    }
    fields = {
        **{OBSERVATION + name: (box.shape, box.dtype.str) for name, box in observation.items()},
        "action": (action.shape, "f4"),
        "order": ((), "i1"),
        "seed": ((), "i8"),
        "over": ((), "?"),  # the episode has ended for all its players
        "busy": ((), "?"),  # the worker is at this environment
        "beat": ((), "i8"),  # rises with everything the environment gets done
    } | {name: (players, dtype) for name, dtype in own.items()}
    return {name: ((num_envs, *shape), dtype) for name, (shape, dtype) in fields.items()}


def create_mapping(fields: Layout) -> str:
    """A file in memory, if the system has one there, large enough for `fields` -> its path."""
    folder = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    descriptor, path = tempfile.mkstemp(prefix="envs-", dir=folder)
    with os.fdopen(descriptor, "wb") as file:
        file.truncate(_offsets(fields)[1])
    return path


def map_arrays(path: str, fields: Layout) -> dict[str, np.ndarray]:
    """Views on the mapped file; the memory lives as long as any view, on either side, does."""
    offsets, size = _offsets(fields)
    with open(path, "r+b") as file:
        memory = mmap.mmap(file.fileno(), size)
    return {
        name: np.frombuffer(memory, dtype, int(np.prod(shape)), offsets[name]).reshape(shape)
        for name, (shape, dtype) in fields.items()
    }


def observation_of(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The entries of the observation among the mapped arrays, by their own names."""
    size = len(OBSERVATION)
    return {name[size:]: x for name, x in arrays.items() if name.startswith(OBSERVATION)}


def _offsets(fields: Layout) -> tuple[dict[str, int], int]:
    offsets, end = {}, 0
    for name, (shape, dtype) in fields.items():
        offsets[name] = end
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        end += -(-size // 64) * 64  # whole cache lines: no two fields share one
    return offsets, max(end, 64)


def run_worker(connection, payload: bytes, first: int, count: int) -> None:
    """Plays environments first .. first + count - 1 until told to close or the parent is gone.

    Answers ("spaces", observation_space, action_space, players, discrete) once, then ("done",) per
    order, or ("error", environment, text, is_value_error) once, after which the process ends.
    """
    # Both reach the group; the parent decides. What an environment starts can be ended by SIGTERM.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)  # the parent blocked them until now
    envs: list[Env] = []
    current = first  # the environment an error is about
    try:
        make_env = pickle.loads(payload)
        for current in range(first, first + count):  # noqa: B007
            envs.append(make_env())
        one = envs[0]
        marks = getattr(one.unwrapped, PLAYERS, ()), getattr(one, "discrete", False)
        _send(connection, ("spaces", one.observation_space, one.action_space, *marks))
        arrays = map_arrays(*_receive(connection))
        _send(connection, ("done",))
        while (message := _receive(connection)) != "close":
            for current, env in enumerate(envs, first):
                arrays["busy"][current] = True
                arrays["beat"][current] += 1
                if message == "step":
                    follow_order(env, arrays, current)
                else:
                    replay(env, arrays, current, message[current - first])
                arrays["busy"][current] = False
            _send(connection, ("done",))
    except _ParentGone:
        pass
    except Exception as error:
        _report(connection, current, error)
    finally:
        for env in envs:
            with contextlib.suppress(Exception):
                env.close()
        connection.close()


class _ParentGone(Exception):
    """Not an error of an environment, which may raise the same ones as a pipe."""


def _send(connection, message: tuple) -> None:
    try:
        connection.send(message)
    except OSError:
        raise _ParentGone from None


def _receive(connection) -> Any:
    try:
        return connection.recv()
    except (EOFError, OSError):
        raise _ParentGone from None


def _report(connection, current: int, error: Exception) -> None:
    is_value_error = isinstance(error, ValueError)
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({os.path.basename(frames[-1].filename)}:{frames[-1].lineno})" if frames else ""
    text = str(error) if is_value_error else f"{type(error).__name__}: {error}"
    with contextlib.suppress(OSError):
        connection.send(("error", current, text + place, is_value_error))


def follow_order(env: Env, arrays: dict[str, np.ndarray], e: int) -> None:
    """Resets or steps environment e as its order says and writes the record that results."""
    if arrays["order"][e] == RESET:
        observation, info = env.reset(seed=int(arrays["seed"][e]))
        _write(arrays, e, observation, info, 0.0, False, False, is_first=True)
    elif arrays["order"][e] == STEP:
        _step(env, arrays, e, arrays["action"][e].copy())


def replay(env: Env, arrays: dict[str, np.ndarray], e: int, past: dict[str, Any] | None) -> None:
    """Resets to past["seed"] and repeats past["actions"]; the last one writes its record in full.

    Only the last frame is drawn where the environment has `simulate` and no wrapper around it
    keeps a state of its own.

    Raises:
        RuntimeError: the episode ends elsewhere than it did, so it is not the same episode.
    """
    if past is None:
        return
    actions = np.asarray(past["actions"], np.float32)
    observation, info = env.reset(seed=past["seed"])
    arrays["beat"][e] += 1
    if not len(actions):
        _write(arrays, e, observation, info, 0.0, False, False, is_first=True)
        return
    bare = env
    while isinstance(bare, STATELESS_WRAPPERS):
        bare = bare.env
    advance = getattr(bare, "simulate", env.step)
    for action in actions[:-1]:
        *_, terminated, truncated, _ = advance(action)
        arrays["beat"][e] += 1
        if np.all(np.logical_or(terminated, truncated)):
            break
    else:
        _step(env, arrays, e, actions[-1])
        if arrays["over"][e] == past["ended"]:
            return
    raise RuntimeError(
        "the recorded actions do not lead where they led before: options, package versions or "
        "machine differ from those the snapshot was taken with"
    )


def _step(env: Env, arrays: dict[str, np.ndarray], e: int, action: np.ndarray) -> None:
    observation, reward, terminated, truncated, info = env.step(action)
    _write(arrays, e, observation, info, reward, terminated, truncated)


def _write(
    arrays: dict[str, np.ndarray],
    e: int,
    observation: np.ndarray | dict[str, np.ndarray],
    info: dict[str, Any],
    reward: float | np.ndarray,
    terminated: bool | np.ndarray,
    truncated: bool | np.ndarray,
    is_first: bool = False,
) -> None:
    """The flags of a player that ended earlier stay up, but it is given no record."""
    given = info.get("given", True)
    ended = np.logical_or(terminated, truncated)
    for name, view in observation_of(arrays).items():
        view[e] = observation[name] if isinstance(observation, dict) else observation
    arrays["reward"][e] = reward
    arrays["is_first"][e] = is_first
    arrays["is_last"][e] = np.logical_and(ended, given)
    arrays["is_terminal"][e] = np.logical_and(terminated, given)
    arrays["given"][e] = given
    arrays["over"][e] = np.all(ended)
    arrays["frames"][e] = 0 if is_first else info.get("frames", 1)
    arrays["progress"][e] = info.get("progress", 0.0)
    arrays["lap_finished"][e] = info.get("lap_finished", False)
