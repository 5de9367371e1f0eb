"""The groups of a sweep on a Ray cluster: handed over, watched, tried again, stopped.

One actor a group, see sweep_group.py. `ray` is imported by `import_ray` alone, and handed on.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dreamer_jax.errors import UserError
from dreamer_jax.training.signals import StopRequest
from dreamer_jax.training.sweep_group import USER_ERROR, GroupRun, Job, Status

WAITING, RUNNING, STOPPED, FAILED, FINISHED = "waiting", "running", "stopped", "failed", "finished"
POLL_SECONDS = 1.0
CONNECT_SECONDS = 5.0


def import_ray() -> Any:
    """The package, which few need. Raises UserError where it is missing."""
    try:
        import ray
    except ImportError as error:
        raise UserError(f"a sweep needs Ray ({error}): pip install 'dreamer-jax[sweep]'") from error
    return ray


@contextlib.contextmanager
def cluster(ray: Any, address: str | None, cpus: float, gpus: float) -> Iterator[None]:
    """A connection to the cluster at `address`, or to one started on this machine for None.

    Raises:
      UserError: it cannot be reached, or none of its machines has room for a group.
    """
    settings = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        settings |= {"address": "local", "include_dashboard": False}
    else:
        _see_that_it_answers(address)
        settings["address"] = address
    try:
        try:
            ray.init(**settings)
        except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            what = "start Ray" if address is None else f"reach the Ray cluster at {address}"
            raise UserError(f"cannot {what} ({_loss(error)})") from error
        _see_that_a_group_fits([n["Resources"] for n in ray.nodes() if n["Alive"]], cpus, gpus)
        yield
    except ray.exceptions.RayError as error:
        raise UserError(
            f"lost the Ray cluster: {_loss(error)}; the same command goes on"
        ) from error
    finally:
        ray.shutdown()


def _see_that_it_answers(address: str) -> None:
    """Ray itself would try for minutes."""
    if address == "auto":
        return
    form = re.fullmatch(r"\[?([^\[\]]+)\]?:(\d+)", address)
    if not form or "/" in address:
        raise UserError(f"--address={address} cannot be: write auto, or HOST:PORT as 10.0.0.1:6379")
    try:
        socket.create_connection((form[1], int(form[2])), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise UserError(
            f"cannot reach the Ray cluster at {address} ({error}); start one with ray start --head "
            "there, or leave --address out"
        ) from error


def _see_that_a_group_fits(nodes: Sequence[dict[str, float]], cpus: float, gpus: float) -> None:
    sizes = [(node.get("CPU", 0.0), node.get("GPU", 0.0)) for node in nodes]
    if not any(cpus <= c and gpus <= g for c, g in sizes):
        have = ", ".join(sorted({f"{c:g} and {g:g}" for c, g in sizes}))
        raise UserError(
            f"--cpus={cpus:g} --gpus={gpus:g} cannot be: a group would wait for ever, as no "
            f"machine of the cluster has so many CPUs and GPUs (they have {have})"
        )
    room = sum(int(min(c / cpus, g / gpus if gpus else c / cpus)) for c, g in sizes)
    print(f"Ray: room for {room} groups at once on {len(sizes)} machine(s)", flush=True)


@dataclass
class Group:
    """One group on its way."""

    job: Job
    cycles: int
    seeds: tuple[int, ...]  # of its learners
    settings: tuple[str, ...]  # likewise
    state: str = WAITING
    retries: int = 0
    message: str = ""
    attempts: list[dict[str, Any]] = field(default_factory=list)
    status: Status | None = None  # of the attempt under way
    actor: Any = None
    answer: Any = None  # the reference that is waited for

    @property
    def name(self) -> str:
        """`group_3`."""
        return self.job.folder.name

    @property
    def targets(self) -> list[Path]:
        """Where the results of its learners are gathered."""
        return [
            # compare.py splits names at commas
            self.job.folder.parent / setting.replace(",", "/") / f"seed_{seed}"
            for setting, seed in zip(self.settings, self.seeds, strict=True)
        ]


def run_all(
    ray: Any,
    groups: Sequence[Group],
    retries: int,
    stop: StopRequest,
    gather: Callable[[Group, list[dict[str, bytes]]], None],
    changed: Callable[[], None],
) -> None:
    """Bring every group to an end: finished, failed or, when `stop` is requested, stopped.

    A group whose process, worker or machine dies is started again up to `retries` times. `gather`
    gets the files of a finished one and may raise UserError, `changed` is called between polls.
    """
    left = {group.name: retries for group in groups}
    busy = [group for group in groups if group.state != FINISHED]
    asked = False
    try:
        for group in busy:
            _submit(ray, group)
        while busy:
            changed()
            time.sleep(POLL_SECONDS)
            if stop.requested and not asked:
                asked = True
                for group in busy:
                    _ask_to_stop(ray, group)
            waited = [group.answer for group in busy if group.answer is not None]
            ready = set(ray.wait(waited, num_returns=len(waited), timeout=0)[0]) if waited else ()
            for group in [group for group in busy if group.answer in ready]:
                lost = _advance(ray, group, gather)
                if lost is None:
                    continue
                _release(ray, group)
                _note_end(group, STOPPED if stop.requested else lost)
                if stop.requested:
                    group.state = STOPPED
                elif left[group.name] == 0:
                    group.state = FAILED
                    group.message = f"{lost} (after {retries} retries)"
                else:
                    left[group.name] -= 1
                    group.retries += 1
                    group.message = lost
                    _submit(ray, group)
            busy = [group for group in busy if group.actor is not None]
    finally:
        for group in busy:  # only when something above went wrong, or at a second Ctrl-C
            group.state = STOPPED
            _release(ray, group)
        changed()


def _submit(ray: Any, group: Group) -> None:
    """Hand the group to the cluster, where it waits for room."""
    job = group.job
    actor = ray.remote(GroupRun).options(num_cpus=job.cpus, num_gpus=job.gpus, max_restarts=0)
    group.actor = actor.remote(job)
    group.answer = group.actor.start.remote()
    group.state, group.status = WAITING, None


def _advance(ray: Any, group: Group, gather: Callable[..., None]) -> str | None:
    """Take the group's answer and ask the next; returns why the attempt was lost, if it was."""
    try:
        answer = ray.get(group.answer)
    except ray.exceptions.ActorUnavailableError:  # for now: it answers again, or is given up
        group.answer = group.actor.start.remote()
        return None
    except ray.exceptions.RayError as error:
        return _loss(error)
    if not isinstance(answer, Status):
        _finish(ray, group, answer, gather)
        return None
    if group.status is None:
        names = ("host", "node", "worker", "pid", "seconds")
        group.attempts.append({name: getattr(answer, name) for name in names})
    group.attempts[-1]["seconds"] = round(answer.seconds, 1)
    group.state, group.status = RUNNING, answer
    if answer.code is None:
        group.answer = group.actor.poll.remote()
    elif answer.code == 0:
        group.answer = group.actor.results.remote()
    elif answer.code == USER_ERROR:
        _note_end(group, answer.message)
        group.state, group.message = FAILED, answer.message
        _release(ray, group)
    else:
        return _death(answer)
    return None


def _finish(ray: Any, group: Group, files: Any, gather: Callable[..., None]) -> None:
    try:
        gather(group, files)
        group.state, group.message = FINISHED, ""
    except UserError as error:
        group.state, group.message = FAILED, str(error)
    _note_end(group, group.message or "finished")
    _release(ray, group)


def _note_end(group: Group, how: str) -> None:
    if group.status is not None:
        group.attempts[-1]["end"] = how


def _loss(error: Exception) -> str:
    """Why Ray lost an attempt, from pages of text."""
    text = str(error).strip()
    if found := re.search(r"because (its [\w ]+ (?:died|failed))", text):  # "its node has died"
        return found[1]
    # Of an exception in the actor the last line says what, of anything else the first.
    lines = text.splitlines() or [""]
    return f"{type(error).__name__}: {lines[-1 if 'Traceback' in text else 0].strip()}"


def _death(status: Status) -> str:
    if status.code < 0:
        return f"killed by {signal.Signals(-status.code).name}"
    return f"exit status {status.code}: {status.message}"


def _ask_to_stop(ray: Any, group: Group) -> None:
    if group.status is None:  # nothing of it runs yet
        _release(ray, group)
        group.state = STOPPED
    else:
        group.actor.stop.remote()


def _release(ray: Any, group: Group) -> None:
    if group.actor is not None:
        ray.kill(group.actor)
        group.actor = group.answer = None


# ---------------------------------------------------------------- how groups are told of


def record(group: Group) -> dict[str, Any]:
    """What sweep.json keeps of a group; host and node are those of the last attempt."""
    last = group.attempts[-1] if group.attempts else {}
    return {
        "name": group.name,
        "seeds": sorted(set(group.seeds)),
        "settings": list(dict.fromkeys(group.settings)),
        "state": group.state,
        "message": group.message,
        "retries": group.retries,
        "cycle": group.cycles if group.state == FINISHED else getattr(group.status, "cycle", 0),
        "host": last.get("host"),
        "node": last.get("node"),
        "seconds": round(sum(attempt["seconds"] for attempt in group.attempts), 1),
        "attempts": group.attempts,
    }


def describe(group: Group) -> str:
    """`group_0   running   cycle 3/90  4,000 frames  return 31.2  on HOST`."""
    again = group.state in (WAITING, RUNNING) and group.message
    state = f"retry {group.retries}" if again else group.state
    parts = [f"{group.name:<10}{state:<10}"]
    if status := group.status:
        parts.append(f"cycle {status.cycle}/{group.cycles}")
        parts.append(f"{status.frames:,} frames")
        if status.latest is not None:
            parts.append(f"return {status.latest:.1f}")
        parts.append(f"on {status.host}")
    if group.message:
        parts.append(f"({group.message})")
    return "  ".join(parts)


class Screen:
    """One line a group: redrawn on a terminal, elsewhere printed when it has changed."""

    def __init__(self) -> None:
        self.live, self.drawn = sys.stdout.isatty(), 0
        self.lines: dict[str, str] = {}

    def show(self, groups: Sequence[Group]) -> None:
        lines = {group.name: describe(group) for group in groups}
        if not self.live:
            for name, line in lines.items():
                if line != self.lines.get(name):
                    print(line, flush=True)
        else:
            width, height = shutil.get_terminal_size()
            shown = list(lines.values())
            if len(shown) > height - 2:  # those that move come first
                order = sorted(groups, key=lambda group: group.state != RUNNING)
                shown = [lines[group.name] for group in order[: height - 3]]
                shown.append(f"... and {len(groups) - len(shown)} more groups")
            up = f"\x1b[{self.drawn}F\x1b[J" if self.drawn else ""
            print(up + "\n".join(line[: width - 1] for line in shown), flush=True)
            self.drawn = len(shown)
        self.lines = lines
