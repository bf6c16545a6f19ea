"""FLOPs of a function, counted from its jaxpr, before any compiler optimisation."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
from jax.extend import core


def products(function: Callable, *shapes) -> float:
    """FLOPs of the matrix products and convolutions of a function, two for each multiply-add.

    A loop's body is counted once, and every branch is counted. Gradients of convolutions have a branch for each
    platform, so count functions without gradients.

    shapes: of the arguments.
    """
    return _products_in(jax.make_jaxpr(function)(*shapes).jaxpr)


def _products_in(jaxpr: core.Jaxpr) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        output_size = math.prod(equation.outvars[0].aval.shape)
        if equation.primitive.name == "dot_general":
            (contracting_axes, _), _ = equation.params["dimension_numbers"]
            total += 2 * output_size * math.prod(equation.invars[0].aval.shape[axis] for axis in contracting_axes)
        elif equation.primitive.name == "conv_general_dilated":
            kernel, numbers = equation.invars[1].aval.shape, equation.params["dimension_numbers"]
            total += 2 * output_size * math.prod(kernel) / kernel[numbers.rhs_spec[0]]
        else:
            total += sum(_products_in(inner) for inner in core.jaxprs_in_params(equation.params))
    return total
