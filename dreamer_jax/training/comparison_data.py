"""What a comparison reads: run folders, and the CSV files that an earlier comparison wrote."""

from __future__ import annotations

import dataclasses
import glob
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dreamer_jax.errors import UserError
from dreamer_jax.training.comparison import SeedRun
from dreamer_jax.training.comparison_csv import Episodes, read_csv
from dreamer_jax.training.figures import read_episode_curve, task_name
from dreamer_jax.training.logging import METRICS_NAME, cycles_done
from dreamer_jax.training.members import parse_seeds
from dreamer_jax.training.rules import WATCHING
from dreamer_jax.training.run_folder import CONFIG_NAME, full_names
from envs import RACE

EVALUATION_NAME = "evaluation.json"
# How evaluate.py drives unless told otherwise, and a comparison has its runs driven.
DRIVEN = {"stock": False, "calm": False, "average": 1}
PER_RUN = ("seed", "seeds", "out", *WATCHING)  # may differ between runs of one experiment
_SEED_FOLDER = re.compile(r"seed_(\d+)")


def parse_groups(words: Iterable[str]) -> dict[str, list[str]]:
    """`NAME=PATH,PATH` -> paths by name.

    Raises:
      UserError: another form, or a name given twice.
    """
    groups: dict[str, list[str]] = {}
    for word in words:
        name, equals, paths = word.partition("=")
        items = _at_commas(paths)
        if not name or not equals or not all(items):
            raise UserError(
                f"'{word}' is no group; write NAME=FOLDER,FOLDER, for instance "
                "baseline=runs/a,runs/b"
            )
        if name in groups:
            raise UserError(f"group {name} is named twice; give all its runs as one {name}=A,B")
        groups[name] = items
    return groups


def _at_commas(text: str) -> list[str]:
    """Parted at commas, but for those in the name of what exists, as of a folder of a --sweep."""
    parts, items = text.split(","), []
    while parts:
        # Not Path.exists, to which a name of many folders is an error.
        joined = (
            n for n in range(len(parts), 1, -1) if os.path.exists(",".join(parts[:n]).strip())
        )
        size = next(joined, 1)
        items.append(",".join(parts[:size]).strip())
        del parts[:size]
    return items


def read_group(name: str, items: Sequence[str]) -> list[SeedRun]:
    """The runs of one group: folders, folders of seed_K folders, CSV files, or patterns of them.

    Raises:
      UserError: something is no run, holds no episode, or a seed stands twice.
    """
    runs: list[SeedRun] = []
    held_out: Episodes = {}
    for path in (path for item in items for path in expand(item)):
        if path.suffix != ".csv":
            runs += [read_run(folder) for folder in _run_folders(path)]
            continue
        of_held_out, episodes = read_csv(path, name)
        if of_held_out:
            if twice := held_out.keys() & episodes.keys():
                raise UserError(
                    f"group {name} has the held-out returns of seed {min(twice)} twice, the second "
                    f"time in {path}; leave one file out"
                )
            held_out |= episodes
        else:
            runs += [SeedRun(s, *e, source=f"{path} seed {s}") for s, e in episodes.items()]
    _refuse_twins(name, runs)
    if stray := held_out.keys() - {run.seed for run in runs}:
        raise UserError(
            f"group {name} has held-out returns of seed {min(stray)} but no curve of it; add "
            "its run folder or curves.csv"
        )
    return sorted((_with_held_out(run, held_out) for run in runs), key=lambda run: run.seed)


def read_run(folder: Path) -> SeedRun:
    """One run's folder: metrics.jsonl and, where they are, config.json and evaluation.json.

    Raises:
      UserError: no finished episode, or a damaged file.
    """
    config, seed = _config_and_seed(folder)
    frames, returns = read_episode_curve(folder / METRICS_NAME)
    if not len(returns):
        own = _beside(folder, CONFIG_NAME)
        more = own is not None and (own.parent / "checkpoints").is_dir()
        raise UserError(
            f"{folder} holds no finished episode; leave it out"
            + (f", or train it on with car_racing.py --resume {own.parent}" if more else "")
        )
    if not np.isfinite(returns).all():
        raise UserError(f"{folder} holds a return that is no number; leave the run out")
    order = np.argsort(frames, kind="stable")  # environments end theirs side by side
    done, cycles = cycles_done(folder), None if config is None else config.get("cycles", 0)
    run = SeedRun(
        seed,
        frames[order],
        returns[order],
        finished=None if cycles is None else done >= cycles,
        settings=None if config is None else _in_use(by_full_name(config)),
        source=str(folder),
    )
    held = read_evaluation(folder, seed)
    if held is None:
        return run
    held_out = np.array(held["returns"], dtype=np.float64)
    tracks = held["first_track"] + np.arange(len(held_out))
    early = held["cycle"] < done
    return dataclasses.replace(
        run,
        tracks=tracks,
        held_out=held_out,
        driven=how_driven(held),
        early=early,
        stopped=held.get("stopped", False),
    )


def read_evaluation(folder: Path, seed: int) -> dict[str, Any] | None:
    """The entry of `seed` in the evaluation.json of the run (or of the run of many seeds).

    None where it has not been evaluated. Raises UserError when the file is damaged.
    """
    path = _beside(folder, EVALUATION_NAME)
    entry = None if path is None else _read_json(path).get(str(seed))
    if entry is not None and not {"returns", "first_track", "cycle"} <= entry.keys():
        raise UserError(f"{path} was not written by evaluate.py; run it again for this folder")
    return entry


def how_driven(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """The options, like `DRIVEN`, of an entry of evaluation.json."""
    return {name: evaluation.get(name, usual) for name, usual in DRIVEN.items()}


def warnings_about(groups: Mapping[str, Sequence[SeedRun]]) -> list[str]:
    """What a reader of the comparison must know: unfinished runs, mixed settings, other tracks."""
    found = []
    for name, runs in groups.items():
        for run in runs:
            if run.finished is False:
                found.append(
                    f"{run.source} ({name}) is not finished; curves, areas and final scores of "
                    "all runs end where the shortest one ends"
                )
            if run.stopped:
                found.append(
                    f"the loss of {run.source} ({name}) ceased to be finite; its held-out returns "
                    "are of the weights of then, and count as they are"
                )
            if run.early:
                found.append(
                    f"the held-out episodes of {run.source} ({name}) were driven before its last "
                    "cycle; run evaluate.py again"
                )
        missing = [str(run.seed) for run in runs if run.held_out is None]
        if missing and len(missing) < len(runs):
            found.append(f"{name}: no held-out episodes of seed {', '.join(missing)}")
        for setting, values in differing(runs).items():
            found.append(f"{name} mixes settings: {setting} is {_either(values)}")
    everyone = [run for runs in groups.values() for run in runs]
    rules = {k: v for k, v in differing(everyone).items() if k.startswith("env.")}
    for setting, values in rules.items():
        found.append(f"the runs do not share one task: {setting} is {_either(values)}")
    if len({tuple(run.tracks.tolist()) for run in everyone if run.tracks is not None}) > 1:
        found.append("the held-out episodes are not of the same tracks")
    for name in DRIVEN:
        ways = _distinct([run.driven[name] for run in everyone if run.driven is not None])
        if len(ways) > 1:
            found.append(
                f"the held-out episodes were not driven alike: --{name} is {_either(ways)}; run "
                "evaluate.py again"
            )
    return found


def differing(runs: Sequence[SeedRun]) -> dict[str, list[Any]]:
    """Settings that are not the same in all runs -> their values, in the order met.

    A run without the setting (another arm, an older version) does not count.
    """
    known = [run.settings for run in runs if run.settings is not None]
    names = dict.fromkeys(name for settings in known for name in settings)
    values = {n: _distinct([settings[n] for settings in known if n in settings]) for n in names}
    return {n: v for n, v in values.items() if len(v) > 1}


def expand(item: str) -> list[Path]:
    """The paths that a word or pattern names. Raises UserError where none fits a pattern."""
    if Path(item).exists() or not glob.has_magic(item):
        return [Path(item)]
    found = sorted(glob.glob(item))
    if not found:
        raise UserError(f"no file or folder fits the pattern {item}; check it with ls {item}")
    return [Path(name) for name in found]


def _run_folders(path: Path) -> list[Path]:
    if (path / METRICS_NAME).is_file():
        return [path]
    if hosts := sorted(path.glob("host_*")):  # one with a single seed logs into its own folder
        return [folder for host in hosts for folder in _run_folders(host)]
    inside = sorted(e for e in path.glob("seed_*") if _SEED_FOLDER.fullmatch(e.name))
    for folder in inside or [path]:
        if not (folder / METRICS_NAME).is_file():
            raise UserError(
                f"{folder} is no run: it holds neither {METRICS_NAME} nor seed_K folders with "
                "one; give the folder that car_racing.py --out made, or a curves.csv"
            )
    return inside


def _config_and_seed(folder: Path) -> tuple[dict[str, Any] | None, int]:
    path, named = _beside(folder, CONFIG_NAME), _SEED_FOLDER.fullmatch(folder.name)
    config = None if path is None else _read_json(path)
    own = config is not None and path.parent == folder
    if named and not own:  # a run of many seeds has one configuration, of its first seed
        return config, int(named[1])
    if config is None or "seed" not in config:
        raise UserError(
            f"cannot tell the seed of {folder} ({CONFIG_NAME} is missing); restore that file or "
            "rename the folder to seed_K"
        )
    several = config.get("seeds")  # --seeds 2 is one run too; `seed` then holds its default
    return config, parse_seeds(several)[0] if several else int(config["seed"])


def _beside(folder: Path, name: str) -> Path | None:
    """The run's own file or, in a run of many seeds, the one in the folder above."""
    places = [folder / name]
    if _SEED_FOLDER.fullmatch(folder.name):
        places.append(folder.parent / name)
    return next((path for path in places if path.is_file()), None)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path} ({error}); restore or remove it") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} is no JSON object; restore or remove it")
    return values


def by_full_name(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as config.json holds them -> by names as env.id, without those of `PER_RUN`."""
    return {name: value for name, value in full_names(values).items() if name not in PER_RUN}


def _in_use(settings: dict[str, Any]) -> dict[str, Any]:
    """Without what only the other arm reads."""
    if settings.get("arm") != "baseline":
        return settings
    return {k: v for k, v in settings.items() if k != "ddim" and not k.startswith("generated.")}


def _distinct(values: Iterable[Any]) -> list[Any]:
    kept: list[Any] = []
    for value in values:
        if value not in kept:
            kept.append(value)
    return kept


def _either(values: Sequence[Any]) -> str:
    return " or ".join(map(str, values))


def _refuse_twins(name: str, runs: Sequence[SeedRun]) -> None:
    first: dict[int, SeedRun] = {}
    for run in runs:
        if run.seed in first:
            raise UserError(
                f"seed {run.seed} stands twice in group {name} ({first[run.seed].source} and "
                f"{run.source}); leave one out, or make it a group of its own"
            )
        first[run.seed] = run


def _with_held_out(run: SeedRun, held_out: Episodes) -> SeedRun:
    if run.seed not in held_out:
        return run
    tracks, returns = held_out[run.seed]
    return dataclasses.replace(run, tracks=tracks, held_out=returns, driven=None, early=False)


def task_of(groups: Mapping[str, Sequence[SeedRun]]) -> str:
    """What the runs were trained on, by the Gymnasium ids in their settings.

    Kept curves have no settings: they are taken for what the others are, alone for the race.
    """
    settings = [run.settings for runs in groups.values() for run in runs if run.settings]
    names = {task_name(own.get("env.id", RACE)) for own in settings or [{}]}
    return " and ".join(sorted(names))
