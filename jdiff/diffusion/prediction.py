"""Prediction types: what a network is trained to predict, as one table and one solve.

Every prediction type is a blend of the clean image and the noise,

    target = cx x0 + ce eps,                                                                     (5)

and x_t = alpha x0 + sigma eps is a second equation; two unknowns, so

    det = alpha ce - sigma cx,   x0 = (ce xt - sigma p) / det,   eps = (alpha p - cx xt) / det.  (6)

eps is DDPM's [ddpm eq. 14], v is [distillation app. D], score is the gradient of log p(xt) [sde eq. 7], flow the
velocity from data to noise [flow eq. 23]. A squared error in one type is a
weighted squared error in x0:

    |p - target|^2 = (det / sigma)^2 |x0_hat - x0|^2,                                            (7)

so a loss weight that is stated for x0, as min-SNR is [minsnr eq. 5], is a different one in every type.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jdiff.levels import Level, broadcast_like

PREDICTION_TYPES: dict[str, Callable[[Level], tuple]] = {
    "eps": lambda level: (0.0, 1.0),
    "x0": lambda level: (1.0, 0.0),
    "v": lambda level: (-level.sigma, level.alpha),
    "score": lambda level: (0.0, -1 / level.sigma),
    "flow": lambda level: (-1.0, 1.0),
}
BLIND_AT_ZERO_SNR = ("eps", "score")  # where alpha is 0, these do not determine x0


class Denoised(NamedTuple):
    """A denoiser's estimates for a noised batch.

    x0, eps: like xt.
    variance_fraction: like xt, in [0, 1], where the log of a step's variance lies between its two bounds, as the
        network predicts it [iddpm eq. 15]; None for a network without a learned variance.
    """

    x0: Array
    eps: Array
    variance_fraction: Array | None = None


def equations(prediction_type: str, level: Level) -> tuple:
    """cx and ce of (5) and the determinant of (6). level: rates of any shape. Returns (x0_coef, eps_coef, det)."""
    x0_coef, eps_coef = PREDICTION_TYPES[prediction_type](level)
    return x0_coef, eps_coef, level.alpha * eps_coef - level.sigma * x0_coef


def target(prediction_type: str, x0: Array, eps: Array, level: Level) -> Array:
    """The training target of the network, equation (5). x0, eps: (b, *dims); level: rates (b,). Returns like x0."""
    x0_coef, eps_coef = PREDICTION_TYPES[prediction_type](level.broadcast_like(x0))
    return x0_coef * x0 + eps_coef * eps


def solve(prediction_type: str, prediction: Array, xt: Array, level: Level) -> Denoised:
    """The clean image and the noise that a prediction implies, equation (6).

    prediction, xt: (b, *dims).   level: rates (b,).
    """
    level = level.broadcast_like(xt)
    x0_coef, eps_coef, det = equations(prediction_type, level)
    x0 = (eps_coef * xt - level.sigma * prediction) / det
    return Denoised(x0, (level.alpha * prediction - x0_coef * xt) / det)


def split_variance(output: Array, xt: Array) -> tuple[Array, Array | None]:
    """Split a network's output into its prediction and, where it has twice the channels of xt, variance_fraction."""
    c = xt.shape[-1]
    return (output, None) if output.shape[-1] == c else (output[..., :c], (output[..., c:] + 1) / 2)


def parse_output(prediction_type: str, output: Array, xt: Array, level: Level) -> Denoised:
    """The clean image, the noise and any learned variance that a network's output implies. As ``solve``."""
    prediction, variance_fraction = split_variance(output, xt)
    return solve(prediction_type, prediction, xt, level)._replace(variance_fraction=variance_fraction)


def denoiser(predict: Callable, prediction_type: str) -> Callable:
    """Wrap a network as a denoiser, by solving its prediction type for x0 and eps.

    predict: (xt, timestep) -> output.   Returns (xt, row) -> ``Denoised``; reads the row's timestep and level.
    """
    return lambda xt, row: parse_output(prediction_type, predict(xt, row.timestep), xt, row.level)


def clipped(
    estimate: Denoised, xt: Array, level: Level, *, clip_mask: ArrayLike = True, percentile: ArrayLike = 0.0
) -> Denoised:
    """Clip the estimated clean image to [-1, 1], and derive anew the noise that explains xt.

    clip_mask: (b,) or one for all; which images are clipped.
    percentile: (b,) or one for all; above 0, an image is first divided by that percentile of its absolute values
        where the percentile is above 1: dynamic thresholding [imagen sec. 2.3].
    """
    b = xt.shape[0]
    percentile = broadcast_like(jnp.broadcast_to(percentile, (b,)), xt)

    def dynamic_threshold(x0: Array) -> Array:
        size = jnp.sort(jnp.abs(x0).reshape(b, -1), axis=-1)
        rank = jnp.ravel(percentile) / 100 * (size.shape[-1] - 1)
        low = jnp.floor(rank).astype(jnp.int32)[:, None]
        pair = jnp.take_along_axis(size, jnp.minimum(jnp.concatenate([low, low + 1], 1), size.shape[-1] - 1), axis=1)
        value = pair[:, 0] + (rank - low[:, 0]) * (pair[:, 1] - pair[:, 0])
        return jnp.where(percentile > 0, jnp.maximum(broadcast_like(value, xt), 1), 1)

    threshold = jax.lax.cond(
        jnp.any(percentile > 0), dynamic_threshold, lambda x0: jnp.ones_like(percentile), estimate.x0
    )
    x0 = jnp.clip(estimate.x0, -threshold, threshold) / threshold
    level = level.broadcast_like(xt)
    eps = (xt - level.alpha * x0) / level.sigma
    mask = broadcast_like(clip_mask, xt) != 0
    return estimate._replace(x0=jnp.where(mask, x0, estimate.x0), eps=jnp.where(mask, eps, estimate.eps))
