"""The command line of a sweep over many machines: plan the groups, show them, gather results.

DIR/group_K/             run folder of one group, on the machine that ran it; DIR/logs/ beside it
DIR/SETTING/seed_K/      gathered: what each learner logged, and its own config.json
DIR/sweep.json           the plan and, for each group, state, attempts, machine and wall time
DIR/comparison.png ...   the settings side by side, drawn and written as by compare.py
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from dreamer_jax.errors import UserError
from dreamer_jax.training.command import guarded
from dreamer_jax.training.compare import CompareConfig, write_comparison
from dreamer_jax.training.comparison import SeedRun
from dreamer_jax.training.comparison_data import read_group, warnings_about
from dreamer_jax.training.config import from_dict, to_dict, with_values
from dreamer_jax.training.logging import METRICS_NAME
from dreamer_jax.training.members import members as combinations
from dreamer_jax.training.members import parse_seeds
from dreamer_jax.training.presets import choose
from dreamer_jax.training.run_folder import CONFIG_NAME, RunFolder, write_atomic
from dreamer_jax.training.signals import StopRequest
from dreamer_jax.training.sweep_group import Job
from dreamer_jax.training.sweep_options import option_name, parsed, refuse_reserved, variants
from dreamer_jax.training.sweep_ray import (
    FAILED,
    FINISHED,
    STOPPED,
    Group,
    Screen,
    cluster,
    import_ray,
    record,
    run_all,
)

SWEEP_NAME = "sweep.json"


@dataclass(frozen=True)
class SweepConfig:
    """What to run, in which portions, and where."""

    out: Path
    """Folder of the sweep. A group whose machine is lost goes on from its last checkpoint only
    where all machines see this folder (shared storage); elsewhere it begins anew."""
    seeds: str
    """Seeds of every setting: 0:16 (that is 0 to 15) or 0,2,5."""
    sweep: tuple[str, ...] = ()
    """Values side by side in one program, as --sweep of car_racing.py: actor_lr=1e-4,3e-4."""
    vary: tuple[str, ...] = ()
    """Values of any other option of car_racing.py, with groups of its own for each: batch=8,16."""
    group: int = 1
    """Seeds in one group, which is one program on one machine; each with every value of --sweep."""
    address: str | None = None
    """Ray cluster: auto (the one this machine belongs to) or HOST:PORT (default: a local one,
    started for this sweep and shut down at its end)."""
    retries: int = 3
    """Times that a group is started again after its process, worker or machine died."""
    cpus: float = 1
    """CPU cores of each group; without a GPU it keeps to as many threads."""
    gpus: float = 0
    """GPUs of each group; with 0.5 two groups share one, with 0 they run on CPUs."""


def sweep(argv: Sequence[str], scripts: Path, trained: Callable[[str], bool]) -> int:
    """`experiments/sweep.py`; `scripts`: the folder of car_racing.py.

    `trained` tells whether the diffusion model called so by --ddim needs no training first.

    Returns the exit status: 0, 1 when a group failed, 2 for what the user can mend, 128 + signal
    after a stop.
    """
    return guarded(lambda: _sweep(list(argv), scripts, trained))


def _sweep(argv: list[str], scripts: Path, trained: Callable[[str], bool]) -> int:
    cut = argv.index("--") if "--" in argv else len(argv)
    config = tyro.cli(
        SweepConfig,
        prog="sweep.py",
        description="Run many learners in groups on a Ray cluster; the same command goes on where "
        "an earlier one stopped. Options of car_racing.py may follow after --.",
        args=argv[:cut],
    )
    config = dataclasses.replace(config, out=config.out.resolve())
    _check(config)
    preset, agent, options = _preset(argv[cut + 1 :], config.gpus)
    groups = plan_groups(config, preset, options, scripts, agent)
    _check_scenes(groups, trained)
    ray = import_ray()
    plan = {
        "--seeds": config.seeds,
        "--sweep": " ".join(config.sweep),
        "--vary": " ".join(config.vary),
        "--group": str(config.group),
        "options": shlex.join([*_begin(preset, agent), *options]),
    }
    command = shlex.join(["python", "experiments/sweep.py", *argv])
    with open_folder(config.out):
        take_up(config.out, plan, groups)
        _say_plan(plan, groups)
        screen, kept = Screen(), ""

        def changed() -> None:
            nonlocal kept
            screen.show(groups)
            held = {"command": command, "plan": plan, "groups": [record(g) for g in groups]}
            if (text := json.dumps(held, indent=1) + "\n") != kept:
                write_atomic(config.out / SWEEP_NAME, text)
                kept = text

        if any(group.state != FINISHED for group in groups):
            # StopRequest comes second: Ray sets signal handlers of its own when it starts.
            with cluster(ray, config.address, config.cpus, config.gpus), StopRequest() as stop:
                run_all(ray, groups, config.retries, stop, gather, changed)
            if any(group.state == STOPPED for group in groups):
                print("stopped; the same command goes on where it was", file=sys.stderr)
                return stop.code
        report(config.out, groups, command)
    failed = [group for group in groups if group.state == FAILED]
    for group in failed:
        host = f" on {group.attempts[-1]['host']}" if group.attempts else ""
        log = f"{group.job.log}{host}"
        print(f"error: {group.name}: {group.message}; log: {log}", file=sys.stderr)
    return 1 if failed else 0


# ---------------------------------------------------------------- the plan


def _check(config: SweepConfig) -> None:
    rules = [
        ("group", config.group >= 1, "use 1 or more"),
        ("retries", config.retries >= 0, "use 0 or more"),
        ("cpus", config.cpus > 0, "use a number above 0"),
        ("gpus", config.gpus >= 0, "use 0 or more"),
        ("gpus", config.gpus <= 1 or config.gpus % 1 == 0, "above 1 use whole numbers"),
    ]
    for name, holds, remedy in rules:
        if not holds:
            raise UserError(f"--{name}={getattr(config, name):g} cannot be: {remedy}")


def _preset(options: Sequence[str], gpus: float) -> tuple[str, str, list[str]]:
    """Preset and agent among the options of car_racing.py, and the others.

    Without a preset all groups get the same, whatever their machines would choose.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset")
    first.add_argument("--agent", default="")
    known, rest = first.parse_known_args(options)
    return known.preset or ("paper" if gpus else "laptop"), known.agent, rest


def _begin(preset: str, agent: str) -> list[str]:
    return ["--preset", preset, *(["--agent", agent] if agent else [])]


def plan_groups(
    config: SweepConfig, preset: str, options: Sequence[str], scripts: Path, agent: str = ""
) -> list[Group]:
    """Every varied value with every portion of the seeds, waiting.

    Raises:
      UserError: preset, agent, seeds, values or options that cannot be.
    """
    seeds, (defaults, _) = parse_seeds(config.seeds), choose(preset, agent or None)
    portions = [seeds[i : i + config.group] for i in range(0, len(seeds), config.group)]
    refuse_reserved(options, "after --")
    swept = ["--sweep", *config.sweep] if config.sweep else []
    taken = [name for name, _ in combinations((0,), config.sweep)[0].values]
    taken += [option_name(word) for word in options if word.startswith("--")]
    groups: list[Group] = []
    varied = variants(config.vary, defaults, taken)
    for label, words in varied:
        arguments = [*options, *words, *swept]
        for portion in portions:
            text = ",".join(map(str, portion))
            own = ["--seeds" if len(portion) > 1 else "--seed", text]
            run = parsed([*arguments, *own], defaults)
            members, folder = run.members, config.out / f"group_{len(groups)}"
            job = Job(
                folder,
                scripts / "car_racing.py",
                (*_begin(preset, agent), *arguments, *own),
                json.loads(json.dumps(to_dict(run))),
                tuple(member.logs(len(members)) for member in members),
                config.cpus,
                config.gpus,
                Path.cwd(),
                len(varied) * len(portions),
            )
            settings = tuple(",".join(filter(None, (label, m.setting))) for m in members)
            groups.append(Group(job, run.cycles, tuple(m.seed for m in members), settings))
    return groups


def _check_scenes(groups: Sequence[Group], trained: Callable[[str], bool]) -> None:
    for model in {g.job.config["ddim"] for g in groups if g.job.config["arm"] == "ddim"}:
        if not trained(model):
            raise UserError(
                f"--ddim={model} is not trained yet, and every group would begin to train it: "
                f"start pretrain_ddim.py --preset {model} first, or use --ddim laptop, which ships "
                "trained, or --arm baseline"
            )


def _say_plan(plan: dict[str, str], groups: Sequence[Group]) -> None:
    learners = sum(len(group.seeds) for group in groups)
    print(f"{learners} learners, {len(groups)} groups, each one program: {plan['options']}")
    if varied := plan["--vary"]:
        print(f"one program holds one value of --vary {varied}: each has groups of its own")


# ---------------------------------------------------------------- the folder


def open_folder(out: Path) -> RunFolder:
    """The sweep's folder, locked. Raises UserError when it is in use or holds something else."""
    if any(out.glob("group_*")) and not (out / SWEEP_NAME).exists():
        raise UserError(
            f"{out} holds groups without their {SWEEP_NAME}; choose another folder with --out"
        )
    return RunFolder.create(out, "sweep")


def take_up(out: Path, plan: dict[str, str], groups: Sequence[Group]) -> None:
    """Bring the groups to where an earlier call of the same sweep left them.

    Raises:
      UserError: that was another sweep, or sweep.json is damaged.
    """
    path = out / SWEEP_NAME
    if not path.exists():
        return
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        differing = [name for name in plan if held["plan"].get(name) != plan[name]]
        past = {record["name"]: record for record in held["groups"]}
        if not differing:
            for group in groups:
                group.retries = past[group.name]["retries"]
                group.attempts = past[group.name]["attempts"]
                gathered = all((folder / METRICS_NAME).is_file() for folder in group.targets)
                if past[group.name]["state"] == FINISHED and gathered:
                    group.state = FINISHED
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"cannot read {path} ({error}); choose another --out") from error
    if differing:
        then, now = (
            ", ".join(f"{name} {values.get(name) or '(none)'}" for name in differing)
            for values in (held["plan"], plan)
        )
        raise UserError(
            f"the sweep in {out} was started with {then}, not with {now}; use the same again, or "
            "another --out"
        )


def gather(group: Group, files: Sequence[dict[str, bytes]]) -> None:
    """Write the files of each learner, with the settings it would have alone.

    Raises:
      UserError: the folder cannot be written.
    """
    run = from_dict(group.job.config)
    for target, member, contents in zip(group.targets, run.members, files, strict=True):
        alone = dataclasses.replace(
            with_values(run, member.values), seed=member.seed, seeds=None, out=str(target)
        )
        half = target.with_name(f".{target.name}.tmp")
        try:
            for old in (half, target):
                shutil.rmtree(old, ignore_errors=True)
            half.mkdir(parents=True)
            for name, content in contents.items():
                (half / name).write_bytes(content)
            (half / CONFIG_NAME).write_text(json.dumps(to_dict(alone), indent=2) + "\n")
            half.rename(target)
        except OSError as error:
            raise UserError(f"cannot write {target} ({error.strerror or error})") from error


def report(out: Path, groups: Sequence[Group], command: str) -> None:
    """Figure, tables and text over the settings, of the learners that are finished."""
    folders = {
        setting or group.job.config["arm"]: target.parent
        for group in groups
        if group.state == FINISHED
        for setting, target in zip(group.settings, group.targets, strict=True)
    }
    warnings = [f"{g.name} is missing: {g.message}" for g in groups if g.state == FAILED]
    runs: dict[str, list[SeedRun]] = {}
    for name, folder in folders.items():
        try:
            runs[name] = read_group(name, [str(folder)])
        except UserError as error:
            warnings.append(f"{name} is missing: {error}")
    if runs:
        write_comparison(CompareConfig(out), runs, [command], warnings + warnings_about(runs))
    else:
        print(*(f"warning: {warning}" for warning in warnings), sep="\n", file=sys.stderr)
