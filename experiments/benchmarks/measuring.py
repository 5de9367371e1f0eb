"""Timing candidates in turns, so that whatever else the machine does meets all of them alike."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

MIB = 2**20


@dataclass(frozen=True)
class Timing:
    """Seconds of one candidate: its first call, compilation included, and each later round."""

    first: float
    rounds: tuple[float, ...]

    def figures(self, reference: Timing) -> dict[str, Any]:
        low, median, high = (1e3 * np.quantile(self.rounds, [0.25, 0.5, 0.75])).tolist()
        return {
            "median_ms": median,
            "quartiles_ms": [low, high],
            "first_call_ms": 1e3 * self.first,
            "ratio": float(np.median(np.divide(self.rounds, reference.rounds))),
            "rounds_ms": [1e3 * seconds for seconds in self.rounds],
        }


def measure(functions: dict[str, Callable[[], Any]], repeats: int) -> dict[str, Timing]:
    """Calls each function once, then once in each of `repeats` rounds, whose order rotates.

    A function returns the arrays to wait for.
    """
    first = {name: _seconds(function) for name, function in functions.items()}
    rounds: dict[str, list[float]] = {name: [] for name in functions}
    names = list(functions)
    for number in range(repeats):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            rounds[name].append(_seconds(functions[name]))
    return {name: Timing(first[name], tuple(rounds[name])) for name in names}


def _seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - start


def extra_mib(function: Any, *args: Any) -> float:
    """What the compiled function takes beside its arguments and results."""
    return function.lower(*args).compile().memory_analysis().temp_size_in_bytes / MIB


def machine() -> dict[str, Any]:
    """What a reader must know to place the figures."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    device = jax.devices()[0].device_kind
    return {"device": device, "cores": os.cpu_count(), "load": load, "jax": jax.__version__}


def save(report: dict[str, Any], path: Path | None) -> None:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report, indent=1) + "\n")


def table(rows: dict[str, dict[str, Any]], reference: str) -> str:
    """Text for `Timing.figures` with `extra_mib`."""
    lines = [f"  {'':26}{'median':>11}{'quartiles':>20}{'first call':>13}{'extra':>11}  ratio"]
    for name, row in rows.items():
        low, high = row["quartiles_ms"]
        ratio = "1 (reference)" if name == reference else f"{row['ratio']:.2f}"
        lines.append(
            f"  {name:26}{row['median_ms']:8.2f} ms{low:8.2f} -{high:7.2f} ms"
            f"{row['first_call_ms']:10.0f} ms{row['extra_mib']:7.1f} MiB  {ratio}"
        )
    return "\n".join(lines)
