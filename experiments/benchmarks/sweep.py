"""What each further learner costs: whole cycles of S learners, and where their time goes."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
import tyro

from benchmarks.measuring import machine, save
from dreamer_jax.errors import UserError
from dreamer_jax.training.arms import make_agent
from dreamer_jax.training.config import RunConfig, check
from dreamer_jax.training.display import Display
from dreamer_jax.training.loop import Run
from dreamer_jax.training.presets import PRESETS
from dreamer_jax.training.run_folder import RunFolder
from dreamer_jax.training.signals import StopRequest

PARTS = ("environments", "acting", "adding", "updates")


def sweep(
    learners: tuple[int, ...] = (1, 2, 4, 8),
    preset: Literal["debug", "laptop", "paper"] = "laptop",
    cycles: int = 3,
    decisions: int = 250,
    updates: int | None = None,
    records: int | None = None,
    overlap: bool = False,
    out: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
) -> None:
    """Runs of S learners on the real environment, arm baseline, one cycle of each in turn.

    Args:
        learners: The sizes S.
        preset: Networks, batch and environments of each learner.
        cycles: Measured cycles of each size, after one that compiles.
        decisions: Of each learner in a cycle.
        updates: In a cycle (default: the preset's).
        records: Replay of each learner (default: the preset's, or what the cycles bring if less).
        overlap: Also with the updates made while the environments are at work.
        out: File for all figures.
    """
    if not learners or min(learners) < 1 or len(set(learners)) < len(learners):
        raise UserError(f"--learners {learners} cannot be: use different numbers from 1 upwards")
    if cycles < 1:
        raise UserError(f"--cycles={cycles} cannot be: use 1 or more")
    usual = PRESETS[preset]
    enough = usual.length * usual.envs + (cycles + 2) * decisions
    config = dataclasses.replace(
        usual,
        arm="baseline",
        cycle_unit="steps",
        cycle_size=decisions,
        prefill=usual.length * usual.envs,
        updates=usual.updates if updates is None else updates,
        replay=min(usual.replay, enough) if records is None else records,
    )
    with contextlib.ExitStack() as stack:
        sizes = {str(s): stack.enter_context(Sized(config, s)) for s in sorted(learners)}
        if overlap:
            config = dataclasses.replace(config, overlap=True)
            sizes |= {f"{s} overlap": stack.enter_context(Sized(config, s)) for s in learners}
        for name, size in sizes.items():
            print(f"{name}: first cycle, compilation included, {size.cycle():.1f} s", flush=True)
            size.seconds.clear()
        for _ in range(cycles):
            for size in sizes.values():
                size.cycle()
        rows = {name: size.figures(cycles) for name, size in sizes.items()}
    print(text(rows, config))
    settings = {"preset": preset, "cycles": cycles, "decisions": decisions}
    settings |= {"updates": config.updates, "batch": config.batch, "length": config.length}
    save({"benchmark": "sweep", "machine": machine(), **settings, "learners": rows}, out)


class Sized:
    """A run of S learners with a clock on its parts. A context manager."""

    def __init__(self, config: RunConfig, learners: int) -> None:
        self.config = check(dataclasses.replace(config, seeds=f"0:{learners}"))
        self.learners = learners
        self.seconds: dict[str, list[float]] = defaultdict(list)

    def __enter__(self) -> Sized:
        self._stack = contextlib.ExitStack()
        path = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        folder = self._stack.enter_context(RunFolder.create(path / "run", "run"))
        self.run = run = self._stack.enter_context(Run(make_agent, self.config, folder))
        display = Display(folder.path, run.members, self.config.cycles)
        self._stack.callback(display.close)
        run.start()
        run.prefill(display, StopRequest())
        run.env.step = self._timed("environments", run.env.step)
        run._act = self._timed("acting", run._act)
        run._add = self._timed("adding", run._add, wait=lambda: run.ring)
        return self

    def __exit__(self, *exception: Any) -> None:
        self._stack.close()

    def _timed(self, part: str, function: Any, wait: Any = None) -> Any:
        def call(*args):
            start = time.perf_counter()
            result = function(*args)
            if wait is not None:
                jax.block_until_ready(wait())
            self.seconds[part].append(time.perf_counter() - start)
            return result

        return call

    def cycle(self) -> float:
        """Collects and updates once; seconds."""
        start = time.perf_counter()
        if self.config.overlap:
            collected, _, _, updates = self.run._at_once()
            self.run._add(collected)
        else:
            *_, updates = self.run._in_turns()
        jax.block_until_ready(self.run.state)
        self.run.cycle += 1
        self.seconds["updates"].append(updates)
        self.seconds["cycle"].append(time.perf_counter() - start)
        return self.seconds["cycle"][-1]

    def figures(self, cycles: int) -> dict[str, Any]:
        """Medians over cycles, in seconds; rates over all learners."""
        parts = {
            name: float(np.median(np.sum(np.reshape(self.seconds[name], (cycles, -1)), axis=1)))
            for name in (*PARTS, "cycle")
        }
        frames = self.learners * self.config.cycle_size * self.config.env.action_repeat
        return {
            "learners": self.learners,
            **parts,
            "frames_per_second": frames / parts["cycle"],
            "updates_per_second": self.learners * self.config.updates / parts["updates"],
        }


def text(rows: dict[str, dict[str, Any]], config: RunConfig) -> str:
    """A table; the last column is a learner's cost beyond the row above, by that of the first row.

    Overlapped updates stand with the seconds of all the collecting that they are spread over.
    """
    lines = [
        f"a cycle: {config.cycle_size} decisions and {config.updates} updates of {config.batch} x "
        f"{config.length} records for each learner; seconds, medians",
        f"  {'learners':>10}{'cycle':>9}{''.join(f'{name:>14}' for name in PARTS)}"
        f"{'frames/s':>10}{'updates/s':>11}{'one more':>10}",
    ]
    above, one = None, next(iter(rows.values()))
    for name, row in rows.items():
        more = ""
        if above is not None and row["learners"] > above["learners"]:
            extra = (row["cycle"] - above["cycle"]) / (row["learners"] - above["learners"])
            more = f"{extra * one['learners'] / one['cycle']:.2f}"
        lines.append(
            f"  {name:>10}{row['cycle']:9.2f}{''.join(f'{row[part]:14.2f}' for part in PARTS)}"
            f"{row['frames_per_second']:10.0f}{row['updates_per_second']:11.2f}{more:>10}"
        )
        above = row
    return "\n".join(lines)
