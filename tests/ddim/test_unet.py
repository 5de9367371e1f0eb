"""The noise network, its training, and its weights as a file."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddim_jax import train
from ddim_jax.config import DEBUG, LAPTOP, PAPER, check, from_dict, to_dict
from ddim_jax.unet import Attention, UNet, UNetConfig, check_sizes, sinusoid
from ddim_jax.weights_file import WeightsError, digest, load_weights, save_weights, template

SMALL = replace(
    DEBUG,
    image=(16, 16, 3),
    unet=UNetConfig(fold=2, channels=(16, 16), blocks=1, attention=(1,), head_dim=8, groups=4),
)


@pytest.fixture(scope="module")
def state():
    return jax.jit(lambda key: train.init(SMALL, key))(jax.random.key(0))


def count(config):
    return sum(leaf.size for leaf in jax.tree.leaves(template(config)))


def test_shapes_and_zero_at_the_start(state):
    x = jax.random.normal(jax.random.key(1), (2, 16, 16, 3))
    y = UNet(SMALL.unet).apply(state.params, x, jnp.array([0, 7]))
    assert y.shape == x.shape and not np.any(y)


@pytest.mark.parametrize("config", [DEBUG, LAPTOP, PAPER], ids=["debug", "laptop", "paper"])
def test_presets_fit_their_images(config):
    unet = UNet(check(config).unet)
    x = jax.ShapeDtypeStruct((2, *config.image), jnp.float32)
    y = jax.eval_shape(unet.apply, template(config), x, jax.ShapeDtypeStruct((2,), jnp.int32))
    assert y.shape == x.shape and y.dtype == x.dtype


def test_sizes_of_the_presets():
    assert 500_000 < count(LAPTOP) < 2_500_000  # a few MB in half precision
    assert 15e6 < count(PAPER) < 60e6


def test_the_step_matters_once_trained(state):
    moved = jax.tree.map(lambda x: x + 0.05, state.params)
    x = jax.random.normal(jax.random.key(1), (1, 16, 16, 3))
    one, other = (UNet(SMALL.unet).apply(moved, x, jnp.array([t])) for t in (0, 40))
    assert np.abs(one - other).max() > 1e-4


def test_attention_sees_the_whole_picture(state):
    moved = jax.tree.map(lambda x: x + 0.05, state.params)
    predict = lambda x: UNet(SMALL.unet).apply(moved, x, jnp.array([3]))  # noqa: E731
    x = jax.random.normal(jax.random.key(1), (1, 16, 16, 3))
    grads = jax.grad(lambda x: jnp.sum(predict(x)[0, 0, 0]))(x)
    assert np.abs(grads[0, -1, -1]).max() > 0


def test_attention_by_hand():
    """Two heads over six places: softmax of scaled products, a part of each head's channels."""
    module = Attention(head_dim=4, groups=2)
    x = jax.random.normal(jax.random.key(1), (1, 2, 3, 8))
    params = module.init(jax.random.key(2), x)["params"]
    first, last = sorted(name for name in params if name.startswith("Linear"))
    kernel = jax.random.normal(jax.random.key(3), (8, 8))
    params = params | {last: {"kernel": kernel, "bias": jnp.zeros(8)}}
    got = module.apply({"params": params}, x)
    places = np.asarray(x, np.float64).reshape(6, 8)
    grouped = places.reshape(6, 2, 4)
    normal = grouped - grouped.mean((0, 2), keepdims=True)
    normal /= np.sqrt(grouped.var((0, 2), keepdims=True) + 1e-6)
    three = normal.reshape(6, 8) @ params[first]["kernel"] + params[first]["bias"]
    query, key, value = np.asarray(three).reshape(6, 3, 2, 4).swapaxes(0, 1)
    seen = np.zeros((6, 2, 4))
    for head in range(2):
        for place in range(6):
            weights = np.exp(key[:, head] @ query[place, head] / 2.0)
            seen[place, head] = weights / weights.sum() @ value[:, head]
    want = places + seen.reshape(6, 8) @ kernel
    np.testing.assert_allclose(got[0].reshape(6, 8), want, atol=1e-4)


def test_held_out_pictures_have_the_loss_that_training_lessens(state):
    config, key = replace(SMALL, output="image"), jax.random.key(3)
    images = jax.random.randint(jax.random.key(2), (4, 16, 16, 3), 0, 256).astype(jnp.uint8)
    held = float(train.held_out_loss(config, state.params, images, key))
    trained = jax.jit(train.train_step, static_argnums=0)(config, state, images, key)[1]
    assert held == pytest.approx(float(trained["loss"]), rel=1e-5)
    assert held != pytest.approx(float(train.held_out_loss(SMALL, state.params, images, key)))


def test_every_parameter_has_a_gradient(state):
    moved = jax.tree.map(lambda x: x + 0.02, state.params)
    images = jax.random.randint(jax.random.key(2), (4, 16, 16, 3), 0, 256).astype(jnp.uint8)
    held = lambda p: train.held_out_loss(SMALL, p, images, jax.random.key(3))  # noqa: E731
    norms = jax.tree.map(lambda g: float(jnp.abs(g).max()), jax.grad(held)(moved))
    flat = jax.tree_util.tree_flatten_with_path(norms)[0]
    dead = [jax.tree_util.keystr(path) for path, norm in flat if norm == 0]
    assert not dead


def test_sinusoid_by_hand():
    got = sinusoid(jnp.array([0, 2]), 4)  # frequencies 1 and 1/100
    want = [[0, 0, 1, 1], [np.sin(2), np.sin(0.02), np.cos(2), np.cos(0.02)]]
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_overfits_a_handful_of_images():
    data = np.zeros((3, 8, 8, 3), np.uint8)
    data[0, :4], data[1, :, :4, 0], data[2, 2:6, 2:6] = 255, 255, (0, 255, 128)
    data, key = jnp.asarray(data), jax.random.key(1)
    unet = UNetConfig(fold=4, channels=(32,), blocks=1, attention=(), head_dim=8, groups=4)
    config = replace(SMALL, image=(8, 8, 3), output="image", batch=24, lr=3e-3, ema=0.98, unet=unet)
    state = jax.jit(lambda key: train.init(config, key))(jax.random.key(0))
    fast = {"xla_backend_optimization_level": 3}  # the tests' programs are slow at this
    step = train.train_on.lower(config, state, data, key).compile(compiler_options=fast)
    losses = []
    for _ in range(200):
        state, metrics = step(state, data, key)
        losses.append(float(metrics["loss"]))
    assert np.mean(losses[-20:]) < 0.3 * np.mean(losses[:3])
    made = train.generate_jit(state.ema, jax.random.key(2), 8, config=config, steps=25)
    gaps = np.abs(np.asarray(made, float)[:, None] - np.asarray(data, float)).mean((2, 3, 4))
    assert np.all(gaps.min(1) < 8)  # of 255
    assert len(set(gaps.argmin(1))) > 1  # not always the same one


def test_training_depends_on_key_and_step_alone():
    data = jax.random.randint(jax.random.key(3), (6, 16, 16, 3), 0, 256).astype(jnp.uint8)
    key = jax.random.key(4)

    def after(number, state):
        for _ in range(number):
            state, _ = train.train_on(SMALL, state, data, key)
        return state

    fresh = lambda: jax.jit(lambda k: train.init(SMALL, k))(jax.random.key(0))  # noqa: E731
    at_once, halfway = after(4, fresh()), jax.device_get(after(2, fresh()))
    resumed = after(2, jax.tree.map(jnp.asarray, halfway))
    jax.tree.map(np.testing.assert_array_equal, at_once, resumed)


@pytest.mark.parametrize("value", [np.nan, np.inf, -1e5])
@pytest.mark.parametrize("part", ["params", "ema", "opt"])
def test_one_bad_number_makes_a_state_unusable(state, part, value):
    def harmed(leaf):
        whole = np.issubdtype(leaf.dtype, np.integer)
        return leaf if whole else leaf.at[(0,) * leaf.ndim].set(value)

    assert train.usable(state)
    bad = state._replace(**{part: jax.tree.map(harmed, getattr(state, part))})
    # moments are not kept in half precision
    assert bool(train.usable(bad)) == (part == "opt" and bool(np.isfinite(value)))


def test_generation_is_decided_by_its_key(state):
    draw = lambda key: train.generate_jit(  # noqa: E731
        state.params, jax.random.key(key), 2, config=SMALL, steps=3
    )
    assert np.array_equal(draw(0), draw(0)) and not np.array_equal(draw(0), draw(1))
    assert draw(0).shape == (2, 16, 16, 3) and draw(0).dtype == jnp.uint8


def test_average_follows_the_weights():
    config = replace(SMALL, ema=0.5)
    state = jax.jit(lambda key: train.init(config, key))(jax.random.key(0))
    old = jax.device_get(state.params)
    data = jnp.zeros((4, 16, 16, 3), jnp.uint8)
    new, _ = train.train_on(config, state, data, jax.random.key(1))
    # the first step keeps min(0.5, 1 / 10) of the old
    want = jax.tree.map(lambda o, n: 0.1 * o + 0.9 * n, old, new.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), new.ema, want)


def test_weights_file_round_trip(tmp_path, state):
    path = tmp_path / "w.npz"
    save_weights(path, SMALL, state.params)
    config, params = load_weights(path)
    assert config == SMALL
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6)  # noqa: E731
    jax.tree.map(close, params, jax.device_get(state.params))
    assert digest(params) == digest(load_weights(path)[1]) != digest(state.params)
    with np.load(path, allow_pickle=False) as file:
        assert json.loads(str(file["config.json"]))["noise_steps"] == 50


@pytest.mark.parametrize("harm", ["missing", "damaged", "other", "shape", "foreign"])
def test_bad_weights_are_named(tmp_path, state, harm):
    path = tmp_path / "w.npz"
    save_weights(path, SMALL, state.params)
    if harm == "missing":
        path.unlink()
    elif harm == "damaged":
        path.write_bytes(path.read_bytes()[:500])
    elif harm == "foreign":
        np.savez(path, x=np.zeros(3))
    else:
        other = replace(SMALL, unet=replace(SMALL.unet, channels=(24, 24)))
        other = other if harm == "shape" else replace(SMALL, unet=replace(SMALL.unet, blocks=2))
        save_weights(path, other, state.params)
    with pytest.raises(WeightsError, match=r"w\.npz"):
        load_weights(path)


def test_config_survives_json():
    for config in (DEBUG, LAPTOP, PAPER):
        assert from_dict(json.loads(json.dumps(to_dict(config)))) == config


@pytest.mark.parametrize(
    ("unet", "word"),
    [
        (UNetConfig(fold=5), "multiples of"),
        (UNetConfig(channels=(32,) * 7), "multiples of"),
        (UNetConfig(channels=(20, 20)), "groups"),
        (UNetConfig(channels=()), "empty"),
        (UNetConfig(blocks=0), "below 1"),
        (UNetConfig(groups=0), "groups=0"),
        (UNetConfig(head_dim=0), "head_dim=0"),
        (UNetConfig(groups=-32), "groups=-32"),
        (UNetConfig(channels=(0, 0)), "1 or more"),
    ],
)
def test_networks_that_do_not_fit_are_refused(unet, word):
    with pytest.raises(ValueError, match=word):
        check_sizes(unet, (96, 96, 3))


@pytest.mark.parametrize(
    "change", [{"noise_steps": 0}, {"batch": 0}, {"lr": 0.0}, {"ema": 1.0}, {"clip": 0.0}]
)
def test_impossible_settings_are_named(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        check(replace(SMALL, **change))
