"""A loss that stopped being finite: what led to it, kept for a look."""

from __future__ import annotations

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
    figures: dict[str, np.ndarray], losses: tuple[str, ...]
) -> tuple[int, int, list[str]] | None:
    """(update, learner, names of the losses) of the first non-finite loss; figures [M, S]."""
    table = np.stack([~np.isfinite(figures[name]) for name in losses])  # [losses, M, S]
    where = np.argwhere(table.any(0))
    if not len(where):
        return None
    update, learner = where[0]
    names = [n for n, bad in zip(losses, table[:, update, learner], strict=True) if bad]
    return int(update), int(learner), names


def save_evidence(run: Run, figures: dict[str, np.ndarray]) -> str:
    """Write the batch and the parameters before the bad update to <run>/diverged; the message."""
    update, learner, names = first_bad(figures, run.learner.losses)
    folder = run.folder.path / "diverged"
    folder.mkdir(exist_ok=True)
    number = run.updates - run.config.updates + update
    batch = run.learner.sample(run.ring, run.keys, jnp.int32(number))
    batch = jax.device_get(jax.tree.map(lambda x: x[learner], batch))
    np.savez_compressed(
        folder / "batch.npz",
        **{name: getattr(batch, name) for name in batch.__dataclass_fields__},
        **{"figure/" + name: values[:, learner] for name, values in figures.items()},
    )
    host = {"update": number, "learner": learner, "losses": names}
    Checkpointer(folder / "state", keep=1).save(number, run.state, host)
    return (
        f"{', '.join(names)} became nan or infinite in update {number} (seed "
        f"{run.seeds[learner]}); the batch and the parameters before it are in {folder}. "
        "Try a smaller --agent.model-lr, --agent.actor-lr or --agent.critic-lr; "
        f"--resume {run.folder.path} goes on from the last checkpoint"
    )
