"""Ctrl-C and SIGTERM, also where nobody reads what is said of them any more."""

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dreamer_jax.training.display import Display
from dreamer_jax.training.members import Member
from dreamer_jax.training.signals import StopRequest

RUN = [
    "--agent", "dreamer_v3", "--preset", "debug", "--prefill", "60", "--eval-every", "0",
    "--report-every", "0", "--env.time-limit", "80", "--cycles", "500",
]  # fmt: skip


class Closed(io.StringIO):
    """As a pipe to `tee` once Ctrl-C has ended that."""

    gone = True

    def write(self, text):
        if self.gone:
            raise BrokenPipeError(32, "Broken pipe")
        return len(text)

    def flush(self):
        self.write("")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_is_noted_where_nobody_reads(number, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Closed())
    with StopRequest() as stop:
        os.kill(os.getpid(), number)
        assert stop.requested and stop.code == 128 + number


def test_a_second_ctrl_c_leaves_at_once():
    with StopRequest(), pytest.raises(KeyboardInterrupt):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_display_outlives_its_terminal(tmp_path, monkeypatch):
    terminal = Closed()
    terminal.gone = False
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, terminal)
    display = Display(tmp_path, [Member(0)], 3)
    terminal.gone = True
    display.bar.set_postfix(done=1)
    display.bar.update()
    display.say("a line")
    display.close()


def test_a_line_above_the_bar_clears_it(tmp_path, monkeypatch):
    terminal = io.StringIO()
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, terminal)
    display = Display(tmp_path, [Member(0)], 3)
    display.bar.refresh()
    before = len(terminal.getvalue())
    display.say("a line")
    text = terminal.getvalue()[before:]
    assert text.startswith("\r ") and "\ra line\n" in text
    display.close()


def test_help_that_nobody_reads_to_its_end_is_no_error(tmp_path):
    script = Path(__file__).parents[2] / "experiments" / "train.py"
    command = [sys.executable, str(script), "--env", "CartPole-v1", "--help"]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert done.returncode == 141 and b"Error" not in done.stderr


@pytest.mark.usefixtures("compiled_once")
def test_ctrl_c_that_ends_tee_too_loses_nothing(tmp_path):
    """The first checkpoint would be due after ten cycles."""
    script = Path(__file__).parents[2] / "experiments" / "car_racing.py"
    command = [sys.executable, str(script), *RUN, "--out", str(tmp_path / "run")]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    said = b""
    while b"1/500" not in said:
        said += (some := os.read(run.stdout.fileno(), 4096))
        assert some, said.decode()
    run.stdout.close()
    time.sleep(0.1)
    run.send_signal(signal.SIGINT)
    run.wait(timeout=120)
    assert len(list((tmp_path / "run" / "checkpoints").glob("[0-9]*"))) == 1
