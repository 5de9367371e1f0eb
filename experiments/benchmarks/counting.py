"""Arithmetic of a program, counted in its jaxpr: loops count as often as they run.

(XLA's own cost analysis counts the body of a loop once, whatever its length.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np


class Cost(NamedTuple):
    """Of one call."""

    flops: float  # of matrix products and convolutions: 2 for a multiplication and an addition
    bytes: float  # read and written by these, each operand and result once

    def __add__(self, other: Any) -> Cost:
        return Cost(self.flops + other.flops, self.bytes + other.bytes)

    def times(self, number: int) -> Cost:
        return Cost(number * self.flops, number * self.bytes)


NOTHING = Cost(0.0, 0.0)


def count(function: Callable, *args: Any) -> Cost:
    """Of `function(*args)`; args may be shapes."""
    return _of(jax.make_jaxpr(function)(*args).jaxpr)


def _of(jaxpr: Any) -> Cost:
    total = NOTHING
    for equation in jaxpr.eqns:
        total = total + _one(equation)
    return total


def _one(equation: Any) -> Cost:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        return Cost(_dot(equation), _moved(equation))
    if name == "conv_general_dilated":
        return Cost(_conv(equation), _moved(equation))
    if name == "scan":
        return _of(params["jaxpr"].jaxpr).times(params["length"])
    if name == "cond":  # the dearest branch
        return max((_of(branch.jaxpr) for branch in params["branches"]), key=lambda c: c.flops)
    inner = [x for value in params.values() for x in (value if _many(value) else [value])]
    jaxprs = [getattr(x, "jaxpr", x) for x in inner if hasattr(x, "jaxpr") or hasattr(x, "eqns")]
    return sum((_of(j) for j in jaxprs[:1]), NOTHING)  # a call; rules for its gradient follow


def _many(value: Any) -> bool:
    return isinstance(value, (tuple, list))


def _dot(equation: Any) -> float:
    (contract, _), _ = equation.params["dimension_numbers"]
    shape = equation.invars[0].aval.shape
    return 2.0 * equation.outvars[0].aval.size * float(np.prod([shape[i] for i in contract]))


def _conv(equation: Any) -> float:
    kernel = equation.invars[1].aval
    out_features = kernel.shape[equation.params["dimension_numbers"].rhs_spec[0]]
    full = 2.0 * equation.outvars[0].aval.size * kernel.size / out_features
    # Zeros that a dilated input is filled with are no work.
    return full / float(np.prod(equation.params["lhs_dilation"]))


def _moved(equation: Any) -> float:
    arrays = [v.aval for v in (*equation.invars, *equation.outvars)]
    return float(sum(a.size * a.dtype.itemsize for a in arrays))
