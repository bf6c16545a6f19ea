"""The Gaussian baseline: the loss of the best denoiser that knows no more of the data than its mean and covariance.

For a Gaussian with the data's mean and, in each eigenvector of its covariance, variance e_i,

    E |x0 - x0_hat|^2 = mean_i e_i sigma^2 / (alpha^2 e_i + sigma^2),                                       (31)

brought to the network's type by (7). A network whose loss is lower has learned more of the data than two moments.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import Array

from jdiff.diffusion.prediction import equations
from jdiff.levels import Level


def gaussian_loss(spectrum: Array, level: Level, prediction_type: str) -> Array:
    """(31) in the units of a prediction type. spectrum: (k,) variances e_i.   level: rates (b,).   Returns (b,)."""
    alpha, sigma = level.alpha[:, None], level.sigma[:, None]
    in_x0 = spectrum[None] * sigma**2 / (alpha**2 * spectrum[None] + sigma**2)
    _, _, det = equations(prediction_type, level)
    return jnp.mean(in_x0, axis=1) * (det / level.sigma) ** 2


def data_spectrum(images: np.ndarray) -> np.ndarray:
    """The variances e_i of a stationary Gaussian fitted to images, whose statistics are the same at every pixel.

    Its eigenvectors are Fourier waves times directions of colour, so a few hundred images suffice.

    images: (n, h, w, c) floats.   Returns (h w c,) variances, float32.
    """
    n, h, w, c = images.shape
    waves = np.fft.fft2(images - images.mean(0), axes=(1, 2)).reshape(n, h * w, c) / np.sqrt(h * w)
    colours = np.einsum("nki,nkj->kij", waves, waves.conj()) / n
    return np.maximum(np.linalg.eigvalsh(colours), 0).reshape(-1).astype(np.float32)
