"""The gradient estimators for categorical latents on a small variational autoencoder."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from benchmarks.measuring import machine, save
from ddim_jax.training.frames import TrackPolicy, collect
from dreamer_jax.errors import UserError
from dreamer_jax.nn.blocks import MLP
from dreamer_jax.ops import categorical
from envs.make import MakeEnv

SIDE = 24  # of the pictures
HIDDEN = 200


@dataclass(frozen=True)
class Latent:
    """V variables of K classes, and the temperatures of the Gumbel estimators."""

    variables: int = 20
    classes: int = 10
    hot: float = 1.0
    cold: float = 0.5

    def draws(self, step: jax.Array, steps: int) -> dict[str, Any]:
        """Estimators by name: (key, logits [..., V, K]) -> samples."""
        temperature = categorical.annealed(step, self.hot, self.cold, steps)
        return {
            "straight-through": categorical.straight_through,
            "Gumbel-softmax": partial(categorical.gumbel_softmax, temperature=temperature),
            "straight-through Gumbel": partial(
                categorical.straight_through_gumbel, temperature=temperature
            ),
        }


@dataclass(frozen=True)
class Schedule:
    """Steps of Adam, for several seeds at once."""

    steps: int = 10_000
    seeds: int = 5
    batch: int = 100
    lr: float = 1e-3


LATENT, SCHEDULE = Latent(), Schedule()


def estimators(
    frames: int = 3000,
    schedule: Annotated[Schedule, tyro.conf.arg(name="")] = SCHEDULE,
    latent: Latent = LATENT,
    out: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
) -> None:
    """Negative evidence lower bound after training with each estimator, on held-out pictures.

    Pictures are frames of the race at 24 x 24, of which each pixel is grass or not. The bound
    is taken with one-hot samples for all, whatever was trained with, and with the estimator's own.

    Args:
        frames: to train on; a fifth as many are held out.
        schedule: of the training.
        latent: sizes and temperatures.
        out: file for all figures.
    """
    if min(schedule.steps, schedule.seeds, frames // 5, schedule.batch) < 1:
        raise UserError("--steps, --seeds and --batch must be 1 or more, --frames 5 or more")
    env = MakeEnv("DreamerCarRacing-v3")
    train, test = (
        grass(collect(number, env, TrackPolicy(), 0, held_out))
        for number, held_out in ((frames, False), (frames // 5, True))
    )
    results = {
        name: np.asarray(run(name, jnp.array(train), jnp.array(test), latent, schedule))
        for name in latent.draws(0, 1)
    }
    seeds, steps = schedule.seeds, schedule.steps
    print(f"nats per picture, {seeds} seeds, {steps} steps; mean (standard error)")
    print(f"  {'':26}{'one-hot samples':>20}{'as trained':>20}")
    for name, bounds in results.items():
        cells = [f"{b.mean():.2f} ({standard_error(b)})" for b in bounds.T]
        print(f"  {name:26}{cells[0]:>20}{cells[1]:>20}")
    report = {"benchmark": "estimators", "machine": machine(), "steps": steps, "frames": frames}
    save(report | {"bounds": {n: b.tolist() for n, b in results.items()}}, out)


def standard_error(values: np.ndarray) -> str:
    """Of the mean of independent values [n]; "-" for one."""
    return f"{values.std(ddof=1) / len(values) ** 0.5:.2f}" if len(values) > 1 else "-"


def grass(images: np.ndarray) -> np.ndarray:
    """Where there is grass, as 1, and not road: uint8 [n, 96, 96, 3] -> float32 [n, SIDE * SIDE].

    (Grey values as probabilities would do no good: their own entropy leaves a latent so little to
    say that it falls silent.)
    """
    block = images.shape[1] // SIDE
    x = images.reshape(len(images), SIDE, block, SIDE, block, 3).mean((2, 4))
    green = x[..., 1] - x[..., 0] > 40
    return green.astype(np.float32).reshape(len(images), -1)


def bound(nets, latent: Latent, params, picture: jax.Array, key: jax.Array, draw) -> jax.Array:
    """Negative evidence lower bound of pictures [B, P], in nats: [B]."""
    encoder, decoder = nets
    logits = encoder.apply(params[0], picture - 0.5)
    logits = logits.reshape(-1, latent.variables, latent.classes)
    z = draw(key, logits).reshape(len(picture), -1)
    pixels = optax.sigmoid_binary_cross_entropy(decoder.apply(params[1], z), picture)
    return jnp.sum(pixels, axis=-1) + categorical.kl(logits, jnp.zeros_like(logits))


@partial(jax.jit, static_argnums=(0, 3, 4))
def run(
    name: str, train: jax.Array, test: jax.Array, latent: Latent, schedule: Schedule
) -> jax.Array:
    """[seeds, 2]: the bound on `test` with one-hot samples and with those of the estimator."""
    size, steps = latent.variables * latent.classes, schedule.steps
    nets = (MLP(3, HIDDEN, size), MLP(3, HIDDEN, train.shape[-1]))
    optimiser = optax.adam(schedule.lr)

    def loss(params, picture, key, step):
        draw = latent.draws(step, steps)[name]
        return jnp.mean(bound(nets, latent, params, picture, key, draw))

    def one(seed):
        key = jax.random.key(seed)
        params = (nets[0].init(key, train[:1]), nets[1].init(key, jnp.zeros((1, size))))

        def step(carry, number):
            params, opt = carry
            key_pick, key_draw = jax.random.split(jax.random.fold_in(key, number))
            picture = train[jax.random.randint(key_pick, (schedule.batch,), 0, len(train))]
            grads = jax.grad(loss)(params, picture, key_draw, number)
            updates, opt = optimiser.update(grads, opt)
            return (optax.apply_updates(params, updates), opt), None

        (params, _), _ = jax.lax.scan(step, (params, optimiser.init(params)), jnp.arange(steps))
        hard = bound(nets, latent, params, test, key, categorical.straight_through)
        own = bound(nets, latent, params, test, key, latent.draws(steps, steps)[name])
        return jnp.stack([jnp.mean(hard), jnp.mean(own)])

    return jax.vmap(one)(jnp.arange(schedule.seeds))
