"""How an update's cost grows with each of its sizes, and its cost at a size others time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from benchmarks.counting import count
from benchmarks.measuring import machine, measure, save
from benchmarks.workload import RACE, chosen, need_positive, records
from dreamer_jax.training.arms import make_agent
from dreamer_jax.training.config import RunConfig
from dreamer_jax.training.devices import mapping
from dreamer_jax.types import Spec

SMALL = Spec({"image": ((64, 64, 3), "uint8")}, 2)
FACTORS = {
    "learners": (1, 2, 4, 8),
    "batch": (0.5, 1, 2, 4),
    "length": (0.5, 1, 2, 4),
    "horizon": (0.33, 1, 2, 4),
    "width": (0.5, 1, 2, 4),
}
WIDTHS = ("deter", "hidden", "head", "units")
Axis = Literal["learners", "batch", "length", "horizon", "width"]


def growth(
    preset: Literal["debug", "laptop", "paper"] = "laptop",
    agent: str = "dlc_v1",
    axes: tuple[Axis, ...] = tuple(FACTORS),
    repeats: int = 5,
    figure: Path | None = None,
    out: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
) -> None:
    """Time of an update against learners, batch, length, horizon and width, one varied at a time.

    Args:
        preset: what is varied.
        agent: whose.
        axes: what to vary.
        repeats: rounds over all values of an axis; figures are medians.
        figure: PNG to draw.
        out: file for all figures.
    """
    need_positive(repeats=repeats)
    config = chosen(agent, preset)
    rows = {axis: along(config, axis, repeats) for axis in axes}
    for axis, points in rows.items():
        print(text(axis, points))
    if figure is not None:
        draw(rows, f"{agent}, {preset}", figure)
    report = {"benchmark": "growth", "machine": machine(), "preset": preset, "agent": agent}
    save(report | {"repeats": repeats, "axes": rows}, out)


def peers(
    repeats: int = 5,
    batches: tuple[tuple[int, int], ...] = ((8, 32), (16, 64)),
    out: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
) -> None:
    """One update of DreamerV3 with 12M parameters on 64 x 64 images, horizon 15, float32.

    Args:
        repeats: rounds; figures are medians.
        batches: sequences and their length.
        out: file for all figures.
    """
    need_positive(repeats=repeats)
    paper = chosen("dreamer_v3", "paper")
    calls, rows = {}, {}
    for batch, length in batches:
        name = f"{batch} x {length}"
        config = replace(paper, batch=batch, length=length)
        function, args = call(config, SMALL)
        calls[name] = partial(jax.jit(function), *args)
        rows[name] = {"gflop": gflop(config, SMALL)}
    side = jnp.ones((2048, 2048))
    calls["product"] = partial(jax.jit(jnp.dot), side, side)
    timings = measure(calls, repeats)
    rate = 2 * 2.048**3 / float(np.median(timings["product"].rounds))
    print(f"ceiling: {rate:.0f} GFLOP/s")
    for name, row in rows.items():
        row["seconds"] = float(np.median(timings[name].rounds))
        row["first_call_s"] = timings[name].first
        reached = row["gflop"] / row["seconds"]
        print(
            f"{name:8} {row['seconds']:7.2f} s an update, {row['gflop']:7.0f} GFLOP, "
            f"{reached:5.0f} GFLOP/s, {reached / rate:.0%} of the ceiling"
        )
    report = {"benchmark": "peers", "machine": machine(), "repeats": repeats, "ceiling": rate}
    save(report | {"batches": rows}, out)


def call(config: RunConfig, spec: Spec, learners: int = 1) -> tuple[Callable, tuple]:
    """An update of so many learners, as the loop runs them, and its arguments."""
    agent = make_agent(config, spec)
    each = mapping()
    keys = jax.vmap(jax.random.key)(jnp.arange(learners))
    init = each(agent.init, in_axes=(0,), out_axes=agent.axes)
    state = jax.jit(init)(keys)
    update = each(
        lambda *args: agent.update(*args)[0],
        in_axes=(agent.axes, 0, 0),
        out_axes=agent.axes,
    )
    batch = records(spec, config.length, config.batch, agent=agent)
    batch = jax.tree.map(lambda x: jnp.broadcast_to(x, (learners, *x.shape)), batch)
    return update, (state, batch, keys)


def gflop(config: RunConfig, spec: Spec) -> float:
    """Of one learner's update."""
    agent, key = make_agent(config, spec), jax.random.key(0)
    state = jax.eval_shape(agent.init, key)
    batch = records(spec, config.length, config.batch, agent=agent)
    return count(agent.update, state, batch, key).flops / 1e9


def varied(config: RunConfig, axis: str, factor: float) -> tuple[int, RunConfig, int]:
    """(value, settings, learners) with one size times a factor."""
    agent = config.agent
    if axis == "learners":
        return int(factor), config, int(factor)
    if axis in ("batch", "length"):
        value = max(2, round(factor * getattr(config, axis)))
        return value, replace(config, **{axis: value}), 1
    if axis == "horizon":
        value = max(1, round(factor * agent.horizon))
        return value, replace(config, agent=replace(agent, horizon=value)), 1
    sizes = {
        name: max(8, 8 * round(factor * getattr(agent, name) / 8))
        for name in WIDTHS
        if hasattr(agent, name)
    }
    return sizes["hidden"], replace(config, agent=replace(agent, **sizes)), 1


def along(config: RunConfig, axis: str, repeats: int) -> list[dict[str, float]]:
    """Time of the update for each value on the axis."""
    points, calls = [], {}
    for factor in FACTORS[axis]:
        value, settings, learners = varied(config, axis, factor)
        function, args = call(settings, RACE, learners)
        calls[str(value)] = partial(jax.jit(function), *args)
        points.append({"value": value, "gflop": learners * gflop(settings, RACE)})
    timings = measure(calls, repeats)
    for point in points:
        point["ms"] = 1e3 * float(np.median(timings[str(point["value"])].rounds))
    return points


def slopes(points: list[dict[str, float]]) -> list[float]:
    """Between neighbours, of log time over log value: 1 is proportional, 0 is free."""
    value, ms = (np.log([point[name] for point in points]) for name in ("value", "ms"))
    return (np.diff(ms) / np.diff(value)).tolist()


def text(axis: str, points: list[dict[str, float]]) -> str:
    """A table."""
    lines = [f"{axis:>10}{'ms':>10}{'GFLOP':>10}{'GFLOP/s':>10}{'slope':>8}"]
    for point, slope in zip(points, [None, *slopes(points)], strict=True):
        rate = point["gflop"] / point["ms"] * 1e3
        line = f"{point['value']:10}{point['ms']:10.1f}{point['gflop']:10.2f}{rate:10.0f}"
        lines.append(line + ("" if slope is None else f"{slope:8.2f}"))
    return "\n".join(lines)


def draw(rows: dict[str, list[dict[str, float]]], title: str, path: Path) -> None:
    """Time against each size, beside proportional growth."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(rows), figsize=(3.2 * len(rows), 3.2), squeeze=False)
    for panel, (axis, points) in zip(panels[0], rows.items(), strict=True):
        value = np.array([point["value"] for point in points], float)
        ms = np.array([point["ms"] for point in points])
        panel.loglog(value, ms, "o-", label="measured")
        panel.loglog(value, ms[-1] * value / value[-1], ":", color="gray", label="proportional")
        panel.set_xticks(value, [f"{v:g}" for v in value])
        panel.minorticks_off()
        panel.set_xlabel(axis)
        panel.grid(alpha=0.3)
    panels[0][0].set_ylabel("ms an update")
    panels[0][0].legend()
    figure.suptitle(title)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
