"""Run folders: refused when used, locked while in use, free when the process is gone."""

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from dreamer_jax.errors import UserError
from dreamer_jax.training.run_folder import RunFolder, write_atomic

HOLDER = """
    import sys, time
    from dreamer_jax.training.run_folder import RunFolder
    folder = RunFolder.open(sys.argv[1])
    print("held", flush=True)
    time.sleep(60)
"""


def make_run(path) -> Path:
    with RunFolder.create(path, "x") as folder:
        folder.save_config({"seed": 1, "out": Path("a/b")})
    return path


def test_create_save_open_load(tmp_path):
    path = make_run(tmp_path / "deep" / "run")
    with RunFolder.open(path) as folder:
        assert folder.path == path
        assert folder.load_config() == {"seed": 1, "out": "a/b"}


def test_default_name_and_time(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.strftime", lambda form: "20250102-030405")
    with RunFolder.create(None, "race") as first, RunFolder.create(None, "race") as second:
        assert first.path == tmp_path / "runs" / "race-20250102-030405"
        assert second.path == tmp_path / "runs" / "race-20250102-030405-2"


def test_used_folder_is_refused(tmp_path):
    path = make_run(tmp_path / "run")
    with pytest.raises(UserError, match=r"already holds a run.*--out.*--resume"):
        RunFolder.create(path, "x")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("kept")
    RunFolder.create(tmp_path / "other", "x").close()


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--out"):
        RunFolder.create(tmp_path / "file", "x")


def test_open_needs_a_run(tmp_path):
    with pytest.raises(UserError, match="no run folder"):
        RunFolder.open(tmp_path / "missing")
    with pytest.raises(UserError, match=r"holds no run .*config\.json"):
        RunFolder.open(tmp_path)


@pytest.mark.parametrize("text", ["{", "[1]", ""])
def test_damaged_config(tmp_path, text):
    path = make_run(tmp_path / "run")
    (path / "config.json").write_text(text)
    with RunFolder.open(path) as folder, pytest.raises(UserError, match=r"config\.json"):
        folder.load_config()


def test_lock_in_this_process(tmp_path):
    path = make_run(tmp_path / "run")
    with RunFolder.open(path):
        with pytest.raises(UserError, match=f"in use by process {os.getpid()};"):
            RunFolder.open(path)
        RunFolder.open(path, exclusive=False).close()
    RunFolder.open(path).close()


def test_lock_goes_when_the_process_dies(tmp_path):
    path = make_run(tmp_path / "run")
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", textwrap.dedent(HOLDER), str(path)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout.readline() == "held\n"
            with pytest.raises(UserError, match=rf"process {holder.pid}\b") as caught:
                RunFolder.open(path)
            assert re.search("--out", str(caught.value))
        finally:
            holder.kill()
    RunFolder.open(path).close()


def test_forked_worker_does_not_keep_the_lock(tmp_path):
    path = make_run(tmp_path / "run")
    script = """
        import os, sys, time
        from dreamer_jax.training.run_folder import RunFolder
        folder = RunFolder.open(sys.argv[1])
        if os.fork() == 0:
            print(os.getpid(), flush=True)
        time.sleep(60)
    """
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", textwrap.dedent(script), str(path)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as run:
        worker = int(run.stdout.readline())  # printed after what follows a fork
        run.kill()
        run.wait()
        try:
            os.kill(worker, 0)  # still alive
            RunFolder.open(path).close()
        finally:
            os.kill(worker, 9)


def test_write_atomic_leaves_nothing_else(tmp_path):
    write_atomic(tmp_path / "a.json", "one")
    write_atomic(tmp_path / "a.json", "two")
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]
    assert (tmp_path / "a.json").read_text() == "two"
