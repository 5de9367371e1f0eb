"""What a run goes on with after a stop, with stand-ins for its parts and a checkpoint in memory."""

import json
from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer_jax.replay import ReplayState
from dreamer_jax.training.command import race
from dreamer_jax.training.config import to_dict
from dreamer_jax.training.loop import Scenes
from dreamer_jax.training.presets import DEBUG
from dreamer_jax.training.saving import load_run, need_beginning, save_run


class Kept:
    """The last checkpoint, its host part as JSON."""

    def save(self, step, arrays, host):
        self.arrays, self.host = arrays, json.loads(json.dumps(host, default=np.ndarray.tolist))

    def restore(self, template):
        return SimpleNamespace(arrays=self.arrays, host=self.host, warnings=["one was torn"])


def stand_in(checkpoints, **parts):
    """A run of two learners, as it is before its first cycle."""
    told = []
    part = SimpleNamespace(get_state=lambda: 7, set_state=lambda *state: told.append(state))
    fresh = {
        "state": jnp.zeros(2),
        "carry": jnp.zeros((2, 1)),
        "healthy": jnp.ones(2, bool),
        "known_healthy": np.ones(2, bool),
        "ring": None,
        "cycle": 0,
        "updates": 0,
        "refreshes": 0,
        "pretrained": 0,
    }
    return SimpleNamespace(
        **(fresh | parts), config=DEBUG, spec=None, mesh=None, agent=SimpleNamespace(axes=0),
        seeds=(3, 5), capacity=4, scenes=Scenes(None, (8, 8, 3), "digest"), told=told,
        collector=part, drivers=[part, part], checkpoints=checkpoints,
    )  # fmt: skip


def test_a_run_goes_on_with_what_was_saved():
    """The ring is cut to what is filled, and is whole again."""
    records = jnp.arange(8.0).reshape(2, 1, 4)
    ring = ReplayState({"x": records}, jnp.array([[3], [2]]), jnp.array([[3], [2]]))
    saved = {"cycle": 4, "updates": 9, "refreshes": 11, "pretrained": 2, "ring": ring}
    saved |= {"state": jnp.array([1.0, 2.0]), "carry": jnp.array([[3.0], [4.0]])}
    saved |= {"healthy": jnp.array([False, True]), "known_healthy": np.array([False, True])}
    checkpoints = Kept()
    save_run(stand_in(checkpoints, **saved))
    assert checkpoints.arrays["replay"].data["x"].shape == (2, 1, 3)
    assert checkpoints.host["stopped"] == [0]
    run = stand_in(checkpoints)
    assert load_run(run, None) == ["one was torn"]
    assert (run.cycle, run.updates, run.refreshes, run.pretrained) == (4, 9, 11, 2)
    for name in ("state", "carry", "healthy"):
        np.testing.assert_array_equal(getattr(run, name), saved[name])
    np.testing.assert_array_equal(run.known_healthy, [False, True])
    assert run.ring.data["x"].shape == (2, 1, 4)
    np.testing.assert_array_equal(run.ring.data["x"][:, :, :2], records[:, :, :2])
    jax.tree.map(
        np.testing.assert_array_equal, (run.ring.cursor, run.ring.size), (ring.cursor, ring.size)
    )
    assert run.told == [(7, True), (7,), (7,)]


def test_episodes_go_on_from_a_checkpoint_that_knows_fewer_rules():
    """An older version saved it; the rule it lacks was not in force. One that changed is."""
    ring = ReplayState({"x": jnp.zeros((2, 1, 4))}, jnp.ones((2, 1), int), jnp.ones((2, 1), int))
    checkpoints = Kept()
    save_run(stand_in(checkpoints, ring=ring))
    del checkpoints.host["rules"]["env.both_ways"], checkpoints.host["pretrained"]
    run = stand_in(checkpoints)
    load_run(run, None)
    assert run.told[0] == (7, True) and run.pretrained == DEBUG.pretrain  # long over
    checkpoints.host["rules"]["env.idle_limit"] += 1
    run = stand_in(checkpoints)
    load_run(run, None)
    assert run.told[0] == (7, False)


@pytest.mark.parametrize(
    ("cycles", "locked", "refused"),
    [(0, False, False), (3, True, False), (3, False, True), (4, True, True)],
)
def test_what_was_logged_is_not_emptied_for_want_of_a_checkpoint(
    cycles, locked, refused, tmp_path, capsys
):
    """A run begins again that was killed before its first checkpoint, after three cycles; not one
    that must have had one, nor a copy of what was logged, which no process ever locked."""
    (tmp_path / "config.json").write_text(json.dumps(to_dict(replace(DEBUG, checkpoint_every=3))))
    (tmp_path / "seed_0").mkdir()
    logged = "".join(
        json.dumps({"step": 10 * n, "train/cycle": n}) + "\n" for n in range(1, cycles + 1)
    )
    (tmp_path / "seed_0" / "metrics.jsonl").write_text(logged)
    if locked:
        (tmp_path / "lock").touch()
    if not refused:
        need_beginning(tmp_path)
        return
    for _ in range(2):  # a refused one leaves no lock
        assert race(["--resume", str(tmp_path), "--cycles", "9"]) == 2
        assert f"has logged {cycles} cycles but holds no checkpoint" in capsys.readouterr().err
    assert (tmp_path / "seed_0" / "metrics.jsonl").read_text() == logged
