"""What a checkpoint of a run holds, and how a run goes on from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from dreamer_jax import replay
from dreamer_jax.errors import UserError
from dreamer_jax.training.config import RunConfig
from dreamer_jax.training.devices import placed, put, spread
from dreamer_jax.training.learner import empty_replay, record_spec
from dreamer_jax.training.logging import METRICS_NAME, cycles_done
from dreamer_jax.training.rules import episode_rules
from dreamer_jax.training.run_folder import LOCK_NAME, RunFolder
from dreamer_jax.types import Agent, Spec
from envs.vector import EnvironmentDied

if TYPE_CHECKING:
    from dreamer_jax.training.loop import Run


def save_run(run: Run) -> None:
    """A complete checkpoint; the ring is cut to its filled part."""
    filled = int(np.max(jax.device_get(run.ring.size)))
    arrays = {
        "agent": run.state,
        "replay": dataclasses.replace(
            run.ring, data=jax.tree.map(lambda x: x[:, :, :filled], run.ring.data)
        ),
        "carry": run.carry,
        "healthy": run.healthy,
    }
    host = {
        "cycle": run.cycle,
        "updates": run.updates,
        "refreshes": run.refreshes,
        "pretrained": run.pretrained,
        "scenes": None if run.scenes is None else run.scenes.digest,
        "filled": filled,
        "seeds": run.seeds,
        "stopped": np.flatnonzero(~run.known_healthy),  # learners, by their number in the run
        "rules": episode_rules(run.config),
        "collector": run.collector.get_state(),
        "drivers": [driver.get_state() for driver in run.drivers],
    }
    run.checkpoints.save(run.cycle, arrays, host)


def load_run(run: Run, before: RunConfig | None) -> list[str]:
    """See `Run.load`."""
    axes = {"agent": run.agent.axes, "replay": 0, "carry": 0, "healthy": 0}

    def template(host):  # each learner's part straight to its device: one may not hold all
        return placed(checkpoint_template(run.agent, run.spec, run.config, host), run.mesh, axes)

    restored = run.checkpoints.restore(template)
    host, arrays = restored.host, restored.arrays
    if run.scenes is not None and host["scenes"] != run.scenes.digest:
        raise UserError(
            f"--ddim={run.config.ddim} holds other weights than the run began with; put the "
            "old ones back, or start a new run with --out"
        )
    run.refreshes = host["refreshes"]
    run.state = put(arrays["agent"], run.mesh, run.agent.axes)
    run.carry, run.healthy = put((arrays["carry"], arrays["healthy"]), run.mesh)
    run.known_healthy = np.array(jax.device_get(run.healthy))
    grow = jax.vmap(partial(replay.grow, capacity=run.capacity))
    run.ring = jax.jit(spread(grow, (0,), 0, run.mesh))(put(arrays["replay"], run.mesh))
    run.cycle, run.updates = host["cycle"], host["updates"]
    rules = episode_rules(before or run.config) | host.get("rules", {})  # older ones lack some
    same = rules == episode_rules(run.config)
    run.pretrained = host.get("pretrained", run.config.pretrain)  # older ones were saved later
    warnings = list(restored.warnings)
    try:
        run.collector.set_state(host["collector"], same)
    except EnvironmentDied as error:
        if not same:
            raise
        warnings.append(f"episodes under way are given up, and new ones begin: {error.reason}")
        run.open_environments()
        run.collector.set_state(host["collector"], same_episodes=False)
    for driver, state in zip(run.drivers, host["drivers"], strict=True):
        driver.set_state(state)
    return warnings


def need_beginning(path: Path) -> None:
    """Raises UserError unless a run in `path` without a checkpoint may begin once more.

    One that was killed before its first may. Not one whose checkpoints were removed, nor a copy
    of what a run has logged, as of a sweep: the logs would be emptied.
    """
    with RunFolder.open(path, exclusive=False) as folder:
        every = folder.load_config().get("checkpoint_every", 1)
    logged = max((cycles_done(file.parent) for file in path.glob(f"**/{METRICS_NAME}")), default=0)
    if logged > every or (logged and not (path / LOCK_NAME).exists()):
        raise UserError(
            f"{path} has logged {logged} cycles but holds no checkpoint to go on from, and would "
            "be emptied; put its folder `checkpoints` back, resume the run that it was copied "
            "from, or start a new run with another --out"
        )


def checkpoint_template(
    agent: Agent, spec: Spec, config: RunConfig, host: Mapping[str, Any]
) -> dict[str, Any]:
    """Shapes of the checkpoint of a run whose host part this is."""
    learners = len(host["seeds"])

    def build():
        keys = jax.vmap(jax.random.key)(jnp.zeros(learners, jnp.int32))
        carry = jax.tree.map(
            lambda x: jnp.broadcast_to(x, (learners, *x.shape)), agent.carry(config.envs)
        )
        return {
            "agent": jax.vmap(agent.init, out_axes=agent.axes)(keys),
            "replay": empty_replay(record_spec(spec, agent), learners, config.envs, host["filled"]),
            "carry": carry,
            "healthy": jnp.ones(learners, bool),
        }

    return jax.eval_shape(build)
