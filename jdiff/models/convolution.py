"""Image convolutions whose gradients are fast on a CPU inside loops (``lax.scan``, ``lax.map``), too.

XLA's CPU backend has a fast convolution for one layout only: NHWC images and HWIO kernels. Outside loops it rewrites
both gradients of a convolution into that layout. Inside loops it does not, and falls back to a naive loop nest that is
hundreds of times slower. So on a CPU this module writes both gradients in that layout itself. With input x, kernel w,
stride s, output y and its cotangent g, and sums over indices inside the arrays,

    y[i]  = sum_k x[s i + k - low] w[k]
    dx[j] = sum_k g[(j + low - k) / s] w[k]    g dilated by s, convolved with the flipped w
    dw[k] = sum_i x[s i + k - low] g[i]        g dilated by s as a kernel over x; channels and examples change places
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
def _convolve(x: Array, w: Array, strides: tuple[int, ...], pads: Pads) -> Array:
    return jax.lax.conv_general_dilated(x, w, strides, pads, dimension_numbers=LAYOUT)


def _forward(x: Array, w: Array, strides: tuple[int, ...], pads: Pads) -> tuple[Array, tuple[Array, Array]]:
    # Not _convolve: a checkpointing policy would not recognize a custom_vjp call as a convolution.
    return jax.lax.conv_general_dilated(x, w, strides, pads, dimension_numbers=LAYOUT), (x, w)


def _backward(strides: tuple[int, ...], pads: Pads, residuals: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    def autodiff(x: Array, w: Array, g: Array) -> tuple[Array, Array]:
        plain = partial(jax.lax.conv_general_dilated, window_strides=strides, padding=pads, dimension_numbers=LAYOUT)
        return jax.vjp(plain, x, w)[1](g)

    def in_nhwc_form(x: Array, w: Array, g: Array) -> tuple[Array, Array]:
        sides = list(zip(x.shape[1:3], w.shape[:2], g.shape[1:3], strides, pads))
        dx_pads = [(k - 1 - low, n + low - (m - 1) * s - 1) for n, k, m, s, (low, _) in sides]
        dw_pads = [(low, (m - 1) * s + k - n - low) for n, k, m, s, (low, _) in sides]
        flipped_kernel = w[::-1, ::-1].swapaxes(2, 3)
        dx = jax.lax.conv_general_dilated(
            g, flipped_kernel, (1, 1), dx_pads, lhs_dilation=strides, dimension_numbers=LAYOUT
        )
        dw = jax.lax.conv_general_dilated(
            x.transpose(3, 1, 2, 0),
            g.transpose(1, 2, 0, 3),
            (1, 1),
            dw_pads,
            rhs_dilation=strides,
            dimension_numbers=LAYOUT,
        )
        return dx, dw.transpose(1, 2, 0, 3)

    return jax.lax.platform_dependent(*residuals, g, cpu=in_nhwc_form, default=autodiff)


_convolve.defvjp(_forward, _backward)


def _flax_convolve(x: Array, w: Array, strides: Sequence[int], padding: str | Sequence, **_) -> Array:
    """``_convolve`` with the arguments that ``nn.Conv`` passes; dilation and groups among them are ignored."""
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(x.shape[1:3], w.shape[:2], strides, padding)
    return _convolve(x, w, tuple(strides), tuple((int(low), int(high)) for low, high in padding))


class Conv(nn.Conv):
    """``nn.Conv`` for images, without groups and dilation."""

    conv_general_dilated: object = _flax_convolve
