"""Convolutions of images whose gradients are fast on a CPU, too, inside of loops.

XLA's CPU backend has one fast way for a convolution, of images NHWC and kernels HWIO. Outside of loops it brings both
gradients of a convolution into that form; inside of them it does not, and goes through a plain nest of loops, hundreds
of times slower. So on a CPU they are written in that form here. With input x, kernel w, stride s, output y and its
slope g, all sums over what is there,

    y[i]  = sum_k x[s i + k - low] w[k]
    dx[j] = sum_k g[(j + low - k) / s] w[k]          g spread by s, under w turned around
    dw[k] = sum_i x[s i + k - low] g[i]              g, its rows s apart, as a kernel over x, channels for examples
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import flax.linen as nn
import jax
from jax import Array

LAYOUT = ("NHWC", "HWIO", "NHWC")
Pads = tuple[tuple[int, int], ...]


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolved(x: Array, w: Array, strides: tuple[int, ...], pads: Pads) -> Array:
    return jax.lax.conv_general_dilated(x, w, strides, pads, dimension_numbers=LAYOUT)


def _forward(x: Array, w: Array, strides: tuple[int, ...], pads: Pads) -> tuple[Array, tuple[Array, Array]]:
    # Not _convolved, of which a policy of rematerialisation would not see that it is a convolution.
    return jax.lax.conv_general_dilated(x, w, strides, pads, dimension_numbers=LAYOUT), (x, w)


def _backward(strides: tuple[int, ...], pads: Pads, kept: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    def as_usual(x: Array, w: Array, g: Array) -> tuple[Array, Array]:
        plain = partial(jax.lax.conv_general_dilated, window_strides=strides, padding=pads, dimension_numbers=LAYOUT)
        return jax.vjp(plain, x, w)[1](g)

    def in_one_form(x: Array, w: Array, g: Array) -> tuple[Array, Array]:
        sides = list(zip(x.shape[1:3], w.shape[:2], g.shape[1:3], strides, pads))
        around = [(k - 1 - low, n + low - (m - 1) * s - 1) for n, k, m, s, (low, _) in sides]
        within = [(low, (m - 1) * s + k - n - low) for n, k, m, s, (low, _) in sides]
        turned = w[::-1, ::-1].swapaxes(2, 3)
        dx = jax.lax.conv_general_dilated(g, turned, (1, 1), around, lhs_dilation=strides, dimension_numbers=LAYOUT)
        dw = jax.lax.conv_general_dilated(
            x.transpose(3, 1, 2, 0),
            g.transpose(1, 2, 0, 3),
            (1, 1),
            within,
            rhs_dilation=strides,
            dimension_numbers=LAYOUT,
        )
        return dx, dw.transpose(1, 2, 0, 3)

    return jax.lax.platform_dependent(*kept, g, cpu=in_one_form, default=as_usual)


_convolved.defvjp(_forward, _backward)


def _as_flax_asks(x: Array, w: Array, strides: Sequence[int], padding: str | Sequence, **other) -> Array:
    """What ``nn.Conv`` calls; of its other options, none is used here."""
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(x.shape[1:3], w.shape[:2], strides, padding)
    return _convolved(x, w, tuple(strides), tuple((int(low), int(high)) for low, high in padding))


class Conv(nn.Conv):
    """``nn.Conv`` of two sides, without groups and dilation."""

    conv_general_dilated: object = _as_flax_asks
