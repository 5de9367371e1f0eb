"""Arrays as a file: whole or not at all, and one kind of error for what is no such file."""

import errno

import numpy as np
import pytest

from ddim_jax import npz

ARRAYS = {"a": np.arange(5), "b/c": np.ones((2, 3), np.float16), "text": np.array("words")}


def test_round_trip_leaves_one_file(tmp_path):
    path = tmp_path / "x.npz"
    for number in range(2):  # the second over the first
        npz.write(path, **ARRAYS, number=np.array(number))
    arrays = npz.read(path)
    assert arrays.pop("number") == 1 and arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert arrays[name].dtype == array.dtype and np.array_equal(arrays[name], array)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_file_alone(tmp_path, monkeypatch, error):
    path = tmp_path / "x.npz"
    npz.write(path, **ARRAYS)
    old = path.read_bytes()

    def fails(file, **arrays):
        file.write(b"half of it")
        raise error

    monkeypatch.setattr(np, "savez_compressed", fails)
    with pytest.raises(type(error)):
        npz.write(path, a=np.zeros(3))
    assert path.read_bytes() == old and list(tmp_path.iterdir()) == [path]
    with pytest.raises(type(error)):
        npz.write(tmp_path / "new.npz", a=np.zeros(3))
    assert list(tmp_path.iterdir()) == [path]


def half(path):
    npz.write(path, a=np.random.default_rng(0).normal(size=1000))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flipped(path):
    npz.write(path, a=np.random.default_rng(0).normal(size=1000))
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 20] = bytes(20)
    path.write_bytes(data)


def single(path):
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


def pickled(path):
    np.savez(path, a=np.array([{}, None]))


def empty(path):
    path.touch()


def folder(path):
    path.mkdir()


@pytest.mark.parametrize("make", [half, flipped, single, pickled, empty, folder])
def test_no_such_file_is_one_kind_of_error(tmp_path, make):
    path = tmp_path / "x.npz"
    make(path)
    with pytest.raises(npz.NpzError, match=r"^cannot be read as \.npz without pickles \("):
        npz.read(path)


def test_a_missing_file_is_told_apart(tmp_path):
    with pytest.raises(FileNotFoundError):
        npz.read(tmp_path / "x.npz")
