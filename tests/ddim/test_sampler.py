"""Schedules, the forward process, the loss and the sampler: values by hand and identities."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddim_jax.losses import from_image, image_loss, noise_prediction_loss, noised
from ddim_jax.process import predict_x0, q_sample, to_bytes, to_signed
from ddim_jax.sampler import ddim_sample, timesteps
from ddim_jax.schedules import Schedule, cosine, from_betas, linear

SHAPE = (3, 4, 4, 3)


def images(seed=0, shape=SHAPE):
    return jnp.asarray(np.random.default_rng(seed).uniform(-1, 1, shape), jnp.float32)


def oracle(schedule, x0):
    """The noise in x_t if the image behind it is x0."""

    def predict(x, t):
        level = schedule.alpha_bar[t].reshape(-1, 1, 1, 1)
        return (x - jnp.sqrt(level) * x0) / jnp.sqrt(1 - level)

    return predict


def test_schedule_from_betas_by_hand():
    # 1 - 0.1 = 0.9; 0.9 * 0.8 = 0.72; 0.72 * 0.5 = 0.36
    np.testing.assert_allclose(from_betas([0.1, 0.2, 0.5]).alpha_bar, [0.9, 0.72, 0.36], rtol=1e-6)


def test_linear_schedule_of_1000_steps_is_the_published_one():
    schedule = linear(1000)
    # beta_0 = 1e-4, beta_1 = 1e-4 + 0.0199 / 999
    np.testing.assert_allclose(schedule.alpha_bar[0], 1 - 1e-4, rtol=1e-6)
    second = (1 - 1e-4) * (1 - 1e-4 - 0.0199 / 999)
    np.testing.assert_allclose(schedule.alpha_bar[1], second, rtol=1e-6)
    # the sum of log(1 - beta) over the line, by the midpoint rule: about exp(-10.1)
    np.testing.assert_allclose(schedule.alpha_bar[-1], 4.04e-5, rtol=1e-2)


@pytest.mark.parametrize("make", [linear, cosine])
@pytest.mark.parametrize("steps", [10, 50, 1000])
def test_levels_fall_from_nearly_one_to_nearly_zero(make, steps):
    level = np.asarray(make(steps).alpha_bar)
    assert level.shape == (steps,) and np.all(level > 0) and np.all(np.diff(level) < 0)
    assert level[-1] < 0.01 and (steps < 50 or level[0] > 0.97)


def test_cosine_schedule_by_hand():
    # two steps: level(u) = cos^2((u + s) / (1 + s) * pi / 2); level(1/2) / level(0)
    half = np.cos(0.508 / 1.008 * np.pi / 2) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(cosine(2).alpha_bar, [half, half * 0.001], rtol=1e-4)


@pytest.mark.parametrize("make", [linear, cosine])
def test_no_steps_are_refused(make):
    with pytest.raises(ValueError, match="1 step or more"):
        make(0)


def test_moments_of_the_forward_process():
    schedule, t = linear(1000), jnp.full(4000, 300)
    x0 = jnp.broadcast_to(jnp.array([0.8, -0.5]), (4000, 2))
    noise = jax.random.normal(jax.random.key(0), x0.shape)
    x = np.asarray(q_sample(schedule, x0, t, noise))
    level = float(schedule.alpha_bar[300])
    np.testing.assert_allclose(x.mean(0), np.sqrt(level) * np.array([0.8, -0.5]), atol=0.04)
    np.testing.assert_allclose(x.var(0), 1 - level, rtol=0.08)


def test_each_image_has_its_own_step():
    schedule = from_betas([0.36, 0.75])  # levels 0.64 and 0.16
    x0, noise = jnp.ones((2, 1, 1, 1)), jnp.full((2, 1, 1, 1), 2.0)
    x = q_sample(schedule, x0, jnp.array([0, 1]), noise).ravel()
    np.testing.assert_allclose(x, [0.8 + 0.6 * 2, 0.4 + np.sqrt(0.84) * 2], rtol=1e-6)


def test_predict_x0_is_the_inverse():
    schedule, t = cosine(100), jnp.array([3, 50, 90])
    noise = jax.random.normal(jax.random.key(1), SHAPE)
    back = predict_x0(schedule, q_sample(schedule, images(), t, noise), t, noise)
    np.testing.assert_allclose(back, images(), atol=2e-5)


def test_bytes_survive_the_scaling():
    every = jnp.arange(256, dtype=jnp.uint8).reshape(1, 16, 16, 1)
    assert np.array_equal(to_bytes(to_signed(every)), every)
    assert to_bytes(jnp.array([-3.0, 3.0])).tolist() == [0, 255]


def test_timesteps():
    assert timesteps(1000, 1000).tolist() == list(range(999, -1, -1))
    assert timesteps(1000, 3).tolist() == [999, 500, 0]
    assert timesteps(1000, 1).tolist() == [999]
    for steps in (0, 1001, -1):
        with pytest.raises(ValueError, match="use 1 to 1000"):
            timesteps(1000, steps)


@pytest.mark.parametrize("steps", [1, 2, 7, 50])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_an_oracle_leads_back_to_the_image(steps, eta):
    schedule = linear(50)
    start = jax.random.normal(jax.random.key(2), SHAPE)
    x = ddim_sample(oracle(schedule, images()), schedule, start, jax.random.key(3), steps, eta)
    np.testing.assert_allclose(x, images(), atol=1e-3)


@pytest.mark.parametrize(
    ("schedule", "steps"),
    [(cosine(1000), 2), (cosine(1000), 3), (cosine(200), 3), (linear(300), 2)],
)
def test_ancestral_sampling_stays_finite_in_few_steps(schedule, steps):
    """Where almost nothing is left of the image, the fresh noise is all the noise there is: what
    remains for the predicted one, in these cases, is less than 0 by rounding."""
    start = jax.random.normal(jax.random.key(2), SHAPE)
    x = ddim_sample(oracle(schedule, images()), schedule, start, jax.random.key(3), steps, 1.0)
    np.testing.assert_allclose(x, images(), atol=1e-3)


def toy(x, t):
    """A network that is nearly right and listens to the step."""
    error = jnp.tanh(x + 0.01 * t.reshape(-1, 1, 1, 1).astype(jnp.float32))
    return oracle(linear(20), images())(x, jnp.minimum(t, 19)) + 0.1 * error


def test_eta_one_with_all_steps_is_ancestral_sampling():
    schedule, key = linear(20), jax.random.key(4)
    start = jax.random.normal(jax.random.key(5), SHAPE)
    got = ddim_sample(toy, schedule, start, key, 20, 1.0, clip=False)
    # Ho et al. 2020, algorithm 2 with the posterior's variance, in a plain loop
    level = np.asarray(schedule.alpha_bar, np.float64)
    before = np.append(1.0, level[:-1])
    alpha, beta = level / before, 1 - level / before
    x, keys = start, jax.random.split(key, 20)
    for i, t in enumerate(range(19, -1, -1)):
        noise = toy(x, jnp.full(SHAPE[0], t))
        mean = (x - beta[t] / np.sqrt(1 - level[t]) * noise) / np.sqrt(alpha[t])
        spread = np.sqrt(beta[t] * (1 - before[t]) / (1 - level[t]))
        x = mean + spread * jax.random.normal(keys[i], SHAPE)
    np.testing.assert_allclose(got, x, atol=1e-3)


def test_scan_equals_a_plain_loop():
    schedule = linear(20)
    start = jax.random.normal(jax.random.key(6), SHAPE)
    got = ddim_sample(toy, schedule, start, jax.random.key(7), 5)
    x, steps = start, [*timesteps(20, 5), None]
    for t, following in itertools.pairwise(steps):
        noise = toy(x, jnp.full(SHAPE[0], t))
        image = jnp.clip(predict_x0(schedule, x, jnp.full(SHAPE[0], t), noise), -1, 1)
        level = schedule.alpha_bar[t]
        noise = (x - jnp.sqrt(level) * image) / jnp.sqrt(1 - level)
        after = 1.0 if following is None else schedule.alpha_bar[following]
        x = jnp.sqrt(after) * image + jnp.sqrt(1 - after) * noise
    np.testing.assert_allclose(got, x, atol=1e-4)


def test_the_key_decides_and_eta_zero_needs_none():
    schedule, start = linear(20), jax.random.normal(jax.random.key(8), SHAPE)
    draw = lambda key, eta: ddim_sample(toy, schedule, start, jax.random.key(key), 5, eta)  # noqa: E731
    assert np.array_equal(draw(0, 0.0), draw(1, 0.0))
    assert np.array_equal(draw(0, 0.7), draw(0, 0.7))
    assert not np.array_equal(draw(0, 0.7), draw(1, 0.7))


@pytest.mark.parametrize("eta", [-0.1, 1.1])
def test_impossible_eta_is_refused(eta):
    with pytest.raises(ValueError, match="eta"):
        ddim_sample(toy, linear(5), jnp.zeros(SHAPE), jax.random.key(0), 5, eta)


def test_the_loss_of_an_oracle_is_zero_and_of_silence_one():
    schedule, x0 = linear(100), images(shape=(64, 8, 8, 3))
    key = jax.random.key(9)
    perfect = noise_prediction_loss(oracle(schedule, x0), schedule, x0, key)
    silent = noise_prediction_loss(lambda x, t: jnp.zeros_like(x), schedule, x0, key)
    assert float(perfect) < 1e-6
    np.testing.assert_allclose(float(silent), 1.0, atol=0.03)


def test_all_noise_levels_are_drawn_equally_often():
    """2000 draws of 10 levels: 200 each, give or take four standard deviations of 13.4."""
    _, t, _ = noised(linear(10), jnp.zeros((2000, 1, 1, 1)), jax.random.key(11))
    counts = np.bincount(t)
    assert len(counts) == 10 and np.all(np.abs(counts - 200) < 54)


def test_the_network_is_told_the_step_that_was_drawn():
    schedule = Schedule(jnp.array([1.0, 0.5, 0.0]))  # how much is left gives the step away
    x0 = jnp.ones((512, 1, 1, 1)) * 100.0

    def predict(x, t):
        left = jnp.array([100.0, 70.7, 0.0])[t].reshape(-1, 1, 1, 1)
        assert x.shape == x0.shape and t.shape == (512,)
        return x - left + 0 * x

    # told right, all that remains is noise scaled by 0, sqrt(1/2) or 1: small against 100
    loss = noise_prediction_loss(predict, schedule, x0, jax.random.key(10))
    assert float(loss) < 2.0


def test_the_noise_behind_a_given_image():
    schedule, t = linear(100), jnp.array([3, 50, 90])
    noise = jax.random.normal(jax.random.key(1), SHAPE)
    x = q_sample(schedule, images(), t, noise)
    got = from_image(lambda x, t: images(), schedule)(x, t)
    np.testing.assert_allclose(got, noise, atol=2e-4)


def test_image_loss_by_hand():
    # one level, 0.75 of the variance left: error 0.5 everywhere -> 0.25 / 0.25; 0.99 left: the
    # weight stops at 1 / 0.05
    for level, want in ((0.75, 1.0), (0.99, 5.0)):
        schedule = Schedule(jnp.array([level]))
        loss = image_loss(lambda x, t: images() + 0.5, schedule, images(), jax.random.key(0))
        np.testing.assert_allclose(loss, want, rtol=1e-5)


def test_image_loss_is_that_of_velocity():
    """|v - v'|^2 with v = signal * noise - amount * x0 of the true image and of the given one."""
    schedule, x0 = Schedule(jnp.array([0.4])), images()
    guess = images(1)
    t, noise = jnp.zeros(3, int), jax.random.normal(jax.random.key(3), SHAPE)
    x = q_sample(schedule, x0, t, noise)
    implied = from_image(lambda x, t: guess, schedule)(x, t)
    signal, amount = np.sqrt(0.4), np.sqrt(0.6)
    gap = (signal * noise - amount * x0) - (signal * implied - amount * guess)
    loss = image_loss(lambda x, t: guess, schedule, x0, jax.random.key(0))
    np.testing.assert_allclose(np.mean(np.square(gap)), loss, rtol=1e-4)
