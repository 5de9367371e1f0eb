"""What each part of an agent brings: one at a time is left out, and the same tracks are driven."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from dreamer_jax.errors import UserError
from dreamer_jax.training.ablation_figure import ablation_figure
from dreamer_jax.training.assess import EvaluateConfig, assess_run, check_average
from dreamer_jax.training.command import guarded
from dreamer_jax.training.comparison_csv import HELD_OUT_COLUMNS, write_csv
from dreamer_jax.training.comparison_data import read_evaluation
from dreamer_jax.training.members import parse_seeds, seeds_in_name
from dreamer_jax.training.rules import check_tracks
from dreamer_jax.training.run_folder import CONFIG_NAME, write_atomic
from dreamer_jax.training.stage import Stage, Task
from dreamer_jax.training.stages import check_kept, need_own, train_stages
from dreamer_jax.training.statistics import crossed_interval, least_difference, with_interval

WHOLE = "nothing"  # is left out
FAILURES = (2, 3)  # exit statuses, see `guarded`; others are of a stop

Run = Callable[[Sequence[str]], int]


@dataclass(frozen=True)
class AblationConfig:
    """Which parts, which learners, where, and how many held-out tracks or episodes."""

    task: str = "race"
    """What is to be learnt: race, or swingup (of a pole by its cart, small networks on vectors)."""
    only: tuple[str, ...] = ()
    """Leave out these parts alone (default: each part in turn); names as in the table."""
    seeds: str = "0"
    """Learners of each run, in one program: 0:3 for 0 to 2."""
    out: Path | None = None
    """Folder of the runs, one for each part, and of the table (default:
    runs/ablations-TASK-seedsSEEDS); the same command goes on there."""
    episodes: int = 100
    """Held-out tracks or episodes, the same for each run."""
    first_track: int = 0
    """Seed of the first of them; training never uses seeds below 10000."""
    average: int = 3
    """They are driven by the mean of the weights of so many checkpoints (1: the last weights)."""


def ablate(argv: Sequence[str], tasks: Mapping[str, Task], run: Run | None = None) -> int:
    """`experiments/ablations.py`: returns the exit status; `run` as in `train_stages`."""
    return guarded(lambda: _ablate(argv, tasks, run))


def _ablate(argv: Sequence[str], tasks: Mapping[str, Task], run: Run | None) -> int:
    parts = "; ".join(f"{name}: {', '.join(task.without)}" for name, task in tasks.items())
    options = tyro.cli(
        AblationConfig,
        prog="ablations.py",
        description=f"Leave parts out, one at a time. Of {parts}.",
        args=list(argv),
    )
    if options.task not in tasks:
        raise UserError(f"--task {options.task} is unknown; use one of {', '.join(tasks)}")
    task = tasks[options.task]
    plan = _plan(options, task)
    out = options.out or Path(f"runs/ablations-{options.task}-seeds{seeds_in_name(options.seeds)}")
    everything = {WHOLE: "", **task.without}
    # Rows that an earlier command has made stay in the table.
    done = {part: _driven(_folder(out, part, options.seeds), options, task) for part in everything}
    failed: dict[str, int] = {}
    for part, stage in plan.items():
        print(f"without {part}:", flush=True)
        code = guarded(partial(_make, done, part, stage, options, out, run))
        if code in FAILURES and part != WHOLE:
            done[part], failed[part] = {}, code
        elif code:
            return code
        else:
            write(out, {name: x for name, x in done.items() if x}, everything)
    print(f"table in {out / 'ablations.md'}")
    for part in failed:
        print(f"error: there is no row without {part}, see above", file=sys.stderr)
    return max(failed.values(), default=0)


def _make(
    done: dict[str, dict[int, Any]],
    part: str,
    stage: Stage,
    options: AblationConfig,
    out: Path,
    run: Run | None,
) -> int:
    """Train and drive what `done` lacks of this part; the exit status."""
    folder = _folder(out, part, options.seeds)
    if done[part]:  # its checkpoints may have been removed since
        need_own(folder, options.seeds, (stage,))
        return 0
    if code := train_stages(folder, options.seeds, (stage,), run):
        return code
    done[part] = _drive(folder, options)
    return 0


def _plan(options: AblationConfig, task: Task) -> dict[str, Stage]:
    """The run of each part, all options looked at before the first one starts."""
    whole, without = task
    check_tracks("episodes", options.episodes, options.first_track)
    check_average(options.average)
    parse_seeds(options.seeds)
    if unknown := [name for name in options.only if name not in without]:
        raise UserError(f"--only {unknown[0]} is unknown; use one of {', '.join(without)}")
    parts = {WHOLE: ""} | {name: without[name] for name in options.only or without}
    stages = {
        name: whole._replace(settings=f"{whole.settings} {changes}")
        for name, changes in parts.items()
    }
    for name, stage in stages.items():
        check_kept(options.average, (stage,), f"without {name} ")
    return stages


def _folder(out: Path, part: str, seeds: str) -> Path:
    words = re.sub(r"[^A-Za-z0-9]+", "-", part)
    return out / f"{words}-seeds{seeds_in_name(seeds)}"


def _wanted(options: AblationConfig) -> dict[str, Any]:
    wanted = {name: getattr(options, name) for name in ("episodes", "first_track", "average")}
    return wanted | {"stock": True, "calm": False}


def _driven(folder: Path, options: AblationConfig, task: Task) -> dict[int, Any]:
    """The evaluation by seed, where it is as wanted; else nothing."""
    if not (folder / CONFIG_NAME).exists():
        return {}
    found = {seed: read_evaluation(folder, seed) for seed in parse_seeds(options.seeds)}
    made = (_wanted(options) | {"cycle": task.whole.cycles}).items()
    return found if all(own is not None and made <= own.items() for own in found.values()) else {}


def _drive(folder: Path, options: AblationConfig) -> dict[int, Any]:
    results = assess_run(folder, EvaluateConfig(**_wanted(options)))[""]
    return {int(seed): own for seed, own in results.items()}


def write(out: Path, done: Mapping[str, dict[int, Any]], options: Mapping[str, str]) -> None:
    """ablations.md, ablations.png and held_out.csv of what has been driven so far."""
    returns = {part: np.array([own["returns"] for own in x.values()]) for part, x in done.items()}
    rows = [
        (part, seed, track, value)
        for part, seeds in done.items()
        for seed, own in seeds.items()
        for track, value in enumerate(own["returns"], own["first_track"])
    ]
    write_csv(out / "held_out.csv", HELD_OUT_COLUMNS, rows)
    laps = {part: np.mean([own["lap_rate"] for own in x.values()]) for part, x in done.items()}
    heads = ["left out", "options", "return (95% interval)", "difference (95% interval)"]
    if max(laps.values()):  # of a race
        heads.append("whole laps")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for part, own in returns.items():
        cells = [
            part + _stopped(done[part]),
            f"`{options[part]}`" if options[part] else "",
            _cell(own),
        ]
        cells += ["" if part == WHOLE else _cell(own - returns[WHOLE], "+"), f"{laps[part]:.0%}"]
        lines.append(f"| {' | '.join(cells[: len(heads)])} |")
    seeds = len(returns[WHOLE])
    over = f"{seeds} seeds and held-out tracks, both drawn anew (few seeds make them too narrow)"
    if seeds == 1:
        over = "held-out tracks: what another seed would give is not in them"
    text = f"Differences are paired: the same seeds and tracks. Intervals are over {over}."
    least = None
    if seeds > 1:
        least, std = least_difference([own.mean(axis=1) for own in returns.values()])
        text += (
            f" Seeds of a row scatter by {std:.1f} (standard deviation over all rows), so that two "
            f"rows chosen beforehand differ, at 95%, where {least:.1f} or more lie between them."
        )
    write_atomic(out / "ablations.md", "\n".join([*lines, "", text, ""]))
    ablation_figure(out / "ablations.png", returns, least)


def _stopped(seeds: Mapping[int, Any]) -> str:
    """Learners that did not train to the end, for whoever reads their row."""
    names = [str(seed) for seed, own in seeds.items() if own.get("stopped")]
    return f" (stopped, loss not finite: seed {', '.join(names)})" if names else ""


def _cell(values: np.ndarray, sign: str = "") -> str:
    interval = crossed_interval(values) if values.size > 1 else (None, None)
    return with_interval(values.mean(), *interval, ".1f", sign)
