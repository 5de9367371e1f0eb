"""Alignment layer and discriminator: losses by hand, where gradients go, and that it works."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer_jax.alignment import alignment_loss, discriminator_loss, make_alignment

SIZE = 6
PARTS = make_alignment(SIZE, 8, (16, 8), 1e-3, 1e-2, 1e-8, 100.0)  # the judge must be quicker
update = jax.jit(PARTS.update)


@pytest.fixture(scope="module")
def state():
    return PARTS.init(jax.random.key(0))


def sets(seed=0, number=64, gap=2.0):
    rng = np.random.default_rng(seed)
    real = rng.normal(0, 1, (number, SIZE)).astype(np.float32)
    return jnp.asarray(real), jnp.asarray(rng.normal(gap, 1, (number, SIZE)).astype(np.float32))


def test_losses_by_hand():
    # D = sigmoid(logit): real at 1/4, generated at 3/4 -> both halves -log(3/4)
    quarter, three = -np.log(3.0), np.log(3.0)
    loss = discriminator_loss(jnp.array([quarter]), jnp.array([three]))
    np.testing.assert_allclose(loss, -np.log(0.75), rtol=1e-6)
    # the layer wants D near 0: -log(1 - 3/4)
    np.testing.assert_allclose(alignment_loss(jnp.array([three])), np.log(4.0), rtol=1e-6)


def test_chance_is_log_two():
    zero = jnp.zeros(5)
    np.testing.assert_allclose(discriminator_loss(zero, zero), np.log(2), rtol=1e-6)


def test_the_layer_is_the_identity_at_first(state):
    real, _ = sets()
    assert np.array_equal(PARTS.apply(state, real), real)


def test_the_layer_adds_to_its_input(state):
    moved = state._replace(align=jax.tree.map(lambda x: x + 0.1, state.align))
    real, _ = sets()
    far = PARTS.apply(moved, real + 100.0) - (real + 100.0)
    assert 0 < np.abs(far).max() < 10  # delta is bounded by its LayerNorm, the skip is not


def test_an_update_moves_both_networks(state):
    new, metrics = update(state, *sets())
    for old, moved in ((state.align, new.align), (state.discriminator, new.discriminator)):
        pairs = zip(jax.tree.leaves(old), jax.tree.leaves(moved), strict=True)
        assert any(not np.array_equal(a, b) for a, b in pairs)
    assert all(np.isfinite(value) for value in metrics.values())


def test_no_gradient_leaves_the_update(state):
    def losses(real, generated):
        _, metrics = PARTS.update(state, real, generated)
        return metrics["loss/discriminator"] + metrics["loss/alignment"]

    for grad in jax.grad(losses, argnums=(0, 1))(*sets()):
        assert not np.any(grad)


def test_each_loss_moves_its_own_network_only(state):
    """The discriminator takes one Adam step on its loss: as if the layer were a constant."""
    real, generated = sets()
    slow = make_alignment(SIZE, 8, (16, 8), 1e-9, 1e-2, 1e-8, 100.0)
    one, _ = update(state, real, generated)
    other, _ = slow.update(state, real, generated)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)  # noqa: E731
    jax.tree.map(close, one.discriminator, other.discriminator)


def test_the_discriminator_learns_which_is_which(state):
    """With a layer that hardly moves it gets everything right; real is 0, generated 1."""
    slow = make_alignment(SIZE, 8, (16, 8), 1e-9, 1e-2, 1e-8, 100.0)
    step, current = jax.jit(slow.update), slow.init(jax.random.key(0))
    for seed in range(200):
        current, metrics = step(current, *sets(seed))
    assert float(metrics["alignment/accuracy"]) > 0.95
    real, generated = sets(999)
    assert np.mean(slow.score(current, real)) < 0.2 < 0.8 < np.mean(slow.score(current, generated))


def test_the_layer_brings_generated_embeddings_to_the_real_ones(state):
    current = state
    _, before = update(state, *sets(1000))
    for seed in range(500):
        current, metrics = update(current, *sets(seed))
    assert float(before["alignment/distance_before"]) > 1.7
    assert float(metrics["alignment/distance_after"]) < 0.4
    assert float(metrics["alignment/accuracy"]) < 0.85


def test_distance_by_hand(state):
    # entry 0: mean gap 2, deviation 1; the others are constant and equal
    real = jnp.zeros((2, SIZE)).at[:, 0].set(jnp.array([-1.0, 1.0]))
    generated = jnp.zeros((2, SIZE)).at[:, 0].set(jnp.array([1.0, 3.0]))
    _, metrics = update(state, real, generated)
    np.testing.assert_allclose(metrics["alignment/distance_before"], 2 / np.sqrt(SIZE), rtol=1e-5)
