"""Decisions per second of the race: stock, the same without the frames nobody sees, and ours."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import gymnasium
import numpy as np
import tyro

from benchmarks.measuring import machine, save
from dreamer_jax.errors import UserError
from envs.car_racing import RacingEnv

ACTION = np.array([0.0, 0.2], np.float32)  # straight on, slowly: off the road at the first bend


def environment(
    repeat: int = 4,
    decisions: int = 60,
    repeats: int = 7,
    out: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
) -> None:
    """Environment speed at the same action repeat, in one process on one core, in turns.

    Args:
        repeat: frames a decision.
        decisions: of each round.
        repeats: rounds; figures are medians.
        out: file for all figures.
    """
    if min(repeat, decisions, repeats) < 1:
        raise UserError("--repeat, --decisions and --repeats cannot be below 1")
    ours = RacingEnv(action_repeat=repeat, time_limit=10**9)
    stock = gymnasium.make("CarRacing-v3", disable_env_checker=True, max_episode_steps=10**9)
    controls = np.array([ACTION[0], ACTION[1], 0.0], np.float32)

    def repeated() -> bool:
        return any(any(stock.step(controls)[2:4]) for _ in range(repeat))

    candidates: dict[str, tuple[Any, Callable[[], bool]]] = {
        "stock": (stock, repeated),
        "ours": (ours, lambda: any(ours.step(ACTION)[2:4])),
        "physics alone": (ours, lambda: any(ours.simulate(ACTION)[1:3])),
    }
    rates: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(repeats + 1):
        for name, (env, step) in candidates.items():
            rate = decisions / seconds(env, step, decisions)
            if number:  # the first round warms up
                rates[name].append(rate)
    ratio = float(np.median(np.divide(rates["ours"], rates["stock"])))
    medians = {name: float(np.median(values)) for name, values in rates.items()}
    for name, value in medians.items():
        print(f"{name:15}{value:8.1f} decisions/s")
    print(f"ours by stock: {ratio:.1f}")
    report = {"benchmark": "environment", "machine": machine(), "repeat": repeat}
    save(report | {"ratio": ratio, "decisions_per_second": medians}, out)


def seconds(env: Any, step: Callable[[], bool], decisions: int) -> float:
    """Of so many decisions, resets not counted."""
    env.reset(seed=1)
    total = 0.0
    for _ in range(decisions):
        start = time.perf_counter()
        ended = step()
        total += time.perf_counter() - start
        if ended:
            env.reset(seed=1)
    return total
