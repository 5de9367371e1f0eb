"""Learners spread over 8 simulated devices."""

import jax
import numpy as np
import pytest
from processes import TESTS, python

from dreamer_jax.training.devices import learner_mesh


@pytest.fixture(scope="module")
def updated(tmp_path_factory):
    path = tmp_path_factory.mktemp("devices") / "out.npz"
    ended = python(TESTS / "training" / "on_many_devices.py", path)
    assert ended.returncode == 0, ended.stderr
    return np.load(path)


def test_every_device_holds_one_learner(updated):
    assert set(updated["devices"]) == {8} and set(updated["shard"]) == {1}


def test_a_checkpoint_goes_straight_back_to_the_devices_it_came_from(updated):
    """One of them may not hold it all."""
    assert set(updated["restored_devices"]) == {8} and set(updated["restored_shard"]) == {1}
    assert updated["restored_same"]


@pytest.mark.parametrize("way", ["spread", "together"])
def test_a_learner_is_as_alone_bit_for_bit(updated, way):
    assert len(set(updated[way][1, 0])) == 8  # eight different learners
    np.testing.assert_array_equal(updated[way][..., 5], updated["alone"][..., 0])


def test_learners_in_one_batch_are_the_same_but_for_rounding(updated):
    np.testing.assert_allclose(updated["batched"], updated["together"], rtol=1e-3, atol=1e-5)


def test_devices_share_the_learners_evenly(monkeypatch):
    device = jax.devices()[0]
    assert learner_mesh(4) is None
    monkeypatch.setattr(jax, "local_devices", lambda: [device] * 8)
    assert [learner_mesh(s).size for s in (2, 6, 8, 12, 16)] == [2, 6, 8, 6, 8]
    assert learner_mesh(1) is None and learner_mesh(11) is None
