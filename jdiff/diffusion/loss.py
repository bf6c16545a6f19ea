"""The training loss of a diffusion model: noise each image to a random level, ask, compare [ddpm eq. 14].

Where the network also says a variance, the variational bound teaches it that alone, and never the mean [iddpm eq. 16]:

    + T / 1000 KL(q(xs | xt, x0) || N(mean, variance)), s = t - 1, in bits a dimension;                     (30)
      at t = 0 the negative log likelihood of the 256 values of a pixel [iddpm sec. 2.1].
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import ndtr

from jdiff.diffusion import prediction, process
from jdiff.diffusion.gaussian_baseline import gaussian_loss
from jdiff.diffusion.schedules import Discrete, Schedule
from jdiff.diffusion.timestep_sampling import TimestepSampling, uniform
from jdiff.diffusion.weighting import Weighting, simple
from jdiff.levels import Level, broadcast_like

EDGES = (-6.0, -3.0, 0.0, 3.0, 6.0)  # of log SNR, between the bins that losses are reported in
BINS = tuple(f"{low:g}_to_{high:g}" for low, high in zip((-np.inf, *EDGES), (*EDGES, np.inf)))


def draw(
    keys: Array, x0: Array, schedule: Schedule, timestep_sampling: TimestepSampling = uniform
) -> tuple[Array, Array]:
    """Timestep and noise of each example, from its own key.

    keys: (b,).   x0: (b, *dims).   timestep_sampling: (key, schedule) -> timestep, as ``timestep_sampling.lognormal``.
    Returns timestep (b,) float, of the schedule's, and eps like x0.
    """

    def one(key: Array) -> tuple[Array, Array]:
        level_key, noise_key = jax.random.split(key)
        return timestep_sampling(level_key, schedule), jax.random.normal(noise_key, x0.shape[1:])

    return jax.vmap(one)(keys)


def loss(
    predict: Callable,
    x0: Array,
    *,
    keys: Array,
    schedule: Schedule,
    prediction_type: str,
    weighting: Weighting = simple,
    timestep_sampling: TimestepSampling = uniform,
    spectrum: Array | None = None,
) -> tuple[Array, dict[str, Array]]:
    """Mean squared error of the network's answers, weighed by noise level, and (30) where it says a variance.

    predict: (xt, timestep) -> output like xt, or with twice its channels.
    x0: (b, *dims) clean data.   keys: (b,) one per example.
    weighting: (prediction_type, level) -> weights (b,), as ``weighting.min_snr`` or a ``functools.partial`` of it.
    timestep_sampling: (key, schedule) -> timestep, as ``timestep_sampling.lognormal`` or a partial of it.
    spectrum: (k,) the variances e_i of the data, for (31).
    Returns the scalar loss and a report, for each bin of log SNR: ``loss_LOW_to_HIGH``, the plain loss of examples that
    fell there, and ``gaussian_LOW_to_HIGH``, what (31) gives for the same, each as a pair of mean and count.
    """
    timestep, eps = draw(keys, x0, schedule, timestep_sampling)
    level = schedule.level(timestep)
    xt = process.diffuse(x0, eps, level)
    answer, fraction = prediction.split_variance(predict(xt, timestep), xt)
    error = answer - prediction.target(prediction_type, x0, eps, level)
    each = jnp.mean(error**2, axis=tuple(range(1, x0.ndim)))
    total = jnp.mean(weighting(prediction_type, level) * each)
    report = _binned("loss", each, level)
    if spectrum is not None:
        report |= _binned("gaussian", gaussian_loss(spectrum, level, prediction_type), level)
    if fraction is not None:
        found, _, _ = prediction.solve(prediction_type, jax.lax.stop_gradient(answer), xt, level)
        bound = jnp.mean(variational(found, fraction, x0, xt, timestep, schedule))
        total = total + bound * schedule.timesteps / 1000
        report["bits"] = bound * schedule.timesteps
    return total, report


def _binned(name: str, each: Array, level: Level) -> dict[str, tuple[Array, Array]]:
    place = jnp.searchsorted(jnp.asarray(EDGES), level.logsnr)
    inside = place[None] == jnp.arange(len(BINS))[:, None]
    count = inside.sum(axis=1)
    mean = jnp.where(inside, each[None], 0).sum(axis=1) / jnp.maximum(count, 1)
    return {f"{name}_{BINS[i]}": (mean[i], count[i]) for i in range(len(BINS))}


def variational(found: Array, fraction: Array, x0: Array, xt: Array, timestep: Array, schedule: Discrete) -> Array:
    """The term of (30) for each example, in bits a dimension.

    found: the x0 that the mean is made of.   fraction: of ``Denoised``.   x0, xt, found, fraction: (b, *dims).
    timestep: (b,) whole.   Returns (b,).
    """
    whole = np.arange(schedule.timesteps)
    ends = schedule.rates(whole - 1), schedule.rates(whole)
    xt_coef, x0_coef, small = process.posterior(*ends)
    large = process.added_variance(*ends)
    small[0] = small[1]  # the last step's own would be 0 [iddpm sec. 3.1]

    def at(table: np.ndarray) -> Array:
        return broadcast_like(jnp.asarray(table, jnp.float32)[timestep.astype(jnp.int32)], x0)

    log_small, log_large = at(np.log(small)), at(np.log(large))
    log_variance = log_small + fraction * (log_large - log_small)
    off = at(x0_coef) * (x0 - found)  # both means share xt's part
    kl = 0.5 * (log_variance - log_small - 1 + jnp.exp(log_small - log_variance) + off**2 * jnp.exp(-log_variance))
    mean, std = at(xt_coef) * xt + at(x0_coef) * found, jnp.exp(log_variance / 2)
    # A pixel's value stands for all that round to it; those at the ends for all beyond.
    above = jnp.where(x0 > 0.999, 1.0, ndtr((x0 + 1 / 255 - mean) / std))
    below = jnp.where(x0 < -0.999, 0.0, ndtr((x0 - 1 / 255 - mean) / std))
    likelihood = -jnp.log(jnp.maximum(above - below, 1e-12))
    each = jnp.where(broadcast_like(timestep, x0) == 0, likelihood, kl)
    return jnp.mean(each, axis=tuple(range(1, x0.ndim))) / jnp.log(2.0)
