"""The runs of a comparison as processes: train, evaluate, go on after a stop, several at once."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from dreamer_jax.errors import UserError
from dreamer_jax.training.comparison_data import DRIVEN, how_driven, read_evaluation
from dreamer_jax.training.last_words import last_line
from dreamer_jax.training.logging import METRICS_NAME, cycles_done
from dreamer_jax.training.memory import LIMIT, part_of_accelerator, share
from dreamer_jax.training.run_folder import CONFIG_NAME, write_atomic
from dreamer_jax.training.signals import StopRequest
from envs.cores import own_cores

PLAN_NAME = "plan.json"
POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Plan:
    """What to run: every arm with every seed, into out/<arm>/seed_<seed>."""

    scripts: Path  # the folder of car_racing.py and evaluate.py
    out: Path
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    preset: str | None
    extra: tuple[str, ...]  # more options of car_racing.py
    episodes: int
    first_track: int
    at_once: int

    def folder(self, arm: str, seed: int) -> Path:
        """The run's folder."""
        return self.out / arm / f"seed_{seed}"

    def train(self, arm: str, seed: int | str, out: Path) -> list[str]:
        """Arguments of a new run, the script first."""
        preset = [] if self.preset is None else ["--preset", self.preset]
        own = ["--arm", arm, "--seed", str(seed), "--out", str(out)]
        return [str(self.scripts / "car_racing.py"), *preset, *own, *self.extra]

    def evaluate(self, out: Path) -> list[str]:
        """Arguments of the evaluation, the script first."""
        tracks = ["--episodes", str(self.episodes), "--first-track", str(self.first_track)]
        return [str(self.scripts / "evaluate.py"), str(out), *tracks]


@dataclass
class Job:
    """One run on its way through training and evaluation."""

    arm: str
    seed: int
    folder: Path
    log: Path
    process: subprocess.Popen | None = None
    command: list[str] | None = None  # the last one started
    failure: str | None = None
    cores: set[int] | None = None  # those its processes may use; None: all
    memory: dict[str, str] = field(default_factory=dict)  # variables that bound its processes'

    @property
    def name(self) -> str:
        """As messages call it."""
        return f"{self.arm} seed {self.seed}"


def keep_plan(plan: Plan) -> None:
    """Write what the runs in `out` were started with, or see that it is the same.

    Raises:
      UserError: `out` holds runs of other options, or cannot be written.
    """
    path = plan.out / PLAN_NAME
    wanted = {"preset": plan.preset, "extra": list(plan.extra)}
    try:
        plan.out.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            write_atomic(path, json.dumps(wanted, indent=1) + "\n")
        held = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot use {path} ({error}); choose another folder with --out") from error
    if held != wanted:
        raise UserError(
            f"the runs in {plan.out} were started with {_options(held)}, not with "
            f"{_options(wanted)}; use those options again, or another --out"
        )


def run_all(plan: Plan, stop: StopRequest) -> list[Job]:
    """Train and evaluate whatever is not yet done; returns the jobs, failed ones with a reason.

    A run that fails does not touch the others. When `stop` is requested no more are started, and
    those under way are asked to save and end.
    """
    (plan.out / "logs").mkdir(parents=True, exist_ok=True)
    jobs = [
        Job(arm, seed, plan.folder(arm, seed), plan.out / "logs" / f"{arm}-seed_{seed}.log")
        for seed in plan.seeds  # seed by seed: a stopped comparison has both arms of the first
        for arm in plan.arms
    ]
    at_once = min(plan.at_once, len(jobs))
    if at_once > 1:
        for job in jobs:
            job.memory = {LIMIT: str(share(at_once))} | part_of_accelerator(1 / at_once)
    waiting, running = deque(jobs), []
    shares = core_shares(at_once)  # those that no job has
    asked = False
    try:
        while running or (waiting and not stop.requested):
            while waiting and shares and not stop.requested:
                job = waiting.popleft()
                job.cores = shares.pop()
                if _start_next(plan, job):
                    running.append(job)
                else:
                    shares.append(job.cores)
            if stop.requested and not asked:
                asked = True
                for job in running:
                    job.process.terminate()
            for job in [job for job in running if job.process.poll() is not None]:
                running.remove(job)
                shares.append(job.cores)
                _note_end(job, stop.requested)
                if job.failure is None:
                    waiting.appendleft(job)
            if running:
                time.sleep(POLL_SECONDS)
    finally:
        for job in running:  # only when something above went wrong, or at a second Ctrl-C
            job.process.kill()
            job.process.wait()
    return jobs


def core_shares(number: int) -> list[set[int] | None]:
    """Equal shares, without overlap, of the cores that this process may use.

    Each is None, all cores, where there are fewer than `number`, and where a process cannot be kept
    to some (macOS).
    """
    cores = own_cores()
    size = len(cores) // number  # the same for all: XLA's last bits depend on how many it has
    if number == 1 or size == 0:
        return [None] * number
    return [set(cores[n * size : (n + 1) * size]) for n in range(number)]


@contextlib.contextmanager
def _on(cores: set[int] | None) -> Iterator[None]:
    """What is started within uses these cores alone, from its first instruction on.

    Later would be too late: XLA counts its threads when JAX starts.
    """
    if cores is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)  # of this thread; a process inherits that of who starts it
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def next_command(plan: Plan, job: Job) -> list[str] | None:
    """What the run still lacks: training, going on, evaluation; None when it has everything.

    Raises:
      UserError: a file of the run is damaged.
    """
    folder = job.folder
    if not (folder / CONFIG_NAME).is_file():
        return plan.train(job.arm, job.seed, folder)
    cycles = _cycles(folder)
    done = cycles_done(folder) if (folder / METRICS_NAME).is_file() else 0
    held = read_evaluation(folder, job.seed)
    evaluated = held is not None and held["cycle"] == cycles
    # The last lines are logged before the last checkpoint: only with that is the run complete.
    # One that was evaluated had it; its checkpoints may have been removed since.
    saved = (folder / "checkpoints" / f"{cycles:08d}").is_dir()
    if done < cycles or not (saved or evaluated):
        return [str(plan.scripts / "car_racing.py"), "--resume", str(folder)]
    wanted = (plan.first_track, plan.episodes, DRIVEN)
    if evaluated and (held["first_track"], len(held["returns"]), how_driven(held)) == wanted:
        return None
    return plan.evaluate(folder)


def _start_next(plan: Plan, job: Job) -> bool:
    """Start the job's next process; False when there is none left, or it failed."""
    try:
        command = next_command(plan, job)
    except UserError as error:
        job.failure = str(error)
        return False
    if command is None:
        print(f"{job.name}: done", flush=True)
        return False
    if command == job.command:
        job.failure = f"{Path(command[0]).name} ended without an error and without a result"
        return False
    job.command = command
    stage = "evaluating" if Path(command[0]).name == "evaluate.py" else "training"
    going_on = " (going on)" if "--resume" in command else ""
    print(f"{job.name}: {stage}{going_on}, log in {job.log}", flush=True)
    with job.log.open("a", encoding="utf-8") as log, _on(job.cores):
        job.process = _process(command, log, job.memory)
    return True


def _process(command: Sequence[str], log: TextIO, memory: dict[str, str]) -> subprocess.Popen:
    environment = dict(os.environ)
    if memory:
        # By default the first process on an accelerator takes most of its memory for itself.
        bounds = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} | memory
        environment = bounds | environment | {LIMIT: memory[LIMIT]}  # a share of the user's own
    return subprocess.Popen(
        [sys.executable, *command],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=environment,
    )


def _note_end(job: Job, stopped: bool) -> None:
    code = job.process.returncode
    if code == 0:
        return
    script = Path(job.command[0]).name
    job.failure = "stopped" if stopped else f"{script} failed ({last_line(job.log) or code})"
    if not stopped:
        print(f"{job.name}: {job.failure}, log in {job.log}", file=sys.stderr, flush=True)


def _cycles(folder: Path) -> int:
    try:
        return int(json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))["cycles"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"cannot read {folder / CONFIG_NAME} ({error}); restore it, or remove the folder to "
            "start that run again"
        ) from error


def _options(held: dict) -> str:
    preset = [] if held.get("preset") is None else ["--preset", held["preset"]]
    return " ".join([*preset, *held.get("extra", [])]) or "no options"
