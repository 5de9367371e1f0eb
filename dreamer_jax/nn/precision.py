"""In which format matrix products are carried out; everything else stays float32.

Parameters, optimisers, recurrent states, norms, activations and losses are float32 always. Under
`computing_in("bfloat16")`, operands and results of products are rounded to bfloat16 (sums inside a
product are the hardware's, float32 on accelerators), forwards and backwards. The format is fixed
when a function is traced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any

import jax
import jax.numpy as jnp

_format: ContextVar[str] = ContextVar("format of products", default="float32")


@contextmanager
def computing_in(name: str) -> Iterator[None]:
    """Products traced inside are carried out in this format, "float32" or "bfloat16"."""
    token = _format.set(name)
    try:
        yield
    finally:
        _format.reset(token)


def in_format(name: str, function: Callable) -> Callable:
    """`function`, traced under `computing_in(name)`."""

    @wraps(function)
    def traced(*args: Any, **names: Any) -> Any:
        with computing_in(name):
            return function(*args, **names)

    return traced


def rounded(x: jax.Array) -> jax.Array:
    """An operand of a product."""
    return x.astype(_format.get())


def matmul(x: jax.Array, y: jax.Array) -> jax.Array:
    """x @ y, float32."""
    return (rounded(x) @ rounded(y)).astype(jnp.float32)
