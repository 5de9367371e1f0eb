"""Stepping the environments of all learners and laying their records out for the replay."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from dreamer_jax.types import Transition
from envs.records import Record
from envs.vector import VectorEnv


class Episode(NamedTuple):
    """One finished episode."""

    learner: int
    reward: float  # sum over the episode
    decisions: int
    frames: int
    frames_total: int  # frames the learner had seen when it ended
    progress: float  # visited fraction of the track
    lap: bool


class Collected(NamedTuple):
    """What one cycle brought."""

    chunk: Transition  # NumPy leaves [S, K, N, ...]
    count: np.ndarray  # int32 [S, N] records of the chunk that are filled
    episodes: list[Episode]


class Decision(NamedTuple):
    """What a policy answers."""

    actions: np.ndarray  # float32 [E, A]
    context: Any = None  # leaves [E, ...] to store beside the next records; None: zeros


Policy = Callable[[Record, np.ndarray, int], Decision]
"""(latest record [E, ...], active bool [E], step of the cycle) -> Decision"""


Meanwhile = Callable[[int], None]
"""(step of the cycle); called while the environments are at work."""


def idle(step: int) -> None:
    """Nothing."""


class Collector:
    """Drives E = S * N environment streams (learner-major) and remembers running episodes.

    `context` are shapes and dtypes of what decisions bring to be stored, None for nothing.
    """

    def __init__(self, env: VectorEnv, learners: int, chunk: int, context: Any = None) -> None:
        self.env, self.learners, self.chunk, self.context = env, learners, chunk, context
        self.rows = env.num_envs // learners
        self.last = env.record.copy()
        self.frames = np.zeros(learners, np.int64)  # simulated so far
        self._running = np.zeros((env.num_envs, 3))  # reward, decisions, frames

    def steps(self, policy: Policy, number: int, meanwhile: Meanwhile = idle) -> Collected:
        """Every environment makes `number` steps."""
        clock = np.zeros(self.env.num_envs, int)

        def still(record: Record) -> np.ndarray:
            clock[:] += 1
            return clock < number

        return self._collect(policy, still, meanwhile)

    def episodes(self, policy: Policy, number: int, meanwhile: Meanwhile = idle) -> Collected:
        """Every environment finishes `number` episodes, then waits for the others."""
        done = np.zeros(self.env.num_envs, int)

        def still(record: Record) -> np.ndarray:
            done[:] += record.given & record.is_last
            return done < number

        return self._collect(policy, still, meanwhile)

    def _collect(
        self, policy: Policy, still: Callable[[Record], np.ndarray], meanwhile: Meanwhile
    ) -> Collected:
        active = np.ones(self.env.num_envs, bool)
        stage = _Stage(self.env, self.learners, self.chunk, self.context)
        episodes: list[Episode] = []
        step = 0
        while active.any():
            decision = policy(self.last, active, step)
            record = self.env.step(decision.actions, active, partial(meanwhile, step))
            self.last = record.copy()  # the views die with the next step
            stage.add(self.last, decision)
            fresh = np.where(self.last.given, self.last.frames, 0)
            self.frames += fresh.reshape(self.learners, -1).sum(1)
            episodes += self._count(self.last)
            active = active & still(self.last)
            step += 1
        return Collected(stage.chunk, stage.count, episodes)

    def _count(self, record: Record) -> list[Episode]:
        """Add the record to the running episodes; return those that ended."""
        given = record.given
        self._running[given & record.is_first] = 0.0
        gain = np.stack([record.reward, ~record.is_first, record.frames], axis=1)
        self._running[given] += gain[given]
        ended = []
        for e in np.flatnonzero(given & record.is_last):
            reward, decisions, frames = self._running[e]
            ended.append(
                Episode(
                    learner=int(e) // self.rows,
                    reward=float(reward),
                    decisions=int(decisions),
                    frames=int(frames),
                    frames_total=int(self.frames[e // self.rows]),
                    progress=float(record.progress[e]),
                    lap=bool(record.lap_finished[e]),
                )
            )
        return ended

    def get_state(self) -> dict[str, Any]:
        """What a checkpoint must hold."""
        return {
            "streams": self.env.snapshot(),
            "running": self._running.tolist(),
            "frames": self.frames.tolist(),
        }

    def set_state(self, state: dict[str, Any], same_episodes: bool = True) -> None:
        """Continue where `get_state` was taken, or with the episodes after those under way."""
        given_up = {} if same_episodes else {"actions": [], "ended": True}
        self.last = self.env.restore([past | given_up for past in state["streams"]]).copy()
        self._running = np.array(state["running"])
        self.frames = np.array(state["frames"], np.int64)


class _Stage:
    """Fixed-size host arrays that a cycle's records are written to."""

    def __init__(self, env: VectorEnv, learners: int, chunk: int, context: Any) -> None:
        rows = env.num_envs // learners
        lead = (learners, chunk, rows)
        self.chunk = Transition(
            obs={n: np.zeros((*lead, *x.shape), x.dtype) for n, x in env.observation_space.items()},
            prev_action=np.zeros((*lead, *env.action_space.shape), np.float32),
            reward=np.zeros(lead, np.float32),
            is_first=np.zeros(lead, bool),
            is_terminal=np.zeros(lead, bool),
            context=jax.tree.map(lambda x: np.zeros((*lead, *x.shape), x.dtype), context),
        )
        self.count = np.zeros((learners, rows), np.int32)

    def add(self, record: Record, decision: Decision) -> None:
        kept = [] if decision.context is None else jax.tree.leaves(decision.context)
        places = jax.tree.leaves(self.chunk.context)
        for e in np.flatnonzero(record.given):
            s, n = divmod(int(e), self.count.shape[1])
            k = self.count[s, n]
            for name, values in record.observation.items():
                self.chunk.obs[name][s, k, n] = values[e]
            self.chunk.prev_action[s, k, n] = 0.0 if record.is_first[e] else decision.actions[e]
            self.chunk.reward[s, k, n] = record.reward[e]
            self.chunk.is_first[s, k, n] = record.is_first[e]
            self.chunk.is_terminal[s, k, n] = record.is_terminal[e]
            for place, values in zip(places, kept, strict=bool(kept)):
                place[s, k, n] = values[e]
            self.count[s, n] = k + 1
