"""Evaluation of a finished or running run in episodes that training never saw."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import tyro

from dreamer_jax.errors import UserError
from dreamer_jax.ops.keys import named_key
from dreamer_jax.training.arms import make_agent
from dreamer_jax.training.checkpoint import Checkpointer, Restored, choose
from dreamer_jax.training.comparison_data import EVALUATION_NAME, how_driven
from dreamer_jax.training.config import RunConfig, check, from_dict
from dreamer_jax.training.environments import STOCK_ENDS, make_env, spec_of
from dreamer_jax.training.evaluate import Played, evaluate
from dreamer_jax.training.learner import make_learner
from dreamer_jax.training.logging import mp4
from dreamer_jax.training.rules import check_tracks
from dreamer_jax.training.run_folder import RunFolder, write_atomic
from dreamer_jax.training.saving import checkpoint_template
from dreamer_jax.training.statistics import summarise
from dreamer_jax.types import Agent, Spec
from envs import RACE
from envs.vector import EnvironmentDied

EPISODES = ("returns", "progress", "frames")  # that evaluation.json has of every episode
FRAMES_PER_SECOND = 50
HOW = ("first_track", "stock", "calm", "average")  # and of the options


@dataclass(frozen=True)
class EvaluateConfig:
    """What to evaluate, and on which tracks."""

    episodes: int = 20
    """Episodes to play, each on a held-out track or from a held-out seed."""
    first_track: int = 0
    """Seed of the first of them; training never uses seeds below 10000."""
    checkpoint: int | None = None
    """Cycle of the checkpoint (default: the newest whole one)."""
    average: int = 1
    """Mean of the weights of so many checkpoints, of this one and those before it (--keep in
    training says how many there are)."""
    stock: bool = False
    """Race by the stock rules a run that was trained by stricter ones (--env.off-road-ends,
    --env.backwards-ends)."""
    calm: bool = False
    """DreamerV3: most probable actions in sampled latents (it else samples both; the other agents
    are evaluated alike with and without)."""
    run: tyro.conf.Positional[Path | None] = None
    """Run folder."""


def assess_run(path: Path, options: EvaluateConfig) -> dict[str, dict[str, Any]]:
    """Play, print, write evaluation.json and videos/evaluation.mp4; returns results by setting and
    seed. An evaluation made before in another way stays, under a name that tells it.

    Raises:
      UserError: no run or checkpoint in `path`, or impossible options.
    """
    check_tracks("episodes", options.episodes, options.first_track)
    check_average(options.average)
    with RunFolder.open(path, exclusive=False) as folder:
        config = check(from_dict(folder.load_config()))
        if options.stock:
            rules = replace(config.env, **STOCK_ENDS)
            config = replace(config, env=rules)
        played, loaded = play(folder.path, config, options)
        results: dict[str, dict[str, Any]] = {m.setting: {} for m in config.members}
        for s, member in enumerate(config.members):
            summary = summarise(played.returns[s], played.laps[s])
            how = {name: getattr(options, name) for name in HOW}
            how["cycle"] = loaded.step
            episodes = {name: getattr(played, name)[s].tolist() for name in EPISODES}
            own = summary | how | episodes | ({"stopped": True} if s in loaded.stopped else {})
            results[member.setting][str(member.seed)] = own
            print(table(member.label, summary, laps=config.env.id == RACE))
        for setting, own in results.items():  # beside the setting's runs
            path = folder.path / setting / EVALUATION_NAME
            _keep_former(path, own)
            write_atomic(path, json.dumps(own, indent=1))
        video = folder.path / "videos" / "evaluation.mp4"
        if len(played.video):
            mp4(video, played.video, video_fps(config))
            print(f"video: {video}")
    return results


def video_fps(config: RunConfig) -> float:
    """Pictures, one for a decision, per second: 50 frames of the race are one."""
    return FRAMES_PER_SECOND / config.env.action_repeat


def _keep_former(path: Path, own: Mapping[str, Any]) -> None:
    """Rename what would be replaced by an evaluation made in another way."""
    try:
        former = _way(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StopIteration):
        return  # none, or damaged
    if former != _way(own):
        path.rename(path.with_name(former))
        print(f"the evaluation before this one is kept as {former}")


def _way(results: Mapping[str, Any]) -> str:
    """The name of a file for such results."""
    one = next(iter(results.values()))
    first, last = one["first_track"], one["first_track"] + len(one["returns"]) - 1
    words = ["evaluation", f"cycle{one['cycle']}", f"tracks{first}-{last}"]
    how = how_driven(one)
    words += [name for name in ("stock", "calm") if how[name]]
    words += [f"average{how['average']}"] if how["average"] > 1 else []
    return "-".join(words) + ".json"


def check_average(number: int) -> None:
    """Raises UserError unless so many checkpoints can have a mean."""
    if number < 1:
        raise UserError(f"--average={number} cannot be: use 1 or more")


class Loaded(NamedTuple):
    """An agent and what a checkpoint holds of it; leading axis S as `agent.axes` says."""

    agent: Agent
    spec: Spec
    state: Any
    step: int
    seeds: list[int]
    stopped: Sequence[int] = ()  # learners whose loss ceased to be finite, by their number

    def of(self, index: int | slice) -> Any:
        """The state of these learners: a number drops the axis S, a slice keeps it."""

        def own(axis, part):
            return part if axis is None else jax.tree.map(lambda x: x[index], part)

        return jax.tree.map(own, self.agent.axes, self.state, is_leaf=lambda x: x is None)


def _seen(config: RunConfig) -> Spec:
    try:
        probe = make_env(config.env)()
    except ValueError:
        raise
    except Exception as error:  # whatever a user's own environment raises
        name = type(error).__name__
        raise ValueError(f"{config.env.id} cannot be made: {name}: {error}") from error
    spec = spec_of(probe)
    probe.close()
    return spec


def load_agent(
    path: Path, config: RunConfig, checkpoint: int | None = None, average: int = 1
) -> Loaded:
    """The agent of the run in `path`, warnings printed; `checkpoint` and `average` as in
    `EvaluateConfig`.

    Raises:
      UserError: no checkpoint, or fewer than are to be averaged; an environment or networks that
        cannot be made, as where an extra is not installed.
    """
    try:
        spec = _seen(config)
        agent = make_agent(config, spec)
    except ValueError as error:  # what environment or networks say of their options
        raise UserError(str(error)) from error
    checkpoints = Checkpointer(path / "checkpoints")

    def read(step: int | None) -> Restored:
        template = partial(checkpoint_template, agent, spec, config)
        restored = checkpoints.restore(template, step, "agent")  # the replay would take seconds
        for warning in restored.warnings:
            print(f"warning: {warning}")
        return restored

    restored = read(checkpoint)
    state, newest, host = restored.arrays, restored.step, restored.host
    stopped = host.get("stopped", [])  # older checkpoints do not say
    for learner in stopped:
        print(
            f"warning: {config.members[learner].label} stopped when its loss ceased to be finite; "
            "these are the weights it had then"
        )
    if average > 1:
        steps = [step for step in checkpoints.steps() if 0 < step <= newest]
        if len(steps) < average:
            raise UserError(
                f"--average={average} cannot be: {path} holds {len(steps)} checkpoints "
                f"up to cycle {newest}; use fewer, or train with --keep {average}"
            )
        *older, _ = choose(steps, average, config.checkpoint_every)
        print(f"mean of the weights of cycles {', '.join(map(str, [*older, newest]))}")
        state = mean_state([state, *(read(step).arrays for step in older)])
    return Loaded(agent, spec, state, newest, host["seeds"], stopped)


def mean_state(states: Sequence[Any]) -> Any:
    """The mean of every array of floats; of counters and keys the first one's.

    Weights along one training, its step size small, lie near each other, and their mean acts more
    steadily than any of them (Izmailov et al. 2018; Polyak averaging).
    """

    def mean(first: jax.Array, *others: jax.Array) -> jax.Array:
        if not jnp.issubdtype(first.dtype, jnp.floating):
            return first
        return sum(others, first) / (1 + len(others))

    return jax.tree.map(mean, *states)


@contextlib.contextmanager
def from_the_beginning() -> Iterator[None]:
    """What dies within is no training to go on with, and its error says so."""
    try:
        yield
    except EnvironmentDied as error:
        raise EnvironmentDied(error.reason, "Give the same command again.") from error


def play(path: Path, config: RunConfig, options: EvaluateConfig) -> tuple[Played, Loaded]:
    """The episodes, and whose they are."""
    loaded = load_agent(path, config, options.checkpoint, options.average)
    agent, seeds = loaded.agent, loaded.seeds
    learner = make_learner(agent, loaded.spec, config.envs, 1, config.batch, config.length)
    keys = jax.vmap(lambda s: named_key(jax.random.key(s), "evaluate"))(jnp.array(seeds))
    tracks = (options.episodes, options.first_track)
    mode = "calm" if options.calm else "eval"
    with from_the_beginning():
        played = evaluate(learner, agent.carry, loaded.state, config.env, keys, *tracks, mode)
    return played, loaded


def table(label: str, s: dict[str, float | int], laps: bool) -> str:
    """The summary as a user reads it, with the share of `laps` completed where there are any."""
    if s["episodes"] == 1:
        lines = f"{label}, 1 held-out episode, no noise added to actions\n  return {s['mean']:.1f}"
    else:
        lines = (
            f"{label}, {s['episodes']} held-out episodes, no noise added to actions\n"
            f"  mean {s['mean']:.1f}  std {s['std']:.1f}  min {s['min']:.1f}  max {s['max']:.1f}\n"
            f"  95% interval of the mean {s['mean_low']:.1f} .. {s['mean_high']:.1f}\n"
            f"  interquartile mean {s['iqm']:.1f}, 95% interval {s['iqm_low']:.1f} .. "
            f"{s['iqm_high']:.1f}"
        )
    return lines + (f"\n  laps completed {s['lap_rate']:.0%}" if laps else "")
