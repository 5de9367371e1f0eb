"""Checkpoints: what goes in comes out, and nothing that goes wrong loses an earlier one."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dreamer_jax.errors import UserError
from dreamer_jax.training import checkpoint, manifest
from dreamer_jax.training.checkpoint import Checkpointer, choose


class Buffer(NamedTuple):
    frames: jax.Array
    empty: jax.Array


@flax.struct.dataclass
class State:
    params: dict
    opt: optax.OptState
    key: jax.Array
    buffer: Buffer
    absent: None = None


def make_state(seed: int = 0, width: int = 5) -> State:
    params = {"w": jnp.full((3, width), 0.5 + seed), "b": jnp.zeros(width, jnp.bfloat16)}
    buffer = Buffer(jnp.arange(24, dtype=jnp.uint8).reshape(2, 4, 3) + seed, jnp.zeros((0, 7)))
    keys = jax.random.split(jax.random.key(seed), 3)
    return State(params, optax.adam(1e-3).init(params), keys, buffer)


def make_small(value: int) -> dict:
    return {"x": jnp.full(4, value)}


def saved(folder, *steps: int) -> Checkpointer:
    checkpointer = Checkpointer(folder)
    for step in steps:
        checkpointer.save(step, make_small(step), {"step": step})
    return checkpointer


def assert_same(left, right) -> None:
    left_leaves, left_form = jax.tree_util.tree_flatten(left)
    right_leaves, right_form = jax.tree_util.tree_flatten(right)
    assert left_form == right_form
    for a, b in zip(left_leaves, right_leaves, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            assert jax.random.key_impl(a) == jax.random.key_impl(b)
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b)


def test_round_trip_of_every_kind_of_leaf(tmp_path):
    state = make_state()
    host = {"frames": np.int64(7), "loss": np.float32(0.5), "rows": np.arange(3), "name": "a"}
    Checkpointer(tmp_path / "c").save(12, state, host)
    restored = Checkpointer(tmp_path / "c").restore(make_state(seed=9))
    assert restored.step == 12 and restored.warnings == []
    assert restored.host == {"frames": 7, "loss": 0.5, "rows": [0, 1, 2], "name": "a"}
    assert_same(restored.arrays, state)
    assert (tmp_path / "c" / "00000012" / "manifest.json").is_file()


def test_template_of_shapes_only(tmp_path):
    state = make_state()
    Checkpointer(tmp_path).save(1, state, {})
    template = jax.eval_shape(lambda: make_state())
    assert_same(Checkpointer(tmp_path).restore(template).arrays, state)


def test_template_gives_the_kind_of_each_leaf(tmp_path):
    key = jax.random.key(3, impl="rbg")
    tree = {"numpy": np.arange(3), "number": 4, "flag": True, "key": key}
    Checkpointer(tmp_path).save(1, tree, {})
    other = {"numpy": np.zeros(3, int), "number": 0, "flag": False, "key": key}
    arrays = Checkpointer(tmp_path).restore(other).arrays
    assert isinstance(arrays["numpy"], np.ndarray) and arrays["numpy"].tolist() == [0, 1, 2]
    assert arrays["number"] == 4 and arrays["flag"] is True
    assert jax.random.key_impl(arrays["key"]) == jax.random.key_impl(key)


def test_sharding_is_the_templates(tmp_path):
    mesh = jax.make_mesh((1,), ("seed",))
    sharding = jax.NamedSharding(mesh, jax.P("seed"))
    Checkpointer(tmp_path).save(1, {"k": jax.random.split(jax.random.key(0), 2)}, {})
    template = jax.device_put({"k": jax.random.split(jax.random.key(1), 2)}, sharding)
    assert Checkpointer(tmp_path).restore(template).arrays["k"].sharding == sharding


def test_pictures_kept_before_observations_had_names(tmp_path):
    image, reward = jnp.arange(6, dtype=jnp.uint8), jnp.ones(2)
    Checkpointer(tmp_path).save(1, {"replay": {"data": {"image": image, "reward": reward}}}, {})
    new = {"replay": {"data": {"obs": {"image": image}, "reward": reward}}}
    template = jax.tree.map(jnp.zeros_like, new)
    assert_same(Checkpointer(tmp_path).restore(template).arrays, new)


@pytest.mark.parametrize("hosts", [1, 2])
def test_one_part_alone(tmp_path, monkeypatch, hosts):
    """Whatever stands before it in the tree; the rest is not read but must fit."""
    monkeypatch.setattr(jax, "process_count", lambda: hosts)
    tree = {"a": make_state(1), "b": make_state(2), "c": make_small(3)}
    Checkpointer(tmp_path).save(1, tree, {"step": 1})
    checkpointer = Checkpointer(tmp_path)
    template = {"a": make_state(7), "b": make_state(8), "c": make_small(9)}
    for part in template:
        restored = checkpointer.restore(template, part=part)
        assert_same(restored.arrays, tree[part])
        assert restored.host == {"step": 1}
    with pytest.raises(UserError, match="does not fit"):
        checkpointer.restore(template | {"a": make_state(7, width=6)}, part="b")


def test_tree_without_arrays(tmp_path):
    Checkpointer(tmp_path).save(1, {}, {"a": 1})
    assert Checkpointer(tmp_path).restore({}).host == {"a": 1}


def test_keeps_the_last(tmp_path):
    checkpointer = saved(tmp_path, 1, 2, 3, 4, 123456789)
    assert checkpointer.steps() == [3, 4, 123456789]
    assert checkpointer.restore(make_small(0), step=3).arrays["x"][0] == 3
    with pytest.raises(UserError, match=r"no checkpoint of step 2 .*present: 3, 4"):
        checkpointer.restore(make_small(0), step=2)
    with pytest.raises(ValueError, match="keep"):
        Checkpointer(tmp_path, keep=0)


def test_what_an_interruption_left_makes_room_first():
    """Due are multiples of 10; 13 and 25 came of stops."""
    assert choose([10, 13, 20, 25], 2, 10) == [20, 25]  # the newest always stays
    assert choose([10, 13, 20, 25, 30], 3, 10) == [10, 20, 30]
    assert choose([10, 13, 20, 25, 30], 4, 10) == [10, 20, 25, 30]  # better than none
    assert choose([13, 25], 1, 10) == [25] and choose([7], 3, 10) == [7]
    assert choose([], 3, 10) == []
    assert choose([0, 3, 5], 2, 10) == [3, 5]  # before the first cycle none is due


def test_a_stop_changes_nothing_of_what_is_kept(tmp_path):
    straight, stopped = (Checkpointer(tmp_path / name, 3, every=10) for name in "ab")
    for step in (10, 20, 30, 40):
        straight.save(step, make_small(step), {})
    for step in (10, 20, 30, 33, 34, 40):
        stopped.save(step, make_small(step), {})
        assert stopped.steps()[-1] == step and len(stopped.steps()) <= 3
    assert stopped.steps() == straight.steps() == [20, 30, 40]


def test_the_newest_whole_one(tmp_path):
    assert Checkpointer(tmp_path / "nowhere").newest() == 0
    checkpointer = saved(tmp_path, 10, 20)
    assert checkpointer.newest() == 20
    flip(largest(tmp_path / "00000020" / "arrays"))
    assert Checkpointer(tmp_path).newest() == 10
    flip(largest(tmp_path / "00000010" / "arrays"))
    with pytest.raises(UserError, match="no whole checkpoint"):
        Checkpointer(tmp_path).newest()


def test_same_step_is_replaced(tmp_path):
    checkpointer = Checkpointer(tmp_path, keep=1)
    for value in (1, 2):
        checkpointer.save(5, make_small(value), {})
    assert checkpointer.restore(make_small(0)).arrays["x"][0] == 2
    assert [entry.name for entry in tmp_path.iterdir()] == ["00000005"]


def test_replacement_cut_between_its_renames_is_undone(tmp_path):
    saved(tmp_path, 5)
    (tmp_path / "00000005").rename(tmp_path / ".replaced-00000005")
    assert Checkpointer(tmp_path).restore(make_small(0)).host == {"step": 5}


def test_leftovers_are_ignored_then_removed(tmp_path):
    saved(tmp_path, 1)
    leftover = tmp_path / ".tmp-00000002-99"
    shutil.copytree(tmp_path / "00000001", leftover)
    checkpointer = Checkpointer(tmp_path)
    assert checkpointer.steps() == [1]
    checkpointer.save(3, make_small(3), {})
    assert not leftover.exists() and checkpointer.steps() == [1, 3]


def flip(path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


def truncate(path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def largest(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


@pytest.mark.parametrize("damage", [flip, truncate, os.unlink])
@pytest.mark.parametrize("which", ["largest", "host.json", "manifest.json"])
def test_damaged_newest_gives_the_one_before(tmp_path, damage, which):
    checkpointer = saved(tmp_path, 1, 2)
    folder = tmp_path / "00000002"
    damage(largest(folder / "arrays") if which == "largest" else folder / which)
    seen = []
    restored = checkpointer.restore(lambda host: seen.append(host) or make_small(0))
    assert seen == [restored.host] == [{"step": 1}]
    assert restored.step == 1 and restored.arrays["x"][0] == 1
    (warning,) = restored.warnings
    assert "00000002" in warning and "damaged" in warning


def test_damaged_one_does_not_push_out_whole_ones(tmp_path):
    saved(tmp_path, 1, 10)
    flip(largest(tmp_path / "00000010" / "arrays"))
    checkpointer = Checkpointer(tmp_path, keep=1)
    assert checkpointer.restore(make_small(0)).step == 1
    checkpointer.save(4, make_small(4), {})
    assert checkpointer.steps() == [4]


def test_what_could_not_be_read_once_is_not_removed(tmp_path, monkeypatch):
    checkpointer = saved(tmp_path, 5, 10)
    whole = checkpoint.verify_files

    def verify(folder, manifest):
        if folder.name == "00000010":
            raise OSError(errno.EMFILE, "Too many open files")
        whole(folder, manifest)

    monkeypatch.setattr(checkpoint, "verify_files", verify)
    restored = checkpointer.restore(make_small(0))
    assert restored.step == 5 and "could not be read" in restored.warnings[0]
    monkeypatch.undo()
    checkpointer.save(6, make_small(6), {})
    assert checkpointer.steps() == [5, 6, 10]
    assert checkpointer.restore(make_small(0)).step == 10


def test_all_damaged_and_none_at_all(tmp_path):
    with pytest.raises(UserError, match=r"no checkpoint in .*nowhere"):
        Checkpointer(tmp_path / "nowhere").restore(make_small(0))
    assert not (tmp_path / "nowhere").exists()
    checkpointer = saved(tmp_path, 1)
    flip(largest(tmp_path / "00000001" / "arrays"))
    with pytest.raises(UserError, match=r"no whole checkpoint in .*backup"):
        checkpointer.restore(make_small(0))


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ({"x": jnp.zeros(5, jnp.int32)}, r"'x' has shape \[4\], wanted \[5\] .*replay capacity"),
        ({"x": jnp.zeros(4, jnp.float32)}, r"'x' is int32, wanted float32 .*precision"),
        ({"x": jnp.zeros(4, jnp.int32), "y": 1}, r"it has no 'y'"),
        ({}, r"its 'x' is not wanted"),
        ({"x": jnp.zeros((2, 2), jnp.int32)}, r"\[4\], wanted \[2, 2\] .*network size"),
    ],
)
def test_other_structure_names_the_leaf(tmp_path, template, message):
    with pytest.raises(UserError, match=message):
        saved(tmp_path, 1).restore(template)


def test_other_project_and_format(tmp_path, monkeypatch):
    monkeypatch.setattr(manifest, "PROJECT", "elsewhere")
    saved(tmp_path, 1)
    monkeypatch.undo()
    with pytest.raises(UserError, match="written by elsewhere"):
        Checkpointer(tmp_path).restore(make_small(0))
    monkeypatch.setattr(manifest, "FORMAT", 99)
    saved(tmp_path, 2)
    monkeypatch.undo()
    with pytest.raises(UserError, match="format 99"):
        Checkpointer(tmp_path).restore(make_small(0))


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        ValueError("RESOURCE_EXHAUSTED: Failed to write: No space left on device"),
    ],
)
def test_full_disk_leaves_the_earlier_ones(tmp_path, monkeypatch, error):
    checkpointer = saved(tmp_path, 1)

    def fail(folder):
        raise error

    monkeypatch.setattr("dreamer_jax.training.checkpoint.seal", fail)
    with pytest.raises(UserError, match=r"full: .*up to 2 MB .*earlier checkpoints are intact"):
        checkpointer.save(2, {"x": jnp.zeros(500_000)}, {})
    monkeypatch.undo()
    assert [entry.name for entry in tmp_path.iterdir()] == ["00000001"]
    assert checkpointer.restore(make_small(0)).step == 1


def test_host_that_json_lacks_is_refused_before_writing(tmp_path):
    checkpointer = saved(tmp_path, 1)
    with pytest.raises(TypeError, match="JSON"):
        checkpointer.save(2, make_small(2), {"a": object()})
    assert [entry.name for entry in tmp_path.iterdir()] == ["00000001"]


WRITER = """
    import sys, itertools
    import jax.numpy as jnp
    from dreamer_jax.training.checkpoint import Checkpointer
    checkpointer = Checkpointer(sys.argv[1])
    frames = jnp.zeros((100, 64, 64, 3), jnp.uint8)
    for step in itertools.count(1):
        checkpointer.save(step, {"x": frames + step}, {"step": step})
"""


def kill_inside_a_save(folder, at_least: int) -> None:
    """Start the writer and kill -9 it while a temporary folder exists."""
    root = Path(__file__).parents[2]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(root)}
    command = [sys.executable, "-c", textwrap.dedent(WRITER), str(folder)]
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as writer:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and writer.poll() is None:
            if len(list(folder.glob("0*"))) >= at_least and list(folder.glob(".tmp-0*")):
                break
            time.sleep(0.001)
        assert writer.poll() is None, "the writer ended by itself"
        writer.send_signal(signal.SIGKILL)


def test_killed_inside_a_save(tmp_path):
    for attempt in range(5):
        folder = tmp_path / str(attempt)
        kill_inside_a_save(folder, at_least=2)
        if list(folder.glob(".tmp-0*")):
            break
    else:
        pytest.fail("no kill landed inside a save")
    checkpointer = Checkpointer(folder)
    steps = checkpointer.steps()
    restored = checkpointer.restore({"x": jax.ShapeDtypeStruct((100, 64, 64, 3), jnp.uint8)})
    assert restored.step == steps[-1] and restored.warnings == []
    assert restored.host == {"step": steps[-1]}
    assert (np.asarray(restored.arrays["x"]) == steps[-1] % 256).all()
    checkpointer.save(steps[-1] + 1, make_small(1), {})
    assert not list(folder.glob(".tmp-*"))


def test_manifest_lists_every_file(tmp_path):
    saved(tmp_path, 1)
    folder = tmp_path / "00000001"
    content = json.loads((folder / "manifest.json").read_text())
    present = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert set(content["files"]) == present - {"manifest.json"}
    assert content["leaves"] == [["x", [4], "int32"]]
