"""The host loop: collect, add, update, log, report, evaluate, save. One cycle after the other.

A cycle makes one dispatch of `updates` updates (with --overlap one for each) and one
device-to-host transfer of their figures.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dreamer_jax import replay
from dreamer_jax.errors import UserError
from dreamer_jax.ops.keys import named_key
from dreamer_jax.training import memory
from dreamer_jax.training.checkpoint import Checkpointer
from dreamer_jax.training.collect import Collected, Collector, Decision, Meanwhile, idle
from dreamer_jax.training.config import RunConfig, with_values
from dreamer_jax.training.devices import describe, learner_mesh, put, share
from dreamer_jax.training.display import Display
from dreamer_jax.training.divergence import Diverged, save_evidence
from dreamer_jax.training.environments import ACTIONS, make_driver, spec_of, streams
from dreamer_jax.training.evaluate import evaluate
from dreamer_jax.training.learner import Learner, Swept, empty_replay, make_learner, record_spec
from dreamer_jax.training.rules import FIRST_EVAL_SEED
from dreamer_jax.training.run_folder import RunFolder
from dreamer_jax.training.saving import load_run, save_run
from dreamer_jax.training.signals import StopRequest
from dreamer_jax.types import Agent
from envs.records import Record
from envs.vector import EnvironmentDied


class Scenes(NamedTuple):
    """Generated scenes: a pytree called as `starts(key, n)` -> uint8 [n, H, W, C], what tells one
    source from another, and the --ddim that finds the same from any folder."""

    starts: Any
    image: tuple[int, int, int]
    digest: str
    source: str = ""


class Run:
    """S learners, the config's `members`, on this process's devices, from environments to logs.

    `make_agent(config, spec)` builds the algorithm; `scenes` are the generated ones of agents
    that use them (see `Agent.refresh`). Use as a context manager; `train()` runs to the end.
    """

    def __init__(
        self,
        make_agent: Any,
        config: RunConfig,
        folder: RunFolder,
        scenes: Scenes | None = None,
    ) -> None:
        self.scenes = scenes
        self.config, self.members, self.folder = config, config.members, folder
        self.seeds = tuple(member.seed for member in self.members)
        self.learners = len(self.members)
        self.capacity = config.replay // config.envs
        try:
            self.env = streams(config, self.seeds)  # and see `open_environments`
            self.spec = spec_of(self.env)
            self.agent: Agent = make_agent(config, self.spec)
            if scenes is not None and scenes.image != self.spec.image:
                raise ValueError(
                    f"--ddim={config.ddim} makes images of {scenes.image}, the environment of "
                    f"{self.spec.image}; use a model of these, as --ddim laptop, or --arm baseline"
                )
        except ValueError as error:  # what environment or networks say of their options
            raise UserError(str(error)) from error
        self.mesh = learner_mesh(self.learners)
        if scenes is not None:
            self.scenes = scenes._replace(starts=self._put(scenes.starts, None))
        self.learner: Learner = make_learner(
            self.agent,
            self.spec,
            config.envs,
            1 if config.overlap else config.updates,
            config.batch,
            config.length,
            self._swept(make_agent),
            self.mesh,
        )
        self.record = record_spec(self.spec, self.agent)
        try:
            state = jax.eval_shape(self.agent.init, jax.eval_shape(lambda: jax.random.key(0)))
        except (TypeError, ValueError) as error:
            raise UserError(
                f"the networks do not fit the observations {self.spec.obs}: "
                f"{str(error).splitlines()[0]}; choose another --env.size, or --env.pixels "
                "if that is given, or sizes of --agent"
            ) from error
        self.plan = memory.plan(
            share(self.learners, self.mesh),
            replay.replay_bytes(self.record, config.envs, self.capacity),
            sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)),
            1 if self.mesh is None else self.mesh.size,
        )
        if self.mesh is not None:
            self.plan += f"\ndevices:    {describe(self.learners, self.mesh)}"
        self.keys = self._put(jax.vmap(jax.random.key)(jnp.array(self.seeds)))
        self.use_keys = {  # derived here: inside the loop even a name would be a transfer
            name: jax.vmap(partial(named_key, name=name))(self.keys)
            for name in ("init", "report", "eval")
        }
        self.collector = Collector(self.env, self.learners, config.chunk, self.record.context)
        self.drivers = [make_driver(config, self.spec, seed) for seed in self.seeds]
        self.checkpoints = Checkpointer(
            folder.path / "checkpoints", config.keep, config.checkpoint_every
        )
        self.pretrained = 0  # rounds of `pretrain` made
        self.cycle = 0  # cycles finished
        self.updates = 0
        self.refreshes = 0
        self.healthy = self._put(jnp.ones(self.learners, bool))
        self.known_healthy = np.ones(self.learners, bool)

    def _put(self, tree: Any, axes: Any = 0) -> Any:
        return put(tree, self.mesh, axes)

    def _swept(self, make_agent: Any) -> Swept | None:
        if not self.config.sweep:
            return None
        names = [name for name, _ in self.members[0].values]
        table = np.array([[value for _, value in m.values] for m in self.members], np.float32)
        values = {name: jnp.asarray(table[:, i]) for i, name in enumerate(names)}
        return Swept(lambda v: make_agent(with_values(self.config, v.items()), self.spec), values)

    def open_environments(self) -> None:
        """In new processes, where those of before have ended; nothing of their episodes is kept."""
        self.env.close()
        self.env = streams(self.config, self.seeds)
        self.collector = Collector(self.env, self.learners, self.config.chunk, self.record.context)

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *exception: object) -> None:
        self.env.close()

    # ------------------------------------------------------------------ state

    def start(self) -> None:
        """Fresh parameters, an empty replay, then the driver's decisions."""
        self.state = self.learner.init(self.use_keys["init"])
        self.carry = self.learner.carry(self.learners)
        size = (self.learners, self.config.envs, self.capacity)
        self.ring = empty_replay(self.record, *size, self.mesh)
        if self.learner.refresh:
            for _ in range(self.config.generated.pool // self.config.generated.fresh):
                self.refresh()

    def refresh(self) -> None:
        """Generate new images into the pools of all learners."""
        count = self._put(np.int32(self.refreshes), None)
        self.state = self.learner.refresh(self.state, self.scenes.starts, self.keys, count)
        self.refreshes += 1

    def prefill(self, display: Display, stop: StopRequest) -> bool:
        """Decisions of the exploration driver, before any training; whether all were made."""
        remaining = -(-self.config.prefill // self.config.envs)
        while remaining > 0 and not stop.requested:
            number = min(remaining, self.config.chunk)
            self._add(collected := self.collector.steps(self._drive, number))
            display.episodes(collected.episodes)
            remaining -= number
        return remaining <= 0

    def pretrain(self, display: Display, stop: StopRequest) -> None:
        """Updates on the driver's decisions alone; returns early, after saving, as `train`."""
        rounds = self.config.pretrain
        while self.pretrained < rounds and not stop.requested:
            self._check(self.update(), display)
            self.pretrained += 1
            display.say(f"trained on the driver's records: {self.pretrained}/{rounds}")
        if stop.requested:
            display.flush()
            self.save()

    def save(self) -> None:
        """A complete checkpoint."""
        save_run(self)

    def load(self, before: RunConfig | None = None) -> list[str]:
        """Continue from the newest whole checkpoint, with new episodes if those under way began
        under other rules; returns warnings about damaged ones.

        `before` has the run's settings until now, for checkpoints that say nothing of rules.
        """
        return load_run(self, before)

    # ------------------------------------------------------------------ cycle

    def train(self, display: Display, stop: StopRequest) -> None:
        """Run the remaining cycles; returns early, after saving, when a stop was requested.

        Raises:
          Diverged: a loss became nan or infinite; the evidence is saved.
          EnvironmentDied: go on from the last checkpoint.
        """
        config = self.config
        while self.cycle < config.cycles:
            self._cycle(display)
            last = self.cycle == config.cycles
            due = self.cycle % config.checkpoint_every == 0
            if last or due or stop.requested:
                display.flush()  # a checkpoint never knows of more than the logs do
                self.save()
            if stop.requested:
                return

    def _cycle(self, display: Display) -> None:
        config = self.config
        frames = self.collector.frames.copy()
        with jax.transfer_guard("disallow"):  # what crosses does so on purpose
            turns = self._at_once() if config.overlap else self._in_turns()
        collected, figures, collect_seconds, update_seconds = turns
        self.cycle += 1
        display.cycle(
            self.cycle,
            collected,
            self.collector.frames,
            figures,
            {
                "time/frames_per_second": (self.collector.frames - frames).sum() / collect_seconds,
                "time/updates_per_second": config.updates * bool(figures) / update_seconds,
            },
            self.known_healthy,
            ACTIONS.get(config.env.id),
        )
        self._check(figures, display)
        if config.overlap:
            self._add(collected)
        if figures and config.report_every and self.cycle % config.report_every == 0:
            self.report(display)
        if config.eval_every and (
            self.cycle % config.eval_every == 0 or self.cycle == config.cycles
        ):
            self.evaluate(display)

    def _in_turns(self) -> tuple[Collected, dict[str, np.ndarray], float, float]:
        """Collecting, then updates on all there is; what came of both, and the seconds of each."""
        clock = time.perf_counter()
        self._add(collected := self.collect())
        between = time.perf_counter()
        if self.learner.refresh:
            self.refresh()
        figures = self.update()
        return collected, figures, between - clock, time.perf_counter() - between

    def _at_once(self) -> tuple[Collected, dict[str, np.ndarray], float, float]:
        """The updates spread evenly over the steps of collecting, each while processes are at work.

        They see what earlier cycles brought; the policy follows them from step to step.
        """
        clock = time.perf_counter()
        if self.learner.refresh:
            self.refresh()
        ready, number, tables = self._ready(), self.config.updates, []

        def some(step: int) -> None:
            while ready and len(tables) < min((step + 1) * number // self.config.chunk, number):
                tables.append(self._dispatch())

        collected = self.collect(some)
        some(self.config.chunk)  # of episodes that ended early
        figures = self._fetch(tables)
        seconds = time.perf_counter() - clock
        return collected, figures, seconds, seconds

    def collect(self, meanwhile: Meanwhile = idle) -> Collected:
        """One cycle's episodes or steps with the current policy."""
        if self.config.cycle_unit == "episodes":
            return self.collector.episodes(self._act, self.config.cycle_size, meanwhile)
        return self.collector.steps(self._act, self.config.chunk, meanwhile)

    def update(self) -> dict[str, np.ndarray]:
        """M updates: figures by name, each [M, S]. Empty while the replay holds no sequence."""
        if not self._ready():
            return {}
        dispatches = self.config.updates if self.config.overlap else 1
        return self._fetch([self._dispatch() for _ in range(dispatches)])

    def _ready(self) -> bool:
        sizes = jax.device_get(self.ring.size)
        return not np.any(np.maximum(sizes - self.config.length + 1, 0).sum(-1) == 0)

    def _dispatch(self) -> jax.Array:
        """Starts the updates of one program; figures [M or 1, n, S], not waited for."""
        self.state, self.ring, self.healthy, figures = self.learner.update(
            self.state, self.ring, self.keys, self.healthy
        )
        self.updates += figures.shape[0]
        return figures

    def _fetch(self, tables: list[jax.Array]) -> dict[str, np.ndarray]:
        if not tables:
            return {}
        names = self.learner.names()  # traced at first: while the updates still run
        table = np.concatenate(jax.device_get(tables))
        return {name: table[:, i] for i, name in enumerate(names)}

    def _check(self, figures: dict[str, np.ndarray], display: Display) -> None:
        """A learner whose loss stopped being finite stays as it was; the others go on."""
        if not figures:
            return
        healthy = np.array(jax.device_get(self.healthy))
        for learner in np.flatnonzero(self.known_healthy & ~healthy):
            message = save_evidence(self, figures, int(learner))
            if not healthy.any():
                raise Diverged(message)
            display.say(f"{self.members[learner].label} stops, the others go on: {message}")
        self.known_healthy = healthy

    def report(self, display: Display) -> None:
        """Pictures of one batch."""
        keys = self.use_keys["report"]
        step = self._put(np.int32(self.updates), None)
        batch = self.learner.sample(self.ring, keys, step)
        arrays = jax.device_get(self.learner.report(self.state, batch, keys))
        display.report(self.collector.frames, arrays, self.known_healthy)

    def evaluate(self, display: Display) -> None:
        """A few held-out episodes without exploration noise, under the rules of the task."""
        config = self.config
        try:
            played = evaluate(
                self.learner,
                self.agent.carry,
                self.state,
                config.env,
                self.use_keys["eval"],
                config.eval_episodes,
                FIRST_EVAL_SEED,
            )
        except EnvironmentDied as error:  # those of the training live
            display.say(f"warning: no evaluation after cycle {self.cycle}: {error.reason}")
            return
        display.evaluation(self.collector.frames, played, self.known_healthy)

    # ------------------------------------------------------------------ policies

    def _act(self, record: Record, active: np.ndarray, step: int) -> Decision:
        lead = (self.learners, self.config.envs)
        obs = {name: x.reshape(*lead, *x.shape[1:]) for name, x in record.observation.items()}
        count = self._put(np.array([self.cycle, step], np.uint32), None)
        inputs = (obs, record.is_first.reshape(lead), active.reshape(lead))
        action, self.carry = self.learner.act(
            self.state, self.carry, *self._put(inputs), _act_keys(self.keys, count),
            mode="train",
        )  # fmt: skip
        context = self.learner.context(self.carry) if self.learner.context else None
        flat = partial(jax.tree.map, lambda x: x.reshape(self.env.num_envs, *x.shape[2:]))
        return Decision(*flat(jax.device_get((action, context))))

    def _drive(self, record: Record, active: np.ndarray, step: int) -> Decision:
        lead = (self.learners, self.config.envs)
        first, active = record.is_first.reshape(lead), active.reshape(lead)
        decisions = zip(self.drivers, first, active, strict=True)
        return Decision(np.concatenate([d.act(f, a) for d, f, a in decisions]))

    def _add(self, collected: Collected) -> None:
        chunk, count = self._put((collected.chunk, collected.count))
        self.ring = self.learner.add(self.ring, chunk, count)


@jax.jit
def _act_keys(keys: jax.Array, count: jax.Array) -> jax.Array:
    """One key per learner for step count[1] of cycle count[0]."""

    def one(key):
        return jax.random.fold_in(jax.random.fold_in(named_key(key, "act"), count[0]), count[1])

    return jax.vmap(one)(keys)
