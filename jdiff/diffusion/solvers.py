"""Sampling methods as rows of coefficients.

One step from level t to the cleaner level s is, for every method here,

    xs = of_xt xt + of_x0 x0 + of_eps eps + of_noise z,    z ~ N(0, 1),                          (9)

    DDPM  of_xt, of_x0 from q(xs | xt, x0), equation (4)                       [ddpm eq. 7]     (10)
          of_noise^2 = the posterior's variance ("small") or v of (4) ("large")
    DDIM  of_x0 = alpha_s, of_eps = sqrt(sigma_s^2 - of_noise^2),              [ddim eq. 12]    (11)
          of_noise = eta sigma_s/sigma_t sqrt(1 - alpha_t^2/alpha_s^2)         [ddim eq. 16]

Strides are of any length; the row after the last timestep is the clean image, alpha = 1, unless it is said to be
timestep 0, where Stable Diffusion ends.
Tables are made in float64 on the host.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jdiff.diffusion import process
from jdiff.diffusion.schedules import Schedule
from jdiff.levels import Level


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Tableau:
    """A sampling method on a grid: what to tell the network, and the coefficients of (9).

    Every field is of shape (rows,); a sampler scans them from the noisiest row to the last.
    """

    timestep: Array
    level: Level
    of_xt: Array
    of_x0: Array
    of_eps: Array
    of_noise: Array


def _tableau(timesteps: np.ndarray, level: Level, **coefficients: np.ndarray) -> Tableau:
    zeros = np.zeros(len(timesteps))
    names = {field.name for field in fields(Tableau)} - {"timestep", "level"}
    columns = {name: coefficients.get(name, zeros) for name in names}
    wide = Tableau(timestep=timesteps, level=level, **columns)
    return jax.tree.map(lambda column: jnp.asarray(column, jnp.float32), wide)


def _ends(schedule: Schedule, timesteps: np.ndarray, last: int) -> tuple[Level, Level]:
    """Levels at the start and at the end of each row. last: the timestep that the last row ends at."""
    return schedule.rates(timesteps), schedule.rates(np.append(timesteps[1:], last))


VARIANCES = ("small", "large")


def ddpm(schedule: Schedule, timesteps: np.ndarray, *, variance: str = "small", last: int = -1) -> Tableau:
    """Ancestral sampling, equation (10). timesteps: (rows,) int, falling; last: where they end, -1 is the clean image.

    variance: "small" suits data that is one point, "large" data that is unit noise; the truth lies
    between [ddpm sec. 3.2], and the choice matters more the fewer the steps.
    """
    level, cleaner = _ends(schedule, timesteps, last)
    of_xt, of_x0, small = process.posterior(cleaner, level)
    large = level.sigma**2 - (level.alpha / cleaner.alpha) ** 2 * cleaner.sigma**2
    noise = {"small": small, "large": np.where(cleaner.sigma > 0, large, 0)}
    return _tableau(timesteps, level, of_xt=of_xt, of_x0=of_x0, of_noise=np.sqrt(noise[variance]))


def ddim(schedule: Schedule, timesteps: np.ndarray, *, eta: float = 0.0, last: int = -1) -> Tableau:
    """DDIM, equation (11): eta 0 follows the data's own flow without noise, eta 1 is DDPM with its small variance."""
    level, cleaner = _ends(schedule, timesteps, last)
    added = np.maximum(1 - (level.alpha / cleaner.alpha) ** 2, 0)
    noise = eta * cleaner.sigma / level.sigma * np.sqrt(added)
    direction = np.sqrt(np.maximum(cleaner.sigma**2 - noise**2, 0))
    return _tableau(timesteps, level, of_x0=cleaner.alpha, of_eps=direction, of_noise=noise)


SOLVERS = {"ddpm": ddpm, "ddim": ddim}
