"""What a full disk, or one that may not be written, says to the user."""

import errno
import os
from types import SimpleNamespace

import pytest

from ddim_jax.training import command as ddim_command
from dreamer_jax.errors import UserError
from dreamer_jax.training import command


def fails(code):
    def run(*_):
        raise OSError(code, os.strerror(code), "runs/x/metrics.jsonl")

    return run


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS])
def test_one_line_and_status_2(code, capsys):
    assert command.guarded(fails(code)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert "runs/x/metrics.jsonl" in error and "then begin again" in error


def test_other_errors_of_the_system_are_not_explained_away():
    with pytest.raises(OSError, match="Too many open files"):
        command.guarded(fails(errno.EMFILE))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES])
def test_a_training_says_how_to_go_on(code):
    folder = SimpleNamespace(path="runs/x")
    run = SimpleNamespace(train=fails(code), run=fails(code), folder=folder)
    run.pretrain = lambda *_: None
    with pytest.raises(UserError, match="then --resume runs/x"):
        command._train(run, display=None, fresh=False)
    with pytest.raises(UserError, match="then --resume runs/x"):
        ddim_command._train(run, policy=None)
