"""What a network is asked for, as one table and one solve.

Every prediction type is a blend of the clean image and the noise,

    target = cx x0 + ce eps,                                                                     (5)

and x_t = alpha x0 + sigma eps is a second equation; two unknowns, so

    det = alpha ce - sigma cx,   x0 = (ce xt - sigma p) / det,   eps = (alpha p - cx xt) / det.  (6)

eps is DDPM's [ddpm eq. 14], v is [distillation app. D]. A squared error in one type is a
weighted squared error in x0:

    |p - target|^2 = (det / sigma)^2 |x0_hat - x0|^2,                                            (7)

so a loss weight that is meant for x0, as min-SNR is [minsnr eq. 5], is a different one in every type.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array

from jdiff.levels import Level

PREDICTION_TYPES: dict[str, Callable[[Level], tuple]] = {
    "eps": lambda level: (0.0, 1.0),
    "x0": lambda level: (1.0, 0.0),
    "v": lambda level: (-level.sigma, level.alpha),
}


def simple(prediction_type: str, level: Level) -> Array:
    """Every answer counts the same, as the network gives it [ddpm eq. 14]. level: rates (b,). Returns (b,)."""
    return jnp.ones_like(level.alpha)


def min_snr(prediction_type: str, level: Level, *, cap: float = 5.0) -> Array:
    """min(SNR, cap) in x0: nearly clean images do not drown the rest [minsnr eq. 5]. As ``simple``."""
    # sigma^2 is multiplied in first, so that a clean image does not divide by zero.
    return jnp.minimum(level.alpha**2, cap * level.sigma**2) / _det(prediction_type, level) ** 2


def root_snr(prediction_type: str, level: Level, *, floor: float = 0.1, cap: float = 2.0) -> Array:
    """sqrt(SNR) = alpha / sigma in x0, held in [floor, cap]; found by trial, see benchmarks/RESULTS.md.

    Half way between counting errors of x0 and of eps alike, since |x0 error| |eps error| = (alpha / sigma)
    |x0 error|^2. The floor keeps the noisiest levels, where a scene is laid out. As ``simple``.
    """
    held = jnp.clip(level.alpha, floor * level.sigma, cap * level.sigma)
    return held * level.sigma / _det(prediction_type, level) ** 2


def _det(prediction_type: str, level: Level) -> Array:
    """det of (6) for rates (b,)."""
    of_x0, of_eps = PREDICTION_TYPES[prediction_type](level)
    return level.alpha * of_eps - level.sigma * of_x0


WEIGHTINGS = {"simple": simple, "min_snr": min_snr, "root_snr": root_snr}


def target(prediction_type: str, x0: Array, eps: Array, level: Level) -> Array:
    """What the network should have said, equation (5). x0, eps: (b, *dims); level: rates (b,). Returns like x0."""
    of_x0, of_eps = PREDICTION_TYPES[prediction_type](level.over(x0))
    return of_x0 * x0 + of_eps * eps


def solve(prediction_type: str, prediction: Array, xt: Array, level: Level) -> tuple[Array, Array]:
    """The clean image and the noise that a prediction implies, equation (6).

    prediction, xt: (b, *dims).   level: rates (b,).   Returns (x0, eps), like xt.
    """
    level = level.over(xt)
    of_x0, of_eps = PREDICTION_TYPES[prediction_type](level)
    det = level.alpha * of_eps - level.sigma * of_x0
    x0 = (of_eps * xt - level.sigma * prediction) / det
    return x0, (level.alpha * prediction - of_x0 * xt) / det


def denoiser(predict: Callable, prediction_type: str) -> Callable:
    """A network with its parameterisation solved.

    predict: (xt, timestep) -> prediction.   Returns (xt, timestep, level) -> (x0, eps).
    """

    def denoise(xt: Array, timestep: Array, level: Level) -> tuple[Array, Array]:
        return solve(prediction_type, predict(xt, timestep), xt, level)

    return denoise


def clipped(denoise: Callable) -> Callable:
    """A denoiser whose clean image stays in [-1, 1], and whose noise is what then explains xt."""

    def clip(xt: Array, timestep: Array, level: Level) -> tuple[Array, Array]:
        x0 = jnp.clip(denoise(xt, timestep, level)[0], -1, 1)
        wide = level.over(xt)
        return x0, (xt - wide.alpha * x0) / wide.sigma

    return clip
