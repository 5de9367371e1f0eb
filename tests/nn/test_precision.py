"""bfloat16 products: the operands and nothing else, and the agents still learn."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer_jax.nn.blocks import MLP, BlockLinear, block_einsum
from dreamer_jax.nn.conv import conv_patches, conv_same, conv_transpose_patches
from dreamer_jax.nn.precision import computing_in, in_format
from dreamer_jax.training.arms import make_agent
from dreamer_jax.training.learner import record_spec
from dreamer_jax.training.presets import FAMILY
from dreamer_jax.types import Spec

SPEC = Spec({"image": ((96, 96, 3), "uint8")}, 2)


def products(jaxpr):
    """All products of a program, inner programs included."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else [value]:
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from products(inner)


def formats(function, *args):
    """Of the operands of all products."""
    found = products(jax.make_jaxpr(function)(*args).jaxpr)
    return {str(v.aval.dtype) for equation in found for v in equation.invars}


def layers():
    key = jax.random.key(0)
    x, image = jax.random.normal(key, (5, 8)), jax.random.normal(key, (2, 9, 9, 4))
    mlp, block = MLP(3, 16, 4), BlockLinear(6, 2)
    kernel, back = jax.random.normal(key, (3, 3, 4, 6)), jax.random.normal(key, (3, 3, 4, 6))
    return {
        "MLP": (mlp.apply, (mlp.init(key, x), x)),
        "blocks": (block.apply, (block.init(key, x), x)),
        "blocks at once": (lambda k, x: block_einsum(x, k), (jax.random.normal(key, (2, 4, 3)), x)),
        "patches": (lambda k, x: conv_patches(x, k, 2), (kernel, image)),
        "folded": (lambda k, x: conv_patches(x, k, 3), (kernel, image)),
        "same": (lambda k, x: conv_same(x, k), (kernel, image)),
        "transposed": (lambda k, x: conv_transpose_patches(x, k, 2), (back, image)),
    }


@pytest.mark.parametrize("name", layers())
def test_products_and_their_gradients_are_rounded_and_near(name):
    function, args = layers()[name]
    loss = lambda *args: jnp.sum(jnp.sin(function(*args)))  # noqa: E731
    both = lambda *args: (function(*args), jax.grad(loss, argnums=(0, 1))(*args))  # noqa: E731
    rough = in_format("bfloat16", both)
    assert formats(both, *args) == {"float32"} and formats(rough, *args) == {"bfloat16"}
    want, got = jax.jit(both)(*args), jax.jit(rough)(*args)
    for a, b in zip(jax.tree.leaves(want), jax.tree.leaves(got), strict=True):
        assert b.dtype == jnp.float32
        assert 0 < np.linalg.norm(a - b) < 0.03 * np.linalg.norm(a)


def test_the_format_ends_with_its_block():
    assert formats(jnp.dot, jnp.ones(2), jnp.ones(2)) == {"float32"}
    function, args = layers()["MLP"]
    with pytest.raises(KeyError), computing_in("bfloat16"):
        assert formats(lambda *args: function(*args), *args) == {"bfloat16"}
        raise KeyError
    assert formats(lambda *args: function(*args), *args) == {"float32"}


@pytest.mark.parametrize("name", FAMILY)
def test_an_agents_products_are_rounded_and_its_state_is_not(name):
    config = replace(FAMILY[name]["debug"], arm="baseline", precision="bfloat16")
    agent, key = make_agent(config, SPEC), jax.random.key(0)
    state = jax.eval_shape(agent.init, key)
    batch = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((config.length, config.batch, *x.shape), x.dtype),
        record_spec(SPEC, agent),
    )
    assert formats(agent.update, state, batch, key) <= {"bfloat16", "float32"}
    found = [e for e in products(jax.make_jaxpr(agent.update)(state, batch, key).jaxpr)]
    rough = [e for e in found if all(v.aval.dtype == jnp.bfloat16 for v in e.invars)]
    assert len(rough) > 0.95 * len(found)
    new, metrics, *_ = jax.eval_shape(agent.update, state, batch, key)
    same = jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), state, new)
    assert all(jax.tree.leaves(same))
    assert {m.dtype for m in metrics.values()} == {jnp.dtype("float32")}
