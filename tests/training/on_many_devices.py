"""Run by test_devices.py in a process that sees 8 devices: updates of 8 learners in many ways."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
from tiny import AGENT, SPEC, play

from dreamer_jax.training.checkpoint import Checkpointer
from dreamer_jax.training.devices import learner_mesh, placed, put
from dreamer_jax.training.learner import empty_replay, make_learner, record_spec

S, N, RECORDS = 8, 1, 20


def figures_and_state(seeds, mesh, side_by_side=False):
    """What 2 updates of the learners leave."""
    learner = make_learner(AGENT, SPEC, N, 2, 4, 4, None, mesh, side_by_side)
    keys = put(jax.vmap(jax.random.key)(jnp.array(seeds)), mesh)
    chunk = jax.tree.map(lambda *x: np.stack(x), *(play(s, RECORDS, N) for s in seeds))
    count = np.full((len(seeds), N), RECORDS, np.int32)
    ring = empty_replay(record_spec(SPEC), len(seeds), N, RECORDS, mesh)
    ring = learner.add(ring, *put((chunk, count), mesh))
    with jax.transfer_guard("disallow"):
        state = learner.init(keys)
        fit = put(np.ones(len(seeds), bool), mesh)
        state, _, _, figures = learner.update(state, ring, keys, fit)
    return figures, state, ring


def restored(folder, mesh, agent_state, ring):
    """The arrays of a checkpoint as `Checkpointer` gives them for shapes that say where."""
    arrays, axes = {"agent": agent_state, "replay": ring}, {"agent": AGENT.axes, "replay": 0}
    checkpoints = Checkpointer(folder)
    checkpoints.save(1, arrays, {})
    shapes = jax.eval_shape(lambda: arrays)
    return arrays, checkpoints.restore(placed(shapes, mesh, axes)).arrays


def main(path):
    mesh = learner_mesh(S)
    spread, state, ring = figures_and_state(range(S), mesh)
    together, *_ = figures_and_state(range(S), None)
    batched, *_ = figures_and_state(range(S), None, side_by_side=True)
    alone, *_ = figures_and_state([5], None)
    kernels = jax.tree.leaves(state.model)
    saved, back = restored(path + ".checkpoints", mesh, state, ring)
    same = jax.tree.map(lambda a, b: np.array_equal(a, b), saved, back)
    parts = [*jax.tree.leaves(back["agent"].model), back["replay"].data.obs["image"]]
    np.savez(
        path,
        spread=spread,
        together=together,
        batched=batched,
        alone=alone,
        restored_same=all(jax.tree.leaves(same)),
        restored_devices=[len(x.sharding.device_set) for x in parts],
        restored_shard=[x.addressable_shards[0].data.shape[0] for x in parts],
        devices=[len(x.sharding.device_set) for x in [*kernels, ring.data.obs["image"]]],
        shard=[x.addressable_shards[0].data.shape[0] for x in [*kernels, ring.data.obs["image"]]],
    )


if __name__ == "__main__":
    main(sys.argv[1])
