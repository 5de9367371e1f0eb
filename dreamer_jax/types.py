"""The pytrees that cross rooms.

Letters: T = time, B = batch, S = learners on one vmapped axis, N = environments of one learner,
H = imagination horizon, A = action size, D = deterministic size, Z = stochastic size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from flax import struct

Params = Any
Metrics = dict[str, jax.Array]


class Spec(NamedTuple):
    """What an agent must know of its environment."""

    obs: dict[str, tuple[tuple[int, ...], str]]  # by name: shape, dtype ("uint8" or "float32")
    action: int  # size A of the action vector, each entry in [-1, 1]
    discrete: bool = False  # one of A actions: the environment takes the largest entry

    @property
    def image(self) -> tuple[int, int, int]:
        """Height, width and channels of the observation "image".

        Raises:
          ValueError: there is none, or no picture of that name.
        """
        shape, dtype = self.obs.get("image", ((), ""))
        if len(shape) == 3 and dtype == "uint8":
            return shape
        if any(dtype == "uint8" for _, dtype in self.obs.values()):
            raise ValueError(
                'the agent sees the picture "image" alone, but the environment gives '
                f"{self._seen()}; choose an agent that reads all, as --agent dreamer_v3, or rename "
                "one with a gymnasium.ObservationWrapper"
            )
        raise ValueError(
            f"the agent needs pictures, but the environment gives {self._seen()}; choose an "
            "agent that reads those, or --env.pixels=64 for the rendered picture"
        )

    def _seen(self) -> str:
        return ", ".join(f'"{name}" {dtype} {shape}' for name, (shape, dtype) in self.obs.items())


@struct.dataclass
class Transition:
    """One record per observation *received*, leading axes [T, B] in learning code.

    `prev_action` and `reward` are those that led to `obs`; both are zero where `is_first`.
    So the last observation of an episode is an ordinary record, and a window may start anywhere.
    """

    obs: dict[str, jax.Array]  # by name, as `Spec.obs`: uint8 [..., h, w, c] or float32 [..., n]
    prev_action: jax.Array  # float32 [..., A]; one-hot where actions are discrete
    reward: jax.Array  # float32 [...]
    is_first: jax.Array  # bool [...]  the recurrent state is reset before this record
    is_terminal: jax.Array  # bool [...]  no future; a time limit leaves it False
    context: Any = None  # what the agent knew before `obs`, see `Agent.context`


@struct.dataclass
class LatentState:
    """State of a Gaussian RSSM; leading axes are free."""

    deter: jax.Array  # [..., D]
    stoch: jax.Array  # [..., Z]  a sample of Normal(mean, std)
    mean: jax.Array  # [..., Z]
    std: jax.Array  # [..., Z]

    @property
    def features(self) -> jax.Array:
        """[..., D + Z], what every head reads."""
        return jax.numpy.concatenate([self.deter, self.stoch], axis=-1)


@struct.dataclass
class DiscreteState:
    """State of an RSSM with V categorical variables of K classes; leading axes are free."""

    deter: jax.Array  # [..., D]
    stoch: jax.Array  # [..., V * K]  samples, one-hot or soft, side by side
    logits: jax.Array  # [..., V, K]  log-probabilities of the distribution it was drawn from

    @property
    def features(self) -> jax.Array:
        """[..., D + V * K], what every head reads."""
        return jax.numpy.concatenate([self.deter, self.stoch], axis=-1)


@struct.dataclass
class Trajectory:
    """An imagined rollout; `states` holds the start as well, so index t + 1 follows action t."""

    states: LatentState | DiscreteState  # [H + 1, B, ...]
    actions: jax.Array  # [H, B, A]
    entropy: jax.Array  # [H, B]  of the policy at states[t], in nats


class Agent(NamedTuple):
    """An algorithm as pure functions over explicit pytrees, for one learner (no S axis).

    init:   (key) -> state
    carry:  (num_envs) -> carry                    what `act` remembers between steps
    act:    (state, carry, obs {name: [N, ...]}, is_first [N], key, mode) -> (action [N, A], carry);
            mode is "train", "eval" (as the agent is judged) or "calm" (the most probable action,
            in a latent that is sampled where the agent can); discrete actions are one-hot
    update: (state, batch [T, B], key) -> (state, metrics)
    report: (state, batch [T, B], key) -> arrays to look at (see the agent's file)
    axes:   a prefix tree for `jax.vmap` over S: 0 for what each learner owns, None for what all
            share (the step counter, so that schedules stay branches under vmap)
    losses: names of the metrics that must stay finite
    context: (carry) -> leaves [N, ...], or None. What the replay keeps of the carry beside the next
            record, for sequences to begin with. Agents that have it return from `update` a third
            value, leaves [T - 1, B, ...]: what belongs beside records 1 .. T - 1 of the batch now
    refresh: (state, starts, key) -> state, or None; new generated images between updates, where
            starts is a pytree that is called as `starts(key, n)` -> uint8 [n, H, W, C]
    """

    init: Callable
    carry: Callable
    act: Callable
    update: Callable
    report: Callable
    axes: Any
    losses: tuple[str, ...]
    refresh: Callable | None = None
    context: Callable | None = None
