"""The benchmark script at tiny sizes: what it prints, writes and refuses."""

import importlib
import importlib.util
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

SCRIPT = Path(__file__).parents[1] / "experiments" / "benchmark.py"
TINY = ["--rows", "2", "--capacity", "12", "--chunk", "5", "--batch", "3", "--length", "4"]
TINY += ["--image", "4", "--repeats", "3"]


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(SCRIPT.parent))  # as when it is run
    spec = importlib.util.spec_from_file_location("benchmark", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(SCRIPT.parent))


@pytest.fixture(scope="module")
def replay(script):
    return importlib.import_module("benchmarks.replay")


@pytest.fixture(scope="module")
def measuring(script):
    return importlib.import_module("benchmarks.measuring")


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


def test_candidates_hold_and_give_the_same_shapes(replay):
    size = replay.Size(1, rows=2, capacity=12, chunk=5, batch=3, length=4, image=4)
    shapes = {}
    for name, buffer in {"o": replay.our_ring(size), "f": replay.flashbax_buffer(size)}.items():
        counts = jnp.full((1, 1, 2), 5, jnp.int32)
        buffer.adder(counts).run()
        shapes[name] = buffer.sampler().run().obs["image"].shape
    assert shapes == {"o": (1, 4, 3, 4, 4, 3), "f": (1, 3, 4, 4, 4, 3)}
    swapped = replay.flashbax_buffer(size).sampler(lambda x: jnp.swapaxes(x, 0, 1))
    assert swapped.run().obs["image"].shape == shapes["o"]


def test_rounds_alternate_and_the_first_call_stands_apart(measuring, monkeypatch):
    clock, order = iter(range(1000)), []
    monkeypatch.setattr(measuring.time, "perf_counter", lambda: float(next(clock)))

    def candidate(name, pause):
        def run():
            order.append(name)
            for _ in range(pause + 9 * (order.count(name) == 1)):
                next(clock)

        return run

    timings = measuring.measure({"a": candidate("a", 0), "b": candidate("b", 3)}, 3)
    assert "".join(order) == "ab" + "ab" + "ba" + "ab"
    assert timings["a"] == measuring.Timing(10.0, (1.0,) * 3)
    assert timings["b"] == measuring.Timing(13.0, (4.0,) * 3)
    assert timings["b"].figures(timings["a"])["ratio"] == 4


def test_a_ring_too_large_is_cut(replay, monkeypatch):
    size = replay.Size(1, rows=2, capacity=1000, chunk=5, batch=3, length=4, image=4)
    monkeypatch.setattr(replay, "free_bytes", lambda: int(size.bytes() / replay.SHARE) + 1)
    assert size.fitting().capacity == 500
    monkeypatch.setattr(replay, "free_bytes", lambda: 10 * size.bytes())
    assert size.fitting() == size


def test_a_missing_flashbax_is_one_clear_line(script, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "flashbax", None)
    assert script.main(["replay", *TINY]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and "pip install" in said and said.count("\n") == 1


def test_a_further_learner_is_priced(script, tmp_path, capsys):
    file = tmp_path / "sweep.json"
    words = ["--preset", "debug", "--learners", "1", "--cycles", "2", "--decisions", "20"]
    assert script.main(["sweep", *words, "--updates", "2", "--overlap", "--json", str(file)]) == 0
    assert "first cycle" in capsys.readouterr().out
    rows = json.loads(file.read_text())["learners"]
    assert rows["1 overlap"]["updates_per_second"] > 0
    row = rows["1"]
    parts = [row[name] for name in ("environments", "acting", "adding", "updates")]
    assert min(parts) > 0 and sum(parts) <= 1.5 * row["cycle"]
    assert row["frames_per_second"] == pytest.approx(20 * 4 / row["cycle"])
    assert row["updates_per_second"] == pytest.approx(2 / row["updates"])


def test_the_table_of_a_sweep(script):
    module = importlib.import_module("benchmarks.sweep")
    names = (*module.PARTS, "cycle", "frames_per_second", "updates_per_second")
    one = dict.fromkeys(names, 1.0)
    cycles = {1: 2.0, 2: 3.0, 8: 15.0}
    rows = {str(s): one | {"learners": s, "cycle": c} for s, c in cycles.items()}
    last = [line.split()[-1] for line in module.text(rows, module.PRESETS["debug"]).splitlines()]
    assert last[-2:] == ["0.50", "1.00"]  # (3 - 2) / 1 / 2 and (15 - 3) / 6 / 2


def test_no_learners_are_refused(script, capsys):
    assert script.main(["sweep", "--learners", "0"]) == 2
    assert "--learners" in capsys.readouterr().err


def test_estimators_are_compared(script, tmp_path, capsys):
    """A few steps on a few frames: the bound is finite and below that of an untrained model."""
    options = ["--steps", "60", "--seeds", "2", "--frames", "40", "--batch", "20"]
    small = ["--latent.variables", "4", "--latent.classes", "4"]
    assert script.main(["estimators", *options, *small, "--json", str(tmp_path / "e.json")]) == 0
    said = capsys.readouterr().out
    bounds = json.loads((tmp_path / "e.json").read_text())["bounds"]
    assert set(bounds) == {"straight-through", "Gumbel-softmax", "straight-through Gumbel"}
    for name, values in bounds.items():
        assert name in said and np.shape(values) == (2, 2)
        assert np.all(np.isfinite(values)) and np.max(values) < 24 * 24 * np.log(2)
    assert script.main(["estimators", "--steps", "0"]) == 2


def test_standard_errors_are_those_of_a_sample(script):
    error = importlib.import_module("benchmarks.estimators").standard_error
    assert error(np.array([1.0, 2.0, 3.0])) == "0.58" and error(np.ones(1)) == "-"


@pytest.fixture(scope="module")
def count(script):
    return importlib.import_module("benchmarks.counting").count


def test_products_are_counted_by_hand(count):
    a, b = jnp.zeros((3, 5)), jnp.zeros((5, 7))
    assert count(jnp.dot, a, b) == (2 * 3 * 5 * 7, 4 * (15 + 35 + 21))
    batched = count(lambda x, y: jnp.einsum("bij,bjk->bik", x, y), a[None], b[None])
    assert batched.flops == 2 * 3 * 5 * 7
    assert count(lambda x: x + 1.0, a) == (0, 0)


def test_loops_count_as_often_as_they_run(count):
    def loop(x):
        return jax.lax.scan(lambda c, _: (c @ x, None), x, None, length=6)[0]

    square = jnp.zeros((4, 4))
    assert count(loop, square).flops == 6 * 2 * 4**3
    assert count(jax.jit(loop), square).flops == 6 * 2 * 4**3
    # Back through the loop: two products a step beside the one forwards.
    assert count(jax.grad(lambda x: loop(x).sum()), square).flops == 3 * 6 * 2 * 4**3


def test_convolutions_are_counted_without_the_zeros_of_a_dilation(count):
    image, kernel = jnp.zeros((2, 8, 8, 3)), jnp.zeros((4, 4, 3, 5))
    numbers = ("NHWC", "HWIO", "NHWC")

    def strided(x, k):
        return jax.lax.conv_general_dilated(x, k, (2, 2), "VALID", dimension_numbers=numbers)

    assert count(strided, image, kernel).flops == 2 * (2 * 3 * 3 * 5) * (4 * 4 * 3)

    def transposed(x, k):
        pads = [(3, 3)] * 2
        return jax.lax.conv_general_dilated(
            x, k, (1, 1), pads, lhs_dilation=(2, 2), dimension_numbers=numbers
        )

    assert count(transposed, image, kernel).flops == 2 * (2 * 18 * 18 * 5) * (4 * 4 * 3) / 4


def test_the_dearer_branch_counts_and_gradient_rules_do_not_count_twice(count):
    square = jnp.zeros((4, 4))

    def branches(x):
        return jax.lax.cond(x[0, 0] > 0, lambda y: y @ y @ y, lambda y: y @ y, x)

    assert count(branches, square).flops == 2 * 2 * 4**3

    @jax.custom_vjp
    def product(x):
        return x @ x

    product.defvjp(lambda x: (x @ x, x), lambda x, g: (g @ x.T + x.T @ g,))
    assert count(product, square).flops == 2 * 4**3
    assert count(jax.grad(lambda x: product(x).sum()), square).flops == 3 * 2 * 4**3


def test_parts_of_an_update(script, tmp_path, capsys):
    """Every part is timed, costs something, and the whole costs more than its parts."""
    options = ["--preset", "debug", "--repeats", "1", "--no-ddim", "--side", "64"]
    assert script.main(["parts", *options, "--json", str(tmp_path / "p.json")]) == 0
    rows = json.loads((tmp_path / "p.json").read_text())["parts"]
    assert "environment step" in rows and all(row["median_ms"] > 0 for row in rows.values())
    assert rows["update"]["gflop"] > rows["world model, gradient"]["gflop"] > 0
    assert rows["encoder, gradient"]["gflop"] > 1.9 * rows["encoder"]["gflop"]
    said = capsys.readouterr().out
    assert "ceilings: " in said and all(name in said for name in rows)
    assert script.main(["parts", "--agent", "dqn"]) == 2


def test_growth_of_an_update(script, tmp_path, capsys, monkeypatch):
    growth = importlib.import_module("benchmarks.growth")
    monkeypatch.setitem(growth.FACTORS, "learners", (1, 2))
    file, figure = tmp_path / "growth.json", tmp_path / "growth.png"
    words = ["growth", "--preset", "debug", "--axes", "learners", "--repeats", "2"]
    assert script.main([*words, "--figure", str(figure), "--json", str(file)]) == 0
    one, two = json.loads(file.read_text())["axes"]["learners"]
    assert (one["value"], two["value"], two["gflop"]) == (1, 2, 2 * one["gflop"])
    assert 0 < one["ms"] < two["ms"] and one["gflop"] > 0
    assert figure.stat().st_size > 5000 and "slope" in capsys.readouterr().out


def test_sizes_that_growth_varies(script):
    growth = importlib.import_module("benchmarks.growth")
    config = growth.chosen("dreamer_v3", "laptop")
    value, wide, learners = growth.varied(config, "width", 2)
    assert (value, learners, wide.agent.deter, wide.agent.units) == (400, 1, 1024, 400)
    assert growth.varied(config, "batch", 0.5)[1].batch == config.batch // 2
    assert growth.varied(config, "horizon", 2)[1].agent.horizon == 2 * config.agent.horizon
    assert growth.varied(config, "learners", 8)[::2] == (8, 8)
    points = [{"value": 1, "ms": 3.0}, {"value": 2, "ms": 6.0}, {"value": 4, "ms": 6.0}]
    assert growth.slopes(points) == pytest.approx([1.0, 0.0])
    assert "0.00" in growth.text("batch", [point | {"gflop": 1.0} for point in points])


def test_growth_refuses_what_cannot_be(script, capsys):
    assert script.main(["growth", "--agent", "dreamer_v9"]) == 2
    assert script.main(["growth", "--repeats", "0"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and "--agent=dreamer_v9" in said[0] and "--repeats=0" in said[1]


def test_the_race_beside_stocks(script, tmp_path, capsys):
    file = tmp_path / "environment.json"
    words = ["environment", "--decisions", "4", "--repeats", "2", "--json", str(file)]
    assert script.main(words) == 0
    report = json.loads(file.read_text())
    rates = report["decisions_per_second"]
    assert rates["stock"] < rates["ours"] < rates["physics alone"] and report["ratio"] > 1.5
    assert "ours by stock" in capsys.readouterr().out
    assert script.main(["environment", "--repeat", "0"]) == 2
