"""Updates while the environments are at work: the schedule, and runs that follow it."""

from types import SimpleNamespace

import numpy as np
import pytest
from logged import set_cycles, updates

from dreamer_jax.training.command import race
from dreamer_jax.training.loop import Run

OPTIONS = ["--preset", "debug", "--arm", "baseline", "--prefill", "60", "--overlap"]
OPTIONS += ["--eval-every", "0", "--report-every", "0", "--env.time-limit", "80"]


@pytest.mark.parametrize(
    ("updates", "steps", "ready", "expected"),
    [
        (5, 10, True, [0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]),
        (5, 4, True, [0, 1, 1, 2, 5]),  # the episodes ended early
        (20, 10, True, [2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 20]),
        (5, 10, False, [0] * 11),  # nothing to learn from yet
    ],
)
def test_updates_are_spread_over_the_steps(updates, steps, ready, expected):
    made, seen = [], []

    def collect(meanwhile):
        for step in range(steps):
            meanwhile(step)
            seen.append(len(made))
        return "collected"

    run = SimpleNamespace(
        config=SimpleNamespace(updates=updates, chunk=10),
        learner=SimpleNamespace(refresh=None),
        collect=collect,
        _ready=lambda: ready,
        _dispatch=lambda: made.append(0),
        _fetch=lambda tables: {"updates": len(tables)},
    )
    collected, figures, *_ = Run._at_once(run)
    assert collected == "collected" and figures == {"updates": len(made)}
    assert [*seen, len(made)] == expected


@pytest.mark.usefixtures("compiled_once")
def test_a_run_is_the_same_again_over_a_stop(tmp_path):
    folders = [tmp_path / "whole", tmp_path / "stopped"]
    for folder, cycles in zip(folders, ("3", "2"), strict=True):
        assert race([*OPTIONS, "--cycles", cycles, "--out", str(folder)]) == 0
    set_cycles(folders[1], 3)
    assert race(["--resume", str(folders[1])]) == 0
    want, got = map(updates, folders)
    assert len(want) == 3
    np.testing.assert_equal(got, want)
