"""The forward process: from an image to noise.

q(xt | x0)     = N(alpha x0, sigma^2)                                        [ddpm eq. 4]   (3)
q(xs | xt, x0) = N(mean, variance), s cleaner than t                         [ddpm eq. 7]   (4)
    a = alpha_t / alpha_s,  v = sigma_t^2 - a^2 sigma_s^2   (of one stride from s to t)
    mean     = a sigma_s^2 / sigma_t^2 xt + alpha_s v / sigma_t^2 x0
    variance = v sigma_s^2 / sigma_t^2
"""

from __future__ import annotations

from jax import Array

from jdiff.levels import Level


def diffuse(x0: Array, eps: Array, level: Level) -> Array:
    """Noise a clean batch to a given level: one draw of q(xt | x0), equation (3).

    The thousand small steps of the forward process collapse into a single blend,
    because a sum of Gaussians is a Gaussian. Randomness enters only through ``eps``,
    so the caller keeps the noise that the network is trained to predict.

    x0: (b, *dims) clean data; images are NHWC floats in [-1, 1].
    eps: (b, *dims) standard normal.
    level: rates of shape (b,), one per example.
    Returns xt: (b, *dims); on variance-preserving schedules of unit variance wherever x0 is.
    """
    level = level.broadcast_like(x0)
    return level.alpha * x0 + level.sigma * eps


def added_variance(level_s: Level, level_t: Level):
    """v of (4): the variance that a stride from s to the noisier t adds. Rates as for ``posterior``."""
    return level_t.sigma**2 - (level_t.alpha / level_s.alpha) ** 2 * level_s.sigma**2


def posterior(level_s: Level, level_t: Level):
    """Coefficients of q(xs | xt, x0), equation (4), for a stride of any length.

    Rates may be NumPy (float64, the sampler's tables) or JAX arrays, of one shape.
    Returns (xt_coef, x0_coef, variance): the mean is xt_coef * xt + x0_coef * x0.
    """
    ratio, variance = level_t.alpha / level_s.alpha, added_variance(level_s, level_t)
    noise_share = level_s.sigma**2 / level_t.sigma**2
    return ratio * noise_share, level_s.alpha * variance / level_t.sigma**2, variance * noise_share
