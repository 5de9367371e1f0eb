"""One group of a sweep on the machine that Ray chose: an actor and the run that is its child.

The run is a process of its own, so that JAX's state belongs to one attempt, and it dies with its
actor, so that it never writes beside the next attempt. JAX is not imported here.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np

from dreamer_jax.errors import UserError
from dreamer_jax.training.comparison import WINDOW
from dreamer_jax.training.last_words import last_line
from dreamer_jax.training.logging import METRICS_NAME, parse_line
from dreamer_jax.training.memory import LIMIT, part_of_accelerator
from dreamer_jax.training.run_folder import InUse, RunFolder, saved_steps

LOCK_SECONDS = 60.0  # a killed run holds its lock until the last of its files is closed
TAIL_BYTES = 100_000  # of metrics.jsonl; ten episodes lie well within
USER_ERROR, TRY_AGAIN = 2, 1  # exit statuses: of what only the user can mend, and of what may pass
RESULTS = (METRICS_NAME, "events.out.tfevents.*", "return.png")

# Starts a run that dies with its parent. exec keeps the request; a function between fork and exec
# (preexec_fn) could hang in a process with threads. Ray's workers block SIGINT, the run must not.
_TIED = """
import ctypes, os, signal, sys
parent, *command = sys.argv[1:]
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
if os.getppid() != int(parent):
    sys.exit("the Ray worker is gone")
signal.pthread_sigmask(signal.SIG_SETMASK, ())
os.execv(sys.executable, [sys.executable, *command])
"""


@dataclass(frozen=True)
class Job:
    """What the machine of a group must know."""

    folder: Path  # of the run, absolute
    script: Path  # car_racing.py
    arguments: tuple[str, ...]  # of a new run, without --out
    config: dict[str, Any]  # what its config.json holds, `out` aside
    learners: tuple[Path, ...]  # their folders inside `folder`
    cpus: float
    gpus: float
    cwd: Path  # where relative paths among the arguments begin
    groups: int = 1  # of the whole sweep

    @property
    def log(self) -> Path:
        """What the run prints, of all attempts on this machine."""
        return self.folder.parent / "logs" / f"{self.folder.name}.log"


class Status(NamedTuple):
    """How far a run is."""

    host: str
    node: str  # Ray's id of the machine
    worker: int  # process id of the actor
    pid: int  # of the run
    seconds: float
    code: int | None  # exit status, None while it runs
    message: str  # of one that ended badly: the last line of its log
    cycle: int
    frames: int  # of one learner
    latest: float | None  # mean return of the last 10 episodes, over the learners


class GroupRun:
    """The actor: one attempt at one group. Its methods take turns."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.process: subprocess.Popen | None = None
        self.refusal, self.began = "", time.monotonic()
        self.refused = USER_ERROR  # exit status that goes with it

    def start(self) -> Status:
        """Start the run, from its last checkpoint where there is one; a second call only polls."""
        if self.process or self.refusal:
            return self.poll()
        try:
            self.job.log.parent.mkdir(parents=True, exist_ok=True)
            wait_for_lock(self.job.folder, LOCK_SECONDS)
            arguments = next_arguments(self.job)
            with self.job.log.open("a", encoding="utf-8") as log:
                self._launch(arguments, log)
        except UserError as error:
            self.refusal = str(error)
            if isinstance(error, InUse):  # a machine that was lost may still hold it for a while
                self.refused = TRY_AGAIN
        except OSError as error:
            self.refusal = f"cannot write {self.job.folder} on {socket.gethostname()} ({error})"
        return self.poll()

    def _launch(self, arguments: Sequence[str], log: TextIO) -> None:
        try:
            self.process = _start(self.job, arguments, log)
        except OSError as error:  # too many processes, or no memory
            self.refusal = f"cannot start a process on {socket.gethostname()} ({error})"
            self.refused = TRY_AGAIN

    def poll(self) -> Status:
        """How far it is."""
        code = self.process.poll() if self.process else self.refused
        return Status(
            socket.gethostname(),
            _node(),
            os.getpid(),
            self.process.pid if self.process else 0,
            time.monotonic() - self.began,
            code,
            self.refusal or (last_line(self.job.log) if code else ""),
            *progress([self.job.folder / learner for learner in self.job.learners]),
        )

    def stop(self) -> None:
        """Ask the run to save and leave."""
        if self.process:
            self.process.terminate()

    def results(self) -> list[dict[str, bytes]]:
        """The small files of each learner by name."""
        folders = [self.job.folder / learner for learner in self.job.learners]
        return [
            {path.name: path.read_bytes() for name in RESULTS for path in folder.glob(name)}
            for folder in folders
        ]


def wait_for_lock(folder: Path, seconds: float) -> None:
    """Return when no process holds the run folder. Raises UserError when that takes too long."""
    deadline = time.monotonic() + seconds
    while folder.is_dir():
        try:
            RunFolder(folder).close()
            return
        except UserError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def next_arguments(job: Job) -> list[str]:
    """What to call car_racing.py with: go on from a checkpoint, or begin in a clean folder.

    Raises:
      UserError: the folder holds a run of other settings.
    """
    folder = job.folder
    if not saved_steps(folder / "checkpoints"):
        shutil.rmtree(folder, ignore_errors=True)  # nothing in it could be gone on from
        return [*job.arguments, "--out", str(folder)]
    with RunFolder.open(folder, exclusive=False) as run:
        others = differing(run.load_config(), job.config)
    if others:
        raise UserError(
            f"{folder} on {socket.gethostname()} holds a run of other settings "
            f"({', '.join(others)}); remove it or choose another --out"
        )
    return ["--resume", str(folder)]


def differing(held: Mapping[str, Any], wanted: Mapping[str, Any], room: str = "") -> list[str]:
    """Names of settings with two values; one that a version does not know has its default there."""
    names = []
    for name in sorted((held.keys() & wanted.keys()) - {"out"}):
        one, other = held[name], wanted[name]
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            names += differing(one, other, f"{room}{name}.")
        elif one != other:
            names.append(room + name)
    return names


def _start(job: Job, arguments: Sequence[str], log: TextIO) -> subprocess.Popen:
    script = job.script
    if not script.is_file():  # this machine keeps the repository elsewhere
        script = Path(__file__).resolve().parents[2] / "experiments" / script.name
    if not script.is_file():
        raise UserError(
            f"neither {job.script} nor {script} is on {socket.gethostname()}; put the repository "
            "there and install it with pip install -e"
        )
    return subprocess.Popen(
        [sys.executable, "-c", _TIED, str(os.getpid()), str(script), *arguments],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=environment(job) | memory(job, _resources()) | os.environ,
        cwd=job.cwd if job.cwd.is_dir() else None,
        start_new_session=True,  # a Ctrl-C at the terminal is passed on by the driver alone
    )


def environment(job: Job) -> dict[str, str]:
    """What a group's process needs to stay within its share; the user's own variables win.

    CUDA_VISIBLE_DEVICES and OMP_NUM_THREADS have been set by Ray.
    """
    if not job.gpus:
        return {"JAX_PLATFORMS": "cpu", "NPROC": str(max(1, int(job.cpus)))}
    # By default the first process on an accelerator takes most of its memory for itself.
    return {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} if job.gpus % 1 else {}


def memory(job: Job, node: Mapping[str, float]) -> dict[str, str]:
    """What bounds the memory of a group's process: as large a part as it has of the CPUs or of a
    GPU, or as all groups could have at once. Each would find the whole machine free.

    Args: `node` is what Ray counts on this machine. Memory that Ray keeps for its objects is free
    too, a sweep has none; a container's limit is in both figures.
    """
    if job.gpus:
        return part_of_accelerator(job.gpus) if job.gpus < 1 else {}
    if not node.get("CPU"):
        return {}
    whole = node.get("memory", 0) + node.get("object_store_memory", 0)
    part = max(job.cpus / node["CPU"], 1 / job.groups)
    return {LIMIT: str(int(whole * min(1, part)))} if whole else {}


def progress(folders: Sequence[Path]) -> tuple[int, int, float | None]:
    """(cycle, frames, latest return) over the learners that log into `folders`.

    The cycle is the furthest one, frames and return are means.
    """
    logs = [_tail(folder / METRICS_NAME) for folder in folders]
    cycles = [line["train/cycle"] for log in logs for line in log if "train/cycle" in line]
    frames = [log[-1]["step"] for log in logs if log]
    returns = [[x["episode/return"] for x in log if "episode/return" in x] for log in logs]
    latest = [np.mean(r[-WINDOW:]) for r in returns if r]
    return (
        int(max(cycles, default=0)),
        int(np.mean(frames)) if frames else 0,
        float(np.mean(latest)) if latest else None,
    )


def _tail(path: Path) -> list[dict[str, Any]]:
    """The last lines of a metrics.jsonl, which may be written to at this moment."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return []
    # Lines are torn at either end.
    return [record for line in text.split("\n") if (record := parse_line(line)) is not None]


def _node() -> str:
    import ray

    return ray.get_runtime_context().get_node_id() if ray.is_initialized() else ""


def _resources() -> Mapping[str, float]:
    """What Ray counts on this machine."""
    if not (own := _node()):
        return {}
    import ray

    return next((node["Resources"] for node in ray.nodes() if node["NodeID"] == own), {})
