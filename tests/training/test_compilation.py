"""The cache of compiled programs: where it lies, who may refuse it, and what befalls it."""

import os
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from dreamer_jax.training import compilation
from dreamer_jax.training.compilation import enable_cache

NAMES = (
    "jax_enable_compilation_cache",
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
)
ENVIRONMENT = ("DREAMER_JAX_NO_CACHE", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A cache folder of the test's own, and JAX's settings as when it was imported."""
    before = {name: getattr(jax.config, name) for name in NAMES}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()
    yield tmp_path
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def entries(folder):
    return sorted(folder.glob("*-cache"))


def forgetful(number=1.0):
    """Compiles a small program that JAX does not remember (a new function), and runs it."""
    compilation_cache.reset_cache()  # JAX looks at its settings once
    return float(jax.jit(lambda x: jnp.sin(x) * number)(2.0))


def test_programs_are_kept_and_found_again(home):
    folder = enable_cache()
    assert folder.parent == home / "dreamer-jax" / "xla" and folder.stat().st_mode & 0o77 == 0
    assert jax.config.jax_compilation_cache_dir == str(folder)
    assert jax.config.jax_persistent_cache_min_compile_time_secs == compilation.LEAST_SECONDS
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    first = forgetful()
    kept = {path: path.stat().st_mtime_ns for path in entries(folder)}
    assert kept and forgetful() == first
    assert {path: path.stat().st_mtime_ns for path in entries(folder)} == kept
    assert enable_cache() == folder  # once more changes nothing


def test_what_the_user_set_stays(home, monkeypatch):
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "7")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 7.0)
    assert enable_cache().is_relative_to(home)
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 7.0
    jax.config.update("jax_compilation_cache_dir", "/users/own")
    assert enable_cache() == Path("/users/own")
    jax.config.update("jax_enable_compilation_cache", False)
    assert enable_cache() is None


def test_the_environment_is_read_by_a_fresh_process(home):
    program = "from dreamer_jax.training.compilation import enable_cache as e; print(e())"
    given = {"JAX_COMPILATION_CACHE_DIR": str(home / "own")}
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | given, capture_output=True, text=True
    )
    assert done.stdout.strip() == str(home / "own") and not (home / "dreamer-jax").exists()


def test_it_can_be_refused(home, monkeypatch, capsys):
    monkeypatch.setenv("DREAMER_JAX_NO_CACHE", "1")
    assert enable_cache() is None and jax.config.jax_compilation_cache_dir is None
    assert not list(home.iterdir()) and capsys.readouterr() == ("", "")
    monkeypatch.setenv("DREAMER_JAX_NO_CACHE", "0")
    assert enable_cache() is not None


def test_a_place_that_cannot_be_written_is_one_line(home, monkeypatch, capsys):
    (home / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "file"))
    assert enable_cache() is None and jax.config.jax_compilation_cache_dir is None
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "XDG_CACHE_HOME" in said and "file" in said


def test_without_xdg_it_lies_in_the_home_folder(home, monkeypatch):
    monkeypatch.setenv("HOME", str(home))
    for value in ("", "relative/path"):  # the specification says to ignore the second
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        jax.config.update("jax_compilation_cache_dir", None)
        assert enable_cache().is_relative_to(home / ".cache" / "dreamer-jax")


def test_another_number_of_cores_has_another_folder(home, monkeypatch):
    one = enable_cache()
    for patch in (
        lambda: monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(97), raising=False),
        lambda: monkeypatch.setenv("NPROC", "3"),
    ):
        patch()
        jax.config.update("jax_compilation_cache_dir", None)
        other = enable_cache()
        assert other != one and other.parent == one.parent
        one = other


def test_a_torn_entry_is_compiled_anew_and_dropped_at_the_next_start(home):
    folder = enable_cache()
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    value = forgetful()
    torn = max(entries(folder), key=lambda path: path.stat().st_size)
    torn.write_bytes(torn.read_bytes()[:-40])
    with pytest.warns(UserWarning, match="Error reading persistent compilation cache"):
        assert forgetful() == value
    (folder / "empty-cache").touch()
    (folder / "zstd-cache").write_bytes(b"\x28\xb5\x2f\xfd")  # of a format not looked into
    whole = set(entries(folder)) - {torn, folder / "empty-cache"}
    jax.config.update("jax_compilation_cache_dir", None)
    enable_cache()
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    assert set(entries(folder)) == whole
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert forgetful() == value
    assert torn in entries(folder)


def test_only_what_is_new_is_read_again(home):
    folder = enable_cache()
    old = folder / "old-cache"
    old.write_bytes(zlib.compress(b"program")[:-1])
    os.utime(old, (1.0, 1.0))
    jax.config.update("jax_compilation_cache_dir", None)
    enable_cache()
    assert old.exists()


def test_what_was_not_used_for_longest_goes_first(home, monkeypatch):
    folder = enable_cache()
    for age, name in enumerate(("newest", "middle", "oldest")):
        path = folder / f"{name}-cache"
        path.write_bytes(b"." * 100)
        os.utime(path, (1e9 - age, 1e9 - age))
    monkeypatch.setattr(compilation, "MOST_BYTES", 250)
    jax.config.update("jax_compilation_cache_dir", None)
    enable_cache()
    assert {path.name for path in entries(folder)} == {"newest-cache", "middle-cache"}
