"""Races of trained agents against each other: who wins, with intervals, and a video."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from PIL import Image

from dreamer_jax.errors import UserError
from dreamer_jax.ops.keys import named_key
from dreamer_jax.training.assess import Loaded, from_the_beginning, load_agent, video_fps
from dreamer_jax.training.config import EnvConfig, RunConfig, check, from_dict
from dreamer_jax.training.environments import PLAIN, make_race
from dreamer_jax.training.learner import Learner, make_learner
from dreamer_jax.training.logging import mp4
from dreamer_jax.training.rules import check_tracks
from dreamer_jax.training.run_folder import RunFolder, write_atomic
from dreamer_jax.training.statistics import bootstrap_interval, with_interval
from envs import MOST_CARS, RACE
from envs.make import HeldOutSeeds
from envs.vector import VectorEnv

PARALLEL = 8  # races at once, at most
RESULT_NAME = "contest.json"
VIEW = 300  # pixels of a car's view in the video


@dataclass(frozen=True)
class ContestConfig:
    """Races on held-out tracks between the drivers named."""

    drivers: tyro.conf.Positional[tuple[str, ...]] = ()
    """RUN (all learners of the run folder), RUN:K (the one with seed K), RUN@CYCLE, RUN:K@CYCLE."""
    tracks: int = 10
    """Held-out tracks; each is raced once from every seating of the starting grid."""
    first_track: int = 0
    """Seed of the first track; training never uses seeds below 10000."""
    out: Path | None = None
    """Folder for contest.json and contest.mp4 (default: `contest` in the first run's folder, or the
    first free of `contest-2`, `contest-3`, .. there)."""


class Driver(NamedTuple):
    """One learner of a run at one of its checkpoints."""

    name: str
    learner: Learner
    loaded: Loaded
    index: int  # of the learner in the run
    config: RunConfig

    def state(self) -> Any:
        """Of this learner alone, S = 1."""
        return self.loaded.of(slice(self.index, self.index + 1))


class Raced(NamedTuple):
    """Results of C drivers; races are sorted by track, then seating."""

    returns: np.ndarray  # [C, tracks, C]
    laps: np.ndarray  # bool [C, tracks, C]
    progress: np.ndarray  # [C, tracks, C], visited fraction of the track
    actions: np.ndarray  # float32 [T, C cars, 2] of the first race


def load_drivers(words: Sequence[str]) -> list[Driver]:
    """Drivers of `RUN`, `RUN:K` (the learner with seed K) or `RUN@CYCLE`, `RUN:K@CYCLE`.

    A run without `:K` brings all its learners.

    Raises:
      UserError: no such run, learner or checkpoint; fewer than 2 drivers or more than a grid holds.
    """
    drivers: list[Driver] = []
    learners: dict[Path, Learner] = {}
    for word in words:
        run, seed, cycle = _parts(word)
        with RunFolder.open(run, exclusive=False) as folder:
            config = check(from_dict(folder.load_config()))
        loaded = load_agent(run, config, cycle)
        members = list(enumerate(config.members))
        chosen = [(i, m) for i, m in members if seed in (None, m.seed)]
        if not chosen:
            known = ", ".join(str(m.seed) for _, m in members)
            raise UserError(f"{word}: the run has no learner with seed {seed}, only {known}")
        if run not in learners:
            sizes = (1, 1, config.batch, config.length)
            learners[run] = make_learner(loaded.agent, loaded.spec, *sizes)
        learner = learners[run]
        drivers += [
            Driver(f"{run.name} {m.label} cycle {loaded.step}", learner, loaded, i, config)
            for i, m in chosen
        ]
    if not 2 <= len(drivers) <= MOST_CARS:
        raise UserError(f"{len(drivers)} drivers given: name 2 to {MOST_CARS} of them")
    if any(d.config.env.id != RACE for d in drivers):
        raise UserError(f"contests are races: choose runs of {RACE}")
    own = {"cars": 1, "random_starts": True, "timeout": 1.0} | PLAIN  # no rules
    rules = {replace(d.config.env, **own) for d in drivers}
    if len(rules) > 1:
        raise UserError(
            "the runs were trained under different rules (env. settings), so their drivers cannot "
            "meet; choose runs of one task"
        )
    return drivers


def _parts(word: str) -> tuple[Path, int | None, int | None]:
    """Run folder, seed and cycle of RUN[:SEED][@CYCLE]."""
    run, seed, cycle = re.fullmatch(r"(.*?)(?::(\d+))?(?:@(\d+))?", word).groups()
    return Path(run), *(None if x is None else int(x) for x in (seed, cycle))


def contest(drivers: Sequence[Driver], config: ContestConfig) -> Raced:
    """Every track from every seating: in seating r driver k sits in car (k + r) mod C.

    Drivers act as they are evaluated (DreamerV3 samples); idle cars are not stopped.
    """
    cars = len(drivers)
    parallel = min(config.tracks, max(PARALLEL // cars, 1))
    seeds = [HeldOutSeeds(config.first_track + n, parallel) for n in range(parallel)] * cars
    seating = (np.arange(cars)[:, None] + np.repeat(np.arange(cars), parallel)) % cars  # [C, R]
    races = np.arange(len(seeds))
    rounds = -(-(config.tracks - races % parallel) // parallel)  # the first ones may have one more
    scores = np.zeros((cars, len(seeds), rounds[0], 3))  # return, lap, progress
    done, kept = np.zeros(len(seeds), int), []
    states = [driver.state() for driver in drivers]
    carries = [_carry(driver, len(seeds)) for driver in drivers]
    obs = {
        name: np.zeros((cars, len(seeds), *shape), dtype)
        for name, (shape, dtype) in drivers[0].loaded.spec.obs.items()
    }
    is_first = np.zeros((cars, len(seeds)), bool)
    keys = jax.vmap(lambda s: named_key(jax.random.key(s), "contest"))(jnp.arange(cars))
    timeout = max(driver.config.env.timeout for driver in drivers)
    with VectorEnv(_race(drivers), seeds, timeout=timeout) as env:
        step = 0
        while (active := done < rounds).any():
            actions = np.zeros((len(seeds), cars, 2), np.float32)
            for k, driver in enumerate(drivers):
                key = jax.random.fold_in(keys[k], step)[None]
                seen = {name: x[k][None] for name, x in obs.items()}
                inputs = (seen, is_first[k][None], active[None])
                action, carries[k] = driver.learner.act(
                    states[k], carries[k], *inputs, key, mode="eval"
                )
                actions[races, seating[k]] = jax.device_get(action)[0]
            if done[0] == 0 and step:
                kept.append(actions[0])
            record = env.step(actions, active)
            for k in range(cars):
                seat = (races, seating[k])
                for name, x in record.observation.items():
                    obs[name][k] = x[seat]
                is_first[k] = record.is_first[seat]
                given, ends = record.given[seat] & active, record.is_last[seat]
                scores[k, given, done[given], 0] += record.reward[seat][given]
                at = np.flatnonzero(given & ends)
                scores[k, at, done[at], 1] = record.lap_finished[seat][at]
                scores[k, at, done[at], 2] = record.progress[seat][at]
            done += env.over & active
            step += 1
    # [C, seating, parallel, rounds] -> [C, tracks, seating]
    table = scores.reshape(cars, cars, parallel, -1, 3).transpose(0, 3, 2, 1, 4)
    table = table.reshape(cars, -1, cars, 3)[:, : config.tracks]
    return Raced(table[..., 0], table[..., 1] > 0, table[..., 2], np.array(kept))


def _race(drivers: Sequence[Driver]) -> Any:
    own = {"cars": len(drivers), "random_starts": False}
    rules: EnvConfig = replace(drivers[0].config.env, **own, **PLAIN)
    return make_race(rules)


def _carry(driver: Driver, races: int) -> Any:
    return jax.tree.map(lambda x: x[None], driver.loaded.agent.carry(races))


def judge(raced: Raced) -> dict[str, Any]:
    """Shares of races with the highest return, and of each driver against each.

    Equal returns share a win. Intervals are 95% bootstraps over tracks: races on one track are not
    independent.
    """
    returns = raced.returns
    best = returns == returns.max(axis=0)
    wins = best / best.sum(axis=0)  # [C, tracks, C]
    pairs = (returns[:, None] > returns) + 0.5 * (returns[:, None] == returns)
    return {
        "drivers": [
            {
                "wins": _share(wins[k]),
                "return": _share(returns[k]),
                "laps": float(raced.laps[k].mean()),
                "progress": float(raced.progress[k].mean()),
            }
            for k in range(len(returns))
        ],
        "beats": [
            [None if k == j else _share(pairs[k, j]) for j in range(len(returns))]
            for k in range(len(returns))
        ],
    }


def _share(table: np.ndarray) -> dict[str, float]:
    """[tracks, seatings] -> mean and its interval, None of one track."""
    means = table.mean(axis=-1)
    low, high = bootstrap_interval(means, np.mean) if len(means) > 1 else (None, None)
    return {"mean": float(table.mean()), "low": low, "high": high}


def film(drivers: Sequence[Driver], config: ContestConfig, raced: Raced, path: Path) -> None:
    """Drives the first race again, from above and as each driver saw it."""
    env = _race(drivers)().unwrapped
    views, _ = env.reset(seed=config.first_track)

    def frames():
        yield _picture(env, views)
        for action in raced.actions:
            seen, *_, info = env.step(action)
            views[info["given"]] = seen[info["given"]]
            yield _picture(env, views)

    mp4(path, frames(), video_fps(drivers[0].config))
    env.close()


def _picture(env: Any, views: np.ndarray) -> np.ndarray:
    """The view from above and, to its right, those of the cars in columns of two."""
    above = env.race.above()
    tiles = [np.asarray(Image.fromarray(v).resize((VIEW, VIEW), Image.NEAREST)) for v in views]
    tiles += [np.zeros_like(tiles[0])] * (len(tiles) % 2)
    columns = [np.concatenate(tiles[i : i + 2]) for i in range(0, len(tiles), 2)]
    return np.concatenate([above, *columns], axis=1)


def report(drivers: Sequence[Driver], result: dict[str, Any]) -> str:
    """The figures as a user reads them."""
    lines = []
    for driver, row in zip(drivers, result["drivers"], strict=True):
        wins, score = row["wins"], row["return"]
        lines.append(
            f"{driver.name}: wins {_percent(wins)}, return "
            f"{with_interval(*score.values(), '.1f')}, laps {row['laps']:.0%}, "
            f"progress {row['progress']:.0%}"
        )
    if len(drivers) > 2:
        for k, j in zip(*np.triu_indices(len(drivers), 1), strict=True):
            share = _percent(result["beats"][k][j])
            lines.append(f"{drivers[k].name} beats {drivers[j].name} in {share} of races")
    return "\n".join(lines)


def _percent(share: dict[str, float]) -> str:
    return with_interval(*share.values(), ".0%")


def _free(run: Path) -> Path:
    """A new folder, the first that no other contest has."""
    for number in itertools.count(1):
        folder = run / ("contest" if number == 1 else f"contest-{number}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            return folder


def run_contest(config: ContestConfig) -> dict[str, Any]:
    """Race, print, write contest.json and contest.mp4; returns what contest.json holds.

    Raises:
      UserError: impossible options or drivers.
    """
    check_tracks("tracks", config.tracks, config.first_track)
    if config.out is not None and (config.out / RESULT_NAME).exists():
        raise UserError(f"--out={config.out} holds a contest; choose another folder")
    drivers = load_drivers(config.drivers)
    out = config.out or _free(_parts(config.drivers[0])[0])
    if config.out is not None:
        out.mkdir(parents=True, exist_ok=True)
    with from_the_beginning():
        raced = contest(drivers, config)
    result = {
        "names": [driver.name for driver in drivers],
        "tracks": config.tracks,
        "first_track": config.first_track,
        "races": config.tracks * len(drivers),
        **judge(raced),
        "returns": raced.returns.tolist(),
    }
    write_atomic(out / RESULT_NAME, json.dumps(result, indent=1) + "\n")
    print(f"{result['races']} races on {config.tracks} held-out tracks, no noise added to actions")
    print(report(drivers, result))
    film(drivers, config, raced, out / "contest.mp4")
    print(f"written: {out / RESULT_NAME}, {out / 'contest.mp4'}")
    return result
