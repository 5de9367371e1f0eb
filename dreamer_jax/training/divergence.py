"""A loss that stopped being finite: what led to it, kept for a look."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from dreamer_jax.errors import UserError
from dreamer_jax.training.checkpoint import Checkpointer

if TYPE_CHECKING:
    from dreamer_jax.training.loop import Run


class Diverged(UserError):
    """A loss became nan or infinite."""


def first_bad(
    figures: dict[str, np.ndarray], losses: tuple[str, ...], learner: int
) -> tuple[int, list[str]]:
    """(update, names of the losses) of the learner's first non-finite loss; figures [M, S]."""
    table = np.stack([~np.isfinite(figures[name][:, learner]) for name in losses])  # [losses, M]
    update = int(np.argmax(table.any(0)))
    return update, [name for name, bad in zip(losses, table[:, update], strict=True) if bad]


def _rates(run: Run) -> str:
    """The step sizes of the run's agent, as options."""
    names = [field.name for field in dataclasses.fields(run.config.agent)]
    options = [f"--agent.{n.replace('_', '-')}" for n in names if n == "lr" or n.endswith("_lr")]
    return " or ".join(options)


def save_evidence(run: Run, figures: dict[str, np.ndarray], learner: int) -> str:
    """Write the batch and the parameters before the bad update to <run>/diverged; the message."""
    update, names = first_bad(figures, run.learner.losses, learner)
    folder = run.folder.path / "diverged"
    if run.learners > 1:
        folder = folder / run.members[learner].setting / f"seed_{run.seeds[learner]}"
    folder.mkdir(parents=True, exist_ok=True)
    number = run.updates - run.config.updates + update
    batch = run.learner.sample(run.ring, run.keys, jnp.int32(number))
    batch = jax.device_get(jax.tree.map(lambda x: x[learner], batch))
    np.savez_compressed(
        folder / "batch.npz",
        **{"obs/" + name: values for name, values in batch.obs.items()},
        **{name: value for name, value in vars(batch).items() if name != "obs"},
        **{"figure/" + name: values[:, learner] for name, values in figures.items()},
    )
    host = {"update": number, "learner": learner, "losses": names}
    Checkpointer(folder / "state", keep=1).save(number, run.state, host)
    return (
        f"{', '.join(names)} became nan or infinite in update {number} ("
        f"{run.members[learner].label}); the batch and the parameters before it are in {folder}. "
        f"Start a new run with a smaller {_rates(run)}; "
        f"--resume {run.folder.path} goes on from the last checkpoint with the same"
    )
