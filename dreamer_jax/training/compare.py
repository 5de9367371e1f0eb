"""The command line of a comparison: run the arms or take finished runs, then draw and write."""

from __future__ import annotations

import math
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from dreamer_jax.errors import UserError
from dreamer_jax.training.comparison import THRESHOLD, SeedRun, compare_groups
from dreamer_jax.training.comparison_csv import (
    group_names,
    read_csv,
    write_curves,
    write_held_out,
)
from dreamer_jax.training.comparison_data import (
    expand,
    parse_groups,
    read_group,
    read_run,
    task_of,
    warnings_about,
)
from dreamer_jax.training.comparison_figure import comparison_figure
from dreamer_jax.training.comparison_jobs import Job, Plan, keep_plan, run_all
from dreamer_jax.training.comparison_report import markdown, write_table
from dreamer_jax.training.figures import task_name
from dreamer_jax.training.members import parse_seeds
from dreamer_jax.training.rules import check_tracks
from dreamer_jax.training.run_folder import write_atomic
from dreamer_jax.training.signals import StopRequest
from envs import RACE

FIGURE_NAME, CURVES_NAME = "comparison.png", "curves.csv"
RESERVED = ("--arm", "--seed", "--seeds", "--sweep", "--out", "--resume", "--preset")
HIGHEST_RETURN = 1000.0  # all tiles of a track together


@dataclass(frozen=True)
class CompareConfig:
    """What to compare, and where the results go."""

    out: Path
    """Folder for comparison.png, comparison.md, table.csv, curves.csv and, of runs that evaluate.py
    has driven, held_out.csv (and for runs)."""
    groups: tyro.conf.Positional[tuple[str, ...]] = ()
    """Finished runs: NAME=FOLDER,FOLDER,... (also folders of seed_K, patterns, curves.csv)."""
    seeds: str | None = None
    """Run these seeds of every arm first: 0:3 (that is 0, 1, 2) or 0,2,5."""
    arms: str = "baseline,ddim"
    """Arms to run, with --seeds."""
    preset: str | None = None
    """Preset of the runs (default: what car_racing.py chooses for this machine)."""
    jobs: int = 1
    """Runs at once, on equal shares of the CPU cores; an accelerator must have memory for all."""
    episodes: int = 20
    """Held-out episodes for every run."""
    first_track: int = 0
    """Seed of the first of them."""
    threshold: float = THRESHOLD
    """Return whose reaching is timed."""


def compare(argv: Sequence[str], scripts: Path) -> int:
    """`experiments/compare.py`; `scripts`: the folder of car_racing.py and evaluate.py.

    Returns the exit status: 0, 1 when a run failed, 2 for what the user can mend, 128 + signal
    after a stop.
    """
    # Not command.guarded: that file brings JAX and the agents, which this process has no use for.
    try:
        return _compare(list(argv), scripts)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("left at once; the same command goes on from the last checkpoints", file=sys.stderr)
        return 130


def _compare(argv: list[str], scripts: Path) -> int:
    cut = argv.index("--") if "--" in argv else len(argv)
    config = tyro.cli(
        CompareConfig,
        prog="compare.py",
        description="Compare arms over seeds. Options of car_racing.py may follow after --.",
        args=argv[:cut],
    )
    _check(config, argv[cut + 1 :])
    if config.seeds is None:
        places = parse_groups(config.groups)
        _spare_what_is_read(config.out, [place for each in places.values() for place in each])
        groups = {name: read_group(name, own) for name, own in places.items()}
        _spare_what_is_kept(config.out, groups)
        if any(run.settings for runs in groups.values() for run in runs):  # else: of any task
            _check_threshold(config.threshold, task_of(groups))
        write_comparison(config, groups, [_command(argv)], warnings_about(groups))
        return 0
    _check_threshold(config.threshold, task_name(RACE))
    plan = Plan(
        scripts,
        config.out,
        _arms(config.arms),
        parse_seeds(config.seeds),
        config.preset,
        tuple(argv[cut + 1 :]),
        config.episodes,
        config.first_track,
        config.jobs,
    )
    return _run_and_compare(config, plan, argv)


def _run_and_compare(config: CompareConfig, plan: Plan, argv: Sequence[str]) -> int:
    keep_plan(plan)
    with StopRequest() as stop:
        jobs = run_all(plan, stop)
    if stop.requested:
        print("stopped; the same command goes on where it was", file=sys.stderr)
        return stop.code
    failed = [job for job in jobs if job.failure is not None]
    try:
        groups = _finished(jobs)
        if groups:
            # A run that broke down may be the arm's fault: it must not vanish from the report.
            lost = [f"{job.name} is missing: {job.failure}".rstrip(".") for job in failed]
            commands = [_command(argv), *_run_commands(plan)]
            write_comparison(config, groups, commands, lost + warnings_about(groups))
    finally:
        for job in failed:
            print(f"error: {job.name}: {job.failure}; log: {job.log}", file=sys.stderr)
    return 1 if failed else 0


def _arms(text: str) -> tuple[str, ...]:
    arms = tuple(text.split(","))
    if not all(re.fullmatch(r"[\w-]+", arm) for arm in arms) or len(set(arms)) < len(arms):
        raise UserError(f"--arms={text} cannot be: write different arms as baseline,ddim")
    return arms


def _check(config: CompareConfig, extra: Sequence[str]) -> None:
    if (config.seeds is None) == (not config.groups):
        raise UserError(
            "say what to compare: either --seeds 0:3 to run both arms, or groups of finished "
            "runs as baseline=runs/a,runs/b ddim=runs/c,runs/d"
        )
    if extra and config.seeds is None:
        raise UserError(
            f"options after -- ({' '.join(extra)}) are for new runs: use them with --seeds"
        )
    for option in extra:
        if (name := option.split("=")[0]) in RESERVED:
            raise UserError(
                f"{name} after -- cannot be: each run is one seed of one arm (--seeds, --arms, "
                "--out and --preset stand before the --)"
            )
    if config.jobs < 1:
        raise UserError(f"--jobs={config.jobs} cannot be: use 1 or more")
    check_tracks("episodes", config.episodes, config.first_track)
    if not math.isfinite(config.threshold):
        raise UserError(f"--threshold={config.threshold:g} cannot be: use a number")


def _spare_what_is_read(out: Path, places: Sequence[str]) -> None:
    """Raises UserError where curves or returns kept in `out` would be replaced by those of the
    groups named now: the runs may be gone."""
    for place in (path for each in places for path in expand(each)):
        if place.is_file() and place.resolve().parent == out.resolve():
            raise UserError(
                f"--out={out} holds {place}, which is read and would be replaced; "
                "choose another folder"
            )


def _spare_what_is_kept(out: Path, groups: Mapping[str, Sequence[SeedRun]]) -> None:
    """Raises UserError where `out` holds curves of another comparison."""
    path = out / CURVES_NAME
    for name in group_names(path) if path.exists() else ():
        own = {run.seed: run for run in groups.get(name, ())}
        for seed, kept in read_csv(path, name)[1].items():
            if seed not in own or not _goes_on(own[seed], *kept):
                raise UserError(
                    f"--out={out} holds another comparison, and the curve of {name} seed {seed} "
                    "in it would be lost; choose another folder"
                )


def _goes_on(run: SeedRun, frames: np.ndarray, returns: np.ndarray) -> bool:
    """Whether the run's curve begins with this one."""
    number = len(frames)
    same = (run.frames[:number], frames), (run.returns[:number], returns)
    return all(np.array_equal(one, other) for one, other in same)


def _check_threshold(threshold: float, task: str) -> None:
    """A race's returns have bounds; those of other tasks are not known here."""
    if task == task_name(RACE) and not 0.0 < threshold < HIGHEST_RETURN:
        raise UserError(
            f"--threshold={threshold:g} cannot be: use a return between 0 and "
            f"{HIGHEST_RETURN:g}, for instance 500"
        )


def _finished(jobs: Sequence[Job]) -> dict[str, list[SeedRun]]:
    groups: dict[str, list[SeedRun]] = {}
    for job in sorted((j for j in jobs if j.failure is None), key=lambda job: job.seed):
        groups.setdefault(job.arm, []).append(read_run(job.folder))
    order = list(dict.fromkeys(job.arm for job in jobs))
    return {arm: groups[arm] for arm in order if arm in groups}


def write_comparison(
    config: CompareConfig,
    groups: Mapping[str, Sequence[SeedRun]],
    commands: Sequence[str],
    warnings: Sequence[str],
) -> None:
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    comparison = compare_groups(groups, config.threshold)
    text = markdown(comparison, commands, warnings, FIGURE_NAME)
    out = config.out
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_curves(out / CURVES_NAME, groups)
        write_held_out(out / "held_out.csv", groups)
        write_table(out / "table.csv", comparison)
        comparison_figure(out / FIGURE_NAME, comparison, task_of(groups))
        write_atomic(out / "comparison.md", text)
    except OSError as error:
        raise UserError(
            f"cannot write {out} ({error.strerror or error}); choose a writable folder with --out"
        ) from error
    print(f"written: {out / 'comparison.md'}, {out / FIGURE_NAME}")


def _command(argv: Sequence[str]) -> str:
    return shlex.join(["python", "experiments/compare.py", *argv])


def _run_commands(plan: Plan) -> list[str]:
    """What was run for each arm and seed, K standing for the seed."""
    lines = []
    for arm in plan.arms:
        out = plan.out / arm / "seed_K"
        for script, *arguments in (plan.train(arm, "K", out), plan.evaluate(out)):
            lines.append(shlex.join(["python", f"experiments/{Path(script).name}", *arguments]))
    return lines
