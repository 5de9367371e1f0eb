import jax
import jax.numpy as jnp
import numpy as np

from dreamer_jax.ops.gradients import clip_cotangent


def test_only_the_samples_beyond_the_bound_are_shortened():
    # gradients (3, 4) of norm 5 over two leaves, bound 2: (1.2, 1.6); (0.3, 0.4) stays
    tree = {"a": jnp.zeros((2, 1)), "b": jnp.zeros((2, 1))}
    weight = {"a": jnp.array([[3.0], [0.3]]), "b": jnp.array([[4.0], [0.4]])}

    def loss(tree):
        tree = clip_cotangent(tree, 2.0)
        return sum(jnp.sum(weight[name] * tree[name]) for name in tree)

    grad = jax.grad(loss)(tree)
    np.testing.assert_allclose(grad["a"], [[1.2], [0.3]], rtol=1e-6)
    np.testing.assert_allclose(grad["b"], [[1.6], [0.4]], rtol=1e-6)


def test_the_value_is_untouched_and_zero_gradients_stay_finite():
    x = jnp.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(clip_cotangent(x, 0.1), x)
    assert not jax.grad(lambda x: jnp.sum(0.0 * clip_cotangent(x, 0.1)))(x).any()


def test_an_expanding_recurrence_no_longer_explodes():
    def last(x, bound):
        def step(x, _):
            return 10.0 * clip_cotangent(x, bound), None

        return jnp.sum(jax.lax.scan(step, x, None, length=15)[0])

    x = jnp.ones((4, 2))
    assert jnp.abs(jax.grad(last)(x, 1e30)).min() > 1e14
    np.testing.assert_allclose(jnp.linalg.norm(jax.grad(last)(x, 3.0), axis=-1), 3.0, rtol=1e-6)


def test_under_vmap_every_learner_has_its_own_norm():
    weight = jnp.array([[[3.0, 4.0]], [[0.3, 0.4]]])
    grad = jax.vmap(jax.grad(lambda x, w: jnp.sum(w * clip_cotangent(x, 2.0))))(0 * weight, weight)
    np.testing.assert_allclose(grad, [[[1.2, 1.6]], [[0.3, 0.4]]], rtol=1e-6)
