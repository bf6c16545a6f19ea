"""How much work a function is, counted from what it is written as, and not from what a compiler made of it."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
from jax.extend import core


def products(function: Callable, *shapes) -> float:
    """Floating point operations of the matrix products and convolutions of a function, two for each multiplication.

    shapes: of what it takes. A loop's work is counted once, and that of every branch, of which gradients of
    convolutions have one for each platform: so this is for functions without gradients.
    """
    return _in(jax.make_jaxpr(function)(*shapes).jaxpr)


def _in(jaxpr: core.Jaxpr) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        out = math.prod(equation.outvars[0].aval.shape)
        if equation.primitive.name == "dot_general":
            (summed, _), _ = equation.params["dimension_numbers"]
            total += 2 * out * math.prod(equation.invars[0].aval.shape[axis] for axis in summed)
        elif equation.primitive.name == "conv_general_dilated":
            kernel, numbers = equation.invars[1].aval.shape, equation.params["dimension_numbers"]
            total += 2 * out * math.prod(kernel) / kernel[numbers.rhs_spec[0]]
        else:
            total += sum(_in(inner) for inner in core.jaxprs_in_params(equation.params))
    return total
