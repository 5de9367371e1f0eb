"""Where an update's time goes, and how near each part comes to what the machine can do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from benchmarks.counting import count
from benchmarks.measuring import machine, measure, save
from benchmarks.workload import RACE, chosen, need_positive, records
from ddim_jax.config import PRESETS as DDIM_PRESETS
from ddim_jax.train import generate, init, train_step
from dreamer_jax import replay
from dreamer_jax.agents import dlc_v1
from dreamer_jax.agents.dlc_v1_parts import make_optimisers, make_parts
from dreamer_jax.nn.conv import fold, to_unit
from dreamer_jax.ops.keys import named_key
from dreamer_jax.training.arms import make_agent
from dreamer_jax.training.config import RunConfig
from dreamer_jax.training.devices import mapping
from dreamer_jax.training.environments import streams
from dreamer_jax.training.learner import record_spec
from dreamer_jax.world_models.rssm import initial_state, observe

ADDS = 8
COPIES = 8  # in one call: memory fresh from the system is another matter
Call = tuple[Callable, tuple]  # a function and its arguments


def parts(
    preset: Literal["debug", "laptop", "paper"] = "laptop",
    agent: str = "dlc_v1",
    learners: int = 1,
    precision: Literal["float32", "bfloat16"] = "float32",
    repeats: int = 11,
    pictures: int = 50,
    ddim: bool = True,
    side: int = 2048,
    out: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
) -> None:
    """Time of each part of a learner, its arithmetic, and the share of the machine's ceiling.

    The ceilings are a product of square matrices and a copy, measured in the same rounds. The parts
    of the agent are those of dlc_v1; of the others act and the whole update.

    Args:
        preset: networks, batch and environments.
        agent: whose.
        learners: so many at once, as a run of theirs would map them.
        precision: of its matrix products, in act and the whole update.
        repeats: rounds; figures are medians.
        pictures: generated at once by the diffusion model of the same preset.
        ddim: also the diffusion model.
        side: of the matrices.
        out: file for all figures.
    """
    need_positive(repeats=repeats, learners=learners)
    config = replace(chosen(agent, preset), precision=precision)
    calls = whole(config)
    if agent == "dlc_v1":
        calls |= inner(config)
    costs = {name: count(*flat(call)).times(learners) for name, call in calls.items()}
    if learners > 1:
        calls = {name: mapped(call, learners) for name, call in calls.items()}
    if ddim:
        calls |= diffusion(preset, pictures)
    calls |= ceilings(side)
    compiled = {name: jax.jit(function) for name, (function, _) in calls.items()}
    functions: dict[str, Callable[[], Any]] = {
        name: lambda f=compiled[name], a=args: f(*a) for name, (_, args) in calls.items()
    }
    env = streams(config, [0])
    action = np.zeros((config.envs, RACE.action), np.float32)
    active = np.ones(config.envs, bool)
    env.step(action, active)  # the reset
    try:
        functions["environment step"] = lambda: env.step(action, active).reward
        timings = measure(functions, repeats)
    finally:
        env.close()
    rows = {}
    for name, timing in timings.items():
        row = {"median_ms": 1e3 * float(np.median(timing.rounds)), "first_call_s": timing.first}
        if name in calls:
            cost = costs.get(name) or count(*flat(calls[name]))
            memory = compiled[name].lower(*calls[name][1]).compile().memory_analysis()
            row |= {"gflop": cost.flops / 1e9, "gbyte": cost.bytes / 1e9}
            row["extra_mib"] = memory.temp_size_in_bytes / 2**20
        rows[name] = row
    copy = rows["ceiling: copy"]
    copy["gbyte"] = COPIES * 2 * 4 * side * side * 4 / 1e9
    print(text(rows))
    report = {"benchmark": "parts", "machine": machine(), "preset": preset, "agent": agent}
    report |= {"learners": learners, "precision": precision, "repeats": repeats}
    save(report | {"parts": rows}, out)


def mapped(call: Call, learners: int) -> Call:
    """The same for so many learners: side by side on an accelerator, in turns on a CPU."""
    function, args = call
    stacked = jax.tree.map(lambda x: jnp.broadcast_to(x, (learners, *jnp.shape(x))), args)
    return mapping()(function, in_axes=(0,) * len(args), out_axes=0), stacked


def flat(call: Call) -> tuple:
    """(function, *arguments)"""
    return (call[0], *call[1])


def ceilings(side: int) -> dict[str, Call]:
    """What nothing can be faster than, about."""
    square = jnp.ones((side, side))
    long = jnp.ones((4 * side, side))
    return {
        "ceiling: matrix product": (jnp.dot, (square, square)),
        "ceiling: copy": (partial(jax.lax.fori_loop, 0, COPIES, lambda i, x: x + 1.0), (long,)),
    }


def whole(config: RunConfig) -> dict[str, Call]:
    """What the loop calls."""
    key, agent = jax.random.key(0), make_agent(config, RACE)
    state = jax.jit(agent.init)(key)
    batch = records(RACE, config.length, config.batch, agent=agent)
    obs = jax.tree.map(lambda x: x[0, : config.envs], records(RACE, 1, config.envs).obs)
    first = jnp.zeros(config.envs, bool)

    def act(state, carry, obs):
        return agent.act(state, carry, obs, first, key, "train")

    chunk = records(RACE, config.chunk, config.envs)
    ring = replay.init(record_spec(RACE), config.envs, max(4 * config.chunk, 2 * config.length))
    full = jnp.full(config.envs, config.chunk)
    ring = jax.jit(replay.add)(ring, chunk, full)

    def add(ring, chunk):  # several, in place: the first copies what the loop would be given
        return jax.lax.fori_loop(0, ADDS, lambda i, r: replay.add(r, chunk, full), ring)

    return {
        "act": (act, (state, agent.carry(config.envs), obs)),
        f"add, {ADDS} cycles": (add, (ring, chunk)),
        "sample": (
            lambda ring: replay.sample(ring, key, config.batch, config.length),
            (ring,),
        ),
        "update": (lambda state, batch: agent.update(state, batch, key), (state, batch)),
    }


def inner(config: RunConfig) -> dict[str, Call]:
    """The parts of DLC-V1's update."""
    agent, key = config.agent, jax.random.key(0)
    nets, optimisers = make_parts(agent, RACE), make_optimisers(agent)
    state = jax.jit(make_agent(config, RACE).init)(key)
    batch = records(RACE, config.length, config.batch)
    model, (length, size) = state.model, batch.reward.shape
    image = jax.jit(lambda b: to_unit(fold(b.obs["image"], agent.fold)))(batch)
    image = image.reshape(-1, *image.shape[2:])
    features = jnp.ones((len(image), agent.deter + agent.stoch))
    embed = jnp.ones((length, size, agent.embed))
    start = jax.tree.map(lambda x: x + 0.1, initial_state(nets.rssm, (agent.starts,)))

    def filtered(rssm, embed):
        inputs = (embed, batch.prev_action, batch.is_first, initial_state(nets.rssm, (size,)))
        return observe(nets.rssm, rssm, *inputs, named_key(key, "observe"))[0].features

    def dream(actor, model, start):
        alive = jnp.ones(agent.starts)
        return dlc_v1.Dream(nets, agent, model, state.target, start, alive, key).run(actor)

    def critic(state, features):
        imagined = dlc_v1.actor_critic.Imagined(*(features[..., 0],) * 3)
        return dlc_v1.update_critic(nets, state, optimisers.critic, features, imagined)

    def with_gradient(function):
        return jax.grad(lambda *args: jnp.mean(jnp.square(function(*args))), argnums=(0, 1))

    encode, decode = nets.encoder.apply, nets.decoder.apply
    loss = jax.grad(dlc_v1.world_model_loss, argnums=2, has_aux=True)
    imagined = jnp.ones((agent.horizon, agent.starts, features.shape[-1]))
    return {
        "encoder": (encode, (model["encoder"], image)),
        "encoder, gradient": (with_gradient(encode), (model["encoder"], image)),
        "decoder": (decode, (model["decoder"], features)),
        "decoder, gradient": (with_gradient(decode), (model["decoder"], features)),
        "RSSM observe": (filtered, (model["rssm"], embed)),
        "RSSM observe, gradient": (with_gradient(filtered), (model["rssm"], embed)),
        "world model, gradient": (
            lambda model, batch: loss(nets, agent, model, batch, key),
            (model, batch),
        ),
        "imagination": (dream, (state.actor, model, start)),
        "actor, gradient": (jax.grad(dream, has_aux=True), (state.actor, model, start)),
        "critic, whole step": (critic, (state, imagined)),
        "model's optimiser": (optimisers.model.update, (model, state.model_opt, model)),
    }


def diffusion(preset: str, pictures: int) -> dict[str, Call]:
    """The U-Net's training step and DDIM sampling."""
    config, key = DDIM_PRESETS[preset], jax.random.key(0)
    state = init(config, key)
    images = jnp.zeros((config.batch, *config.image), jnp.uint8)
    steps = min(30, config.noise_steps)
    return {
        "DDIM training step": (
            lambda state, images: train_step(config, state, images, key),
            (state, images),
        ),
        f"DDIM, {pictures} pictures": (
            lambda params: generate(params, key, pictures, config=config, steps=steps),
            (state.ema,),
        ),
    }


def text(rows: dict[str, dict[str, Any]]) -> str:
    """The table."""
    product = rows["ceiling: matrix product"]
    ceiling = product["gflop"] / product["median_ms"] * 1e3
    copy = rows["ceiling: copy"]
    lines = [
        f"ceilings: {ceiling:.0f} GFLOP/s, copy {copy['gbyte'] / copy['median_ms'] * 1e3:.1f} GB/s",
        f"  {'':26}{'median':>12}{'GFLOP':>10}{'GFLOP/s':>10}{'of ceiling':>12}{'GB':>8}"
        f"{'extra MiB':>11}{'compile':>10}",
    ]
    for name, row in rows.items():
        line = f"  {name:26}{row['median_ms']:9.2f} ms"
        if "gflop" in row:
            rate = row["gflop"] / row["median_ms"] * 1e3
            line += f"{row['gflop']:10.2f}{rate:10.0f}{rate / ceiling:12.0%}{row['gbyte']:8.2f}"
            line += f"{row['extra_mib']:11.0f}"
        else:
            line += " " * 51
        lines.append(line + f"{row['first_call_s']:8.1f} s")
    return "\n".join(lines)
