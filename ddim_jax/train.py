"""Training of the noise network as pure functions over an explicit state."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ddim_jax.config import DDIMConfig
from ddim_jax.losses import Predict, from_image, image_loss, noise_prediction_loss
from ddim_jax.process import to_bytes, to_signed
from ddim_jax.sampler import ddim_sample
from ddim_jax.schedules import SCHEDULES, Schedule
from ddim_jax.unet import UNet

Params = Any


class DDIMState(NamedTuple):
    """What training carries on; `ema` are the weights to sample with."""

    params: Params
    ema: Params
    opt: optax.OptState
    step: jax.Array  # int32 []


def optimiser(config: DDIMConfig) -> optax.GradientTransformation:
    """Adam with a clipped global norm and a linear warm-up."""
    rate = optax.linear_schedule(config.lr / (config.warmup + 1), config.lr, config.warmup)
    return optax.chain(optax.clip_by_global_norm(config.clip), optax.adam(rate))


LOSSES = {"noise": noise_prediction_loss, "image": image_loss}


def noise_network(config: DDIMConfig, params: Params) -> tuple[Predict, Schedule]:
    """What predicts the noise in x_t, whatever the network's own output is, and the schedule."""
    schedule = SCHEDULES[config.schedule](config.noise_steps)
    net = partial(UNet(config.unet).apply, params)
    return (net if config.output == "noise" else from_image(net, schedule)), schedule


def init(config: DDIMConfig, key: jax.Array) -> DDIMState:
    """Fresh weights; the average starts as a copy of them."""
    image = jnp.zeros((1, *config.image))
    params = UNet(config.unet).init(key, image, jnp.zeros((1,), jnp.int32))
    opt = optimiser(config).init(params)
    return DDIMState(params, jax.tree.map(jnp.copy, params), opt, jnp.zeros((), jnp.int32))


@jax.jit
def usable(state: DDIMState) -> jax.Array:
    """Bool []: all of it is finite, and the weights in half precision too, in which they ship."""
    limit = jnp.finfo(jnp.float16).max
    weights = [jnp.all(jnp.abs(x) <= limit) for x in jax.tree.leaves((state.params, state.ema))]
    rest = [jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(state.opt)]
    return jnp.all(jnp.stack(weights + rest))


def loss_of(config: DDIMConfig, params: Params, images: jax.Array, key: jax.Array) -> jax.Array:
    """What training lessens, on images uint8 [B, H, W, C]: float32 []."""
    net = partial(UNet(config.unet).apply, params)
    schedule = SCHEDULES[config.schedule](config.noise_steps)
    return LOSSES[config.output](net, schedule, to_signed(images), key)


held_out_loss = jax.jit(loss_of, static_argnames="config")  # on images that training never sees


def train_step(
    config: DDIMConfig, state: DDIMState, images: jax.Array, key: jax.Array
) -> tuple[DDIMState, dict[str, jax.Array]]:
    """One step on images uint8 [B, H, W, C]."""
    loss, grads = jax.value_and_grad(loss_of, argnums=1)(config, state.params, images, key)
    updates, opt = optimiser(config).update(grads, state.opt, state.params)
    params = optax.apply_updates(state.params, updates)
    # A young average must forget the random weights it began with.
    decay = jnp.minimum(config.ema, (1.0 + state.step) / (10.0 + state.step))
    ema = jax.tree.map(lambda e, p: decay * e + (1.0 - decay) * p, state.ema, params)
    metrics = {"loss": loss, "grad_norm": optax.global_norm(grads)}
    return DDIMState(params, ema, opt, state.step + 1), metrics


@partial(jax.jit, static_argnames="config", donate_argnums=1)
def train_on(
    config: DDIMConfig, state: DDIMState, data: jax.Array, key: jax.Array
) -> tuple[DDIMState, dict[str, jax.Array]]:
    """One step on random pictures of data uint8 [n, H, W, C]. Donates the state.

    What is drawn depends on `key` and `state.step` alone, so training can stop anywhere. (A scan
    over several steps is no faster: XLA's CPU backend runs convolutions in loops slowly.)
    """
    key_data, key_step = jax.random.split(jax.random.fold_in(key, state.step))
    index = jax.random.randint(key_data, (config.batch,), 0, data.shape[0])
    return train_step(config, state, data[index], key_step)


def generate(
    params: Params,
    key: jax.Array,
    number: int,
    *,
    config: DDIMConfig,
    steps: int,
    eta: float = 0.0,
) -> jax.Array:
    """`number` pictures uint8 [number, H, W, C] by DDIM sampling; the same for the same key."""
    predict, schedule = noise_network(config, params)
    key_start, key_way = jax.random.split(key)
    start = jax.random.normal(key_start, (number, *config.image))
    return to_bytes(ddim_sample(predict, schedule, start, key_way, steps, eta))


generate_jit = jax.jit(generate, static_argnames=("number", "config", "steps", "eta"))
