"""Two processes that `jax.distributed` joins, each with its share of the seeds."""

import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from logged import set_cycles, updates

from dreamer_jax.errors import UserError
from dreamer_jax.training import hosts
from dreamer_jax.training.checkpoint import Checkpointer
from dreamer_jax.training.command import race
from dreamer_jax.training.presets import DEBUG

pytestmark = pytest.mark.usefixtures("compiled_once")
SCRIPT = Path(__file__).parents[2] / "experiments" / "car_racing.py"
OPTIONS = ["--preset", "debug", "--arm", "baseline", "--cycles", "2", "--prefill", "60"]
OPTIONS += ["--eval-every", "0", "--report-every", "0", "--env.time-limit", "80"]


def on_two_hosts(words):
    """Both runs to their end."""
    of_two([str(SCRIPT), *words, "--hosts"])


def of_two(words):
    """Python on these words and a host's address, twice; what each said."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    started = [
        subprocess.Popen(
            [sys.executable, *words, f"{address},2,{index}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(2)
    ]
    said = [process.communicate(timeout=600)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], "\n".join(said)
    return said


ALONE = """
import sys, jax
from dreamer_jax.training import hosts
from dreamer_jax.training.checkpoint import Checkpointer

hosts.join(sys.argv[2])
print("host", jax.process_index(), jax.process_count(), jax.distributed.is_initialized())
template = {"x": jax.ShapeDtypeStruct((3,), "float32")}
if jax.process_index():
    print("read", Checkpointer(sys.argv[1]).restore(template).arrays["x"].tolist())
"""


def test_none_waits_for_another_or_dies_with_it(tmp_path):
    """`jax.distributed` would end all when one has ended, and Orbax reads with all or not at all.

    What one process has saved, as a diffusion model's training, one of two can read.
    """
    Checkpointer(tmp_path).save(1, {"x": np.arange(3, dtype=np.float32)}, {})
    said = of_two(["-c", ALONE, str(tmp_path)])
    assert "host 0 2 False" in said[0] and "host 1 2 False" in said[1]
    assert "read [0.0, 1.0, 2.0]" in said[1]


def test_each_host_trains_its_seeds_as_one_alone_would(tmp_path):
    folder = tmp_path / "run"
    on_two_hosts([*OPTIONS, "--seeds", "3,5", "--out", str(folder)])
    for index in range(2):
        set_cycles(folder / f"host_{index}", 3)
    on_two_hosts(["--resume", str(folder)])
    alone = [*OPTIONS, "--seed", "5", "--out", str(tmp_path / "alone")]
    alone[alone.index("--cycles") + 1] = "3"
    assert race(alone) == 0
    want, got = updates(tmp_path / "alone"), updates(folder / "host_1")
    assert len(want) == 3
    np.testing.assert_equal(got, want)


def test_shares(monkeypatch):
    from dataclasses import replace

    config = replace(DEBUG, seeds="0:5", out="runs/x")
    assert hosts.own_share(config) is config
    monkeypatch.setattr(hosts.jax, "process_count", lambda: 2)
    got = []
    for index in range(2):
        monkeypatch.setattr(hosts.jax, "process_index", lambda index=index: index)
        got.append(hosts.own_share(config))
    assert [c.seeds for c in got] == ["0,1,2", "3,4"]
    assert [c.out for c in got] == ["runs/x/host_0", "runs/x/host_1"]
    pairs = replace(config, seeds="0:6", env=replace(config.env, cars=2))
    assert hosts.own_share(pairs).seeds == "4,5"
    with pytest.raises(UserError, match="at least 4"):
        hosts.own_share(replace(pairs, seeds="0:2"))
    with pytest.raises(UserError, match="--out"):
        hosts.own_share(replace(config, out=None))


@pytest.mark.parametrize("text", ["here", "localhost:1,2", "localhost:1,two,0", "localhost:1,2,2"])
def test_hosts_that_cannot_be(text, capsys):
    assert race([*OPTIONS, "--hosts", text]) == 2
    assert f"--hosts={text}" in capsys.readouterr().err
