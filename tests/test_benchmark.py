"""The benchmark script at tiny sizes: what it prints, writes and refuses."""

import importlib.util
import json
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest

SCRIPT = Path(__file__).parents[1] / "experiments" / "benchmark.py"
TINY = ["--rows", "2", "--capacity", "12", "--chunk", "5", "--batch", "3", "--length", "4"]
TINY += ["--image", "4", "--repeats", "3"]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("benchmark", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["benchmark"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    yield module
    del sys.modules["benchmark"]


def test_replay_prints_a_table_and_writes_all_figures(script, tmp_path, capsys):
    file = tmp_path / "new" / "replay.json"
    assert script.main(["replay", *TINY, "--learners", "2", "--json", str(file)]) == 0
    text = capsys.readouterr().out
    report = json.loads(file.read_text())
    assert report["machine"]["cores"] > 0 and set(report["sizes"]) == {"laptop", "paper"}
    for preset, size in report["sizes"].items():
        assert preset in text and size["size"]["capacity"] == 12 and size["size"]["learners"] == 2
        for part in ("add", "sample"):
            assert size[part]["flashbax"]["ratio"] == 1 and len(size[part]) == 3
            for name, row in size[part].items():
                assert name in text and len(row["rounds_ms"]) == 3
                assert row["first_call_ms"] > row["median_ms"] > 0 and row["extra_mib"] >= 0


def test_candidates_hold_and_give_the_same_shapes(script):
    size = script.Size(1, rows=2, capacity=12, chunk=5, batch=3, length=4, image=4)
    shapes = {}
    for name, buffer in {"o": script.our_ring(size), "f": script.flashbax_buffer(size)}.items():
        counts = jnp.full((1, 1, 2), 5, jnp.int32)
        buffer.adder(counts).run()
        shapes[name] = buffer.sampler().run().image.shape
    assert shapes == {"o": (1, 4, 3, 4, 4, 3), "f": (1, 3, 4, 4, 4, 3)}
    swapped = script.flashbax_buffer(size).sampler(lambda x: jnp.swapaxes(x, 0, 1))
    assert swapped.run().image.shape == shapes["o"]


def test_rounds_alternate_and_the_first_call_stands_apart(script, monkeypatch):
    clock, order = iter(range(1000)), []
    monkeypatch.setattr(script.time, "perf_counter", lambda: float(next(clock)))

    def candidate(name, pause):
        def run():
            order.append(name)
            for _ in range(pause + 9 * (order.count(name) == 1)):
                next(clock)

        return run

    timings = script.measure({"a": candidate("a", 0), "b": candidate("b", 3)}, 3)
    assert "".join(order) == "ab" + "ab" + "ba" + "ab"
    assert timings["a"] == script.Timing(10.0, (1.0,) * 3)
    assert timings["b"] == script.Timing(13.0, (4.0,) * 3)
    assert timings["b"].figures(timings["a"])["ratio"] == 4


def test_a_ring_too_large_is_cut(script, monkeypatch):
    size = script.Size(1, rows=2, capacity=1000, chunk=5, batch=3, length=4, image=4)
    monkeypatch.setattr(script, "free_bytes", lambda: int(size.bytes() / script.SHARE) + 1)
    assert size.fitting().capacity == 500
    monkeypatch.setattr(script, "free_bytes", lambda: 10 * size.bytes())
    assert size.fitting() == size


def test_a_missing_flashbax_is_one_clear_line(script, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "flashbax", None)
    assert script.main(["replay", *TINY]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and "pip install" in said and said.count("\n") == 1
