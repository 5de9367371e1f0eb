"""The command line of a training run."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import re
import select
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tyro

from dreamer_jax.errors import UserError
from dreamer_jax.training import disk, hosts, train_ratio
from dreamer_jax.training.arms import make_agent
from dreamer_jax.training.assess import (
    EvaluateConfig,
    assess_run,
    from_the_beginning,
    video_fps,
)
from dreamer_jax.training.compilation import enable_cache
from dreamer_jax.training.config import RunConfig, check, from_dict, to_dict, with_values
from dreamer_jax.training.contest import ContestConfig, run_contest
from dreamer_jax.training.display import Display
from dreamer_jax.training.figures import task_name
from dreamer_jax.training.loop import Run, Scenes
from dreamer_jax.training.presets import FAMILY, choose, for_env
from dreamer_jax.training.rules import CHANGEABLE
from dreamer_jax.training.run_folder import CONFIG_NAME, RunFolder, saved_steps, write_atomic
from dreamer_jax.training.saving import need_beginning
from dreamer_jax.training.signals import StopRequest
from envs import MOST_CARS, RACE
from envs.vector import EnvironmentDied


def guarded(main: Callable[[], int]) -> int:
    """Run `main`; what a user can mend becomes one line and exit status 2.

    A dead environment gives 3: the same again may well work.
    """
    try:
        enable_cache()
        with disk.explained("begin again"):
            return main()
    except (UserError, EnvironmentDied) as error:
        print(f"error: {error}", file=sys.stderr)
        return 3 if isinstance(error, EnvironmentDied) else 2
    except KeyboardInterrupt:
        print("left at once; the last checkpoint is intact", file=sys.stderr)
        return 130
    except BrokenPipeError:
        if not _nobody_reads():
            raise
        return NOBODY_READS


def _nobody_reads() -> bool:
    """Whether what is printed goes nowhere, as after `--help | head`; then to /dev/null, so that
    the interpreter's last flush is no error either."""
    streams = select.poll()
    for number in (1, 2):
        streams.register(number, 0)  # errors are told unasked
    closed = [number for number, event in streams.poll(0) if event & select.POLLERR]
    for number in closed:
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    return bool(closed)


ELSEWHERE = "dreamer_v3"  # the agent of train.py, if none is named
NOBODY_READS = 141  # the exit status: 128 and SIGPIPE, as a shell has it
SCENES_NAME = "scenes.json"  # in a run's folder: where its generated scenes were found
FindScenes = Callable[[RunConfig], Scenes]


def no_scenes(config: RunConfig) -> Scenes:
    """For scripts without a diffusion model. Raises UserError."""
    raise UserError(f"--arm={config.arm} cannot be: this script has no diffusion model")


def race(argv: Sequence[str], find_scenes: FindScenes = no_scenes) -> int:
    """`experiments/car_racing.py`: returns the exit status.

    `find_scenes` gives the generated scenes for the settings of a run with the arm ddim, or raises
    UserError.
    """
    return guarded(lambda: _race(argv, find_scenes))


def race_many(argv: Sequence[str], find_scenes: FindScenes = no_scenes) -> int:
    """`experiments/multi_car_racing.py`: `race` with --cars; returns the exit status."""
    return guarded(lambda: _race(with_cars(argv), find_scenes))


def train(argv: Sequence[str]) -> int:
    """`experiments/train.py`: any Gymnasium id by --env; returns the exit status."""
    return guarded(lambda: _train_on(argv))


def _train_on(argv: Sequence[str]) -> int:
    env_id, argv = environment(argv)
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--agent")
    first.add_argument("--resume")
    known, rest = first.parse_known_args(argv)
    if known.resume is not None:
        given = [f"--env.id={env_id}"] if env_id else []
        given += ["--agent", known.agent] if known.agent else []
        return _race(["--resume", known.resume, *given, *rest], no_scenes)
    if env_id is None and not {"-h", "--help"} & set(rest):
        raise UserError("name the environment: train.py --env CartPole-v1")
    rest = ["--agent", known.agent or ELSEWHERE, *rest]
    return _race(rest, no_scenes, lambda preset: for_env(preset, env_id or "CartPole-v1"))


def with_cars(argv: Sequence[str]) -> list[str]:
    """`--cars C [--seed K]` as options of `race`: learners K .. K + C - 1 on one track.

    Raises:
      UserError: cars that are no number.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--cars")
    first.add_argument("--seed")
    first.add_argument("--seeds")
    first.add_argument("--resume")
    known, rest = first.parse_known_args(argv)
    if known.resume is not None:
        return list(argv)
    try:
        cars, seed = int(known.cars or 2), int(known.seed or 0)
    except ValueError:
        raise UserError(
            f"--cars={known.cars} --seed={known.seed} cannot be: use whole numbers"
        ) from None
    seeds = known.seeds or ",".join(str(seed + car) for car in range(cars))
    return [*rest, "--env.cars", str(cars), "--seeds", seeds]


def _race(
    argv: Sequence[str],
    find_scenes: FindScenes,
    suit: Callable[[RunConfig], RunConfig] = lambda preset: preset,
) -> int:
    known, rest = _run_options(argv)
    if known.hosts is not None:
        hosts.join(known.hosts)
    if known.resume is not None:
        for name in ("agent", "preset"):
            _need_unchanged(name, getattr(known, name))
        return resume(hosts.own_folder(known.resume), find_scenes, rest)
    preset, why = choose(known.preset, known.agent)
    config = hosts.own_share(parse(rest, suit(preset)))
    print(why)
    name = known.preset or next(k for k, v in FAMILY[preset.algorithm].items() if v is preset)
    if known.agent is not None:
        name = f"{known.agent}-{name}"
    return begin(config, name, find_scenes)


def _run_options(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """What decides on a preset or a folder, and the rest."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset")
    first.add_argument("--agent")
    first.add_argument("--resume", type=Path)
    first.add_argument("--hosts")
    return first.parse_known_args(argv)


def planned(argv: Sequence[str]) -> RunConfig:
    """Settings of the new run that car_racing.py, or with --env train.py, would begin on one host
    with `argv`.

    Raises UserError; exits as `parse` does.
    """
    known, rest = _run_options(argv)
    env_id, rest = environment(rest)
    if env_id is None:
        return parse(rest, choose(known.preset, known.agent)[0])
    return parse(rest, for_env(choose(known.preset, known.agent or ELSEWHERE)[0], env_id))


def environment(argv: Sequence[str]) -> tuple[str | None, list[str]]:
    """What --env says, and the rest."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--env")
    known, rest = first.parse_known_args(argv)
    return known.env, rest


def parse(arguments: Sequence[str], preset: RunConfig) -> RunConfig:
    """Overrides on top of a preset. Exits with status 2, naming the field, when one is unknown."""
    ratio, arguments = train_ratio.split(arguments)
    script = Path(sys.argv[0]).name
    config = tyro.cli(
        RunConfig,
        prog=f"{script} {'[--env ID] ' if script == 'train.py' else ''}[--agent NAME] "
        "[--preset NAME] [--resume DIR] [--hosts HOSTS] [--train-ratio RECORDS]",
        description="Train a world-model agent. Defaults shown are those of the agent's preset. "
        f"--agent: {', '.join(FAMILY)}. --preset: debug, laptop, paper or another of the agent's. "
        "--env, of train.py: a Gymnasium id. --cars, of multi_car_racing.py: 2, or up to "
        f"{MOST_CARS}. --resume: go on with the run in this folder. --hosts: see README. "
        "--train-ratio: records replayed for each decision, in place of --updates.",
        args=arguments,
        default=preset,
        config=(tyro.conf.AvoidSubcommands,),
    )
    config = check(config)
    return config if ratio is None else train_ratio.with_train_ratio(config, ratio)


def begin(config: RunConfig, name: str, find_scenes: FindScenes) -> int:
    """A new run in a new folder."""
    out = None if config.out is None else Path(config.out)
    seeds = sorted({member.seed for member in config.members})
    seeds = "-".join(map(str, seeds[:: max(1, len(seeds) - 1)]))
    with RunFolder.create(out, f"{task(config)}-{name}-seed{seeds}") as folder:
        config = dataclasses.replace(config, out=str(folder.path))
        scenes = _scenes(config, find_scenes)
        with from_the_beginning():
            run = Run(make_agent, config, folder, scenes)
        with run:
            folder.save_config(to_dict(config))  # only now: a refused run leaves its folder free
            save_settings(folder.path, config)
            _keep_source(folder.path, scenes)
            display = Display(folder.path, run.members, config.cycles, fps=video_fps(config))
            try:
                announce(folder.path)
                print(run.plan)
                print(train_ratio.describe(config))
                return _train(run, display, fresh=True)
            finally:
                display.close()


def task(config: RunConfig) -> str:
    """The environment, as a folder may be called."""
    return "car_racing" if config.env.id == RACE else re.sub(r"\W+", "_", config.env.id)


def save_settings(path: Path, config: RunConfig) -> None:
    """config.json for each swept setting, so that its folder can be compared as a run."""
    for member in config.members if config.sweep else ():
        inner = path / member.setting
        inner.mkdir(exist_ok=True)
        own = to_dict(with_values(config, member.values))
        write_atomic(inner / CONFIG_NAME, json.dumps(own, indent=2) + "\n")


def with_changes(config: RunConfig, arguments: Sequence[str]) -> RunConfig:
    """The settings of a run that goes on, those of `CHANGEABLE` as the arguments say.

    Raises:
      UserError: arguments that name others.
    """
    for word, following in itertools.pairwise([*arguments, ""]):
        name, _, value = word.removeprefix("--").partition("=")
        setting = name.replace("-", "_").replace(".no_", ".")  # --env.no-both-ways
        if word.startswith("--") and setting not in (*CHANGEABLE, "help"):
            _need_unchanged(name, value or ("" if following.startswith("--") else following))
    changed = parse(arguments, config) if arguments else config
    if changed.replay < config.replay:
        raise UserError(f"--replay={changed.replay}: it holds {config.replay} and can only grow")
    return changed


def _need_unchanged(name: str, value: Any) -> None:
    if value is not None:
        name, *others = (x.replace("_", "-") for x in (name, *CHANGEABLE))
        given = f"--{name} {value}".strip()
        raise UserError(
            f"--resume goes on with the settings of the run; leave out {given}, or "
            f"start a new run with --out (what may change: --{', --'.join(others)})"
        )


def resume(path: Path, find_scenes: FindScenes, arguments: Sequence[str] = ()) -> int:
    """Continue the run in `path` with the settings it holds, see `with_changes`."""
    if not saved_steps(path / "checkpoints"):
        need_beginning(path)  # before the folder is locked, which leaves a file there
    with RunFolder.open(path) as folder:
        before = check(from_dict(folder.load_config()))
        config = with_changes(before, arguments)
        scenes = _scenes(_with_source(folder.path, config), find_scenes)
        with Run(make_agent, config, folder, scenes) as run:
            fresh = not run.checkpoints.steps()
            warnings = [] if fresh else run.load(before)
            if config != before:
                _save_changed(folder, config, run.cycle)
            frames = [-1] * len(run.members) if fresh else run.collector.frames
            display = Display(
                folder.path, run.members, config.cycles, run.cycle, frames, fps=video_fps(config)
            )
            try:
                announce(folder.path)
                for warning in warnings:
                    print(f"warning: {warning}", file=sys.stderr)
                if fresh:
                    print("no checkpoint yet: starting from the beginning")
                return _train(run, display, fresh)
            finally:
                display.close()


def _save_changed(folder: RunFolder, config: RunConfig, cycle: int) -> None:
    if config.cycles < cycle:
        raise UserError(f"--cycles={config.cycles}: the run has done {cycle}; use {cycle} or more")
    folder.save_config(to_dict(config))
    save_settings(folder.path, config)


def _scenes(config: RunConfig, find_scenes: FindScenes) -> Scenes | None:
    return find_scenes(config) if config.arm == "ddim" else None


def _keep_source(path: Path, scenes: Scenes | None) -> None:
    if scenes is not None and scenes.source:
        write_atomic(path / SCENES_NAME, json.dumps({"source": scenes.source}) + "\n")


def _with_source(path: Path, config: RunConfig) -> RunConfig:
    """With the place where the run's scenes were found at first, if it is still there: a relative
    path or a preset's name may be another model elsewhere, or one still to be trained."""
    try:
        source = json.loads((path / SCENES_NAME).read_text(encoding="utf-8"))["source"]
    except (OSError, ValueError, KeyError, TypeError):  # of before, or lost
        return config
    return dataclasses.replace(config, ddim=source) if Path(source).exists() else config


def announce(path: Path) -> None:
    """Print where a run is and how to watch it."""
    print(f"run folder: {path}")
    print(f"watch it:   tensorboard --logdir {shlex.quote(str(path))}")


def _train(run: Run, display: Display, fresh: bool) -> int:
    try:
        with StopRequest() as stop, disk.explained(f"--resume {run.folder.path}"):
            if fresh:
                if run.scenes is not None:
                    display.say(f"generating {run.config.generated.pool} scenes")
                run.start()
                if not run.prefill(display, stop):
                    print(f"nothing is saved yet: --resume {run.folder.path} begins again")
                    return stop.code
            run.pretrain(display, stop)
            if not stop.requested:
                run.train(display, stop)
    except EnvironmentDied as error:
        done = max(run.checkpoints.steps(), default=0)
        raise EnvironmentDied(
            error.reason,
            f"Nothing is lost up to cycle {done}: --resume {run.folder.path} goes on from there.",
        ) from error
    name = run.config.arm if run.config.algorithm == "dlc_v1" else run.config.algorithm
    display.finish(task_name(run.config.env.id), name, run.known_healthy)
    if stop.requested:
        print(f"saved after cycle {run.cycle}; go on with --resume {run.folder.path}")
        return stop.code
    print(f"finished: curve in {run.folder.path / 'return.png'}")
    return 0


def compete(argv: Sequence[str]) -> int:
    """`experiments/contest.py`: returns the exit status."""
    return guarded(lambda: _compete(argv))


def _compete(argv: Sequence[str]) -> int:
    description = "Race trained drivers against each other on held-out tracks."
    run_contest(tyro.cli(ContestConfig, prog="contest.py", description=description, args=argv))
    return 0


def assess(argv: Sequence[str]) -> int:
    """`experiments/evaluate.py`: returns the exit status."""
    return guarded(lambda: _assess(argv))


def _assess(argv: Sequence[str]) -> int:
    options = tyro.cli(
        EvaluateConfig,
        prog="evaluate.py RUN",
        description="Play held-out episodes with the agent of the run folder RUN.",
        args=list(argv),
    )
    if options.run is None:
        raise UserError("name the run folder: evaluate.py RUN --episodes 20")
    assess_run(options.run, options)
    return 0
