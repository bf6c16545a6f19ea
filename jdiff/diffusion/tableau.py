"""What every sampling method is written in: levels to visit, and a row of coefficients of (9) of ``solvers`` for each.

Tables are made in float64 on the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax
import numpy as np
from jax import Array

from jdiff.diffusion.schedules import Schedule
from jdiff.levels import Level

PURE_NOISE = 1e-6  # an SNR
DEPTH = 4  # how many answers, the row's own among them, a row may look at


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Tableau:
    """A sampling method on a grid: what to tell the network, and the coefficients of (9).

    Every field is of shape (rows,), or (rows, b) where each image has its own; weights have an axis (depth,) after
    the rows. A sampler scans them from the noisiest row to the last.

    guidance_scale: what ``guidance`` reads.   noise_range: log of the largest noise_coef over the least, for
    networks that say where between them it lies; else 0.   active: false in rows that only fill up.
    """

    timestep: Array
    level: Level
    guidance_scale: Array
    xt_coef: Array
    x0_coef: Array
    eps_coef: Array
    weights: Array
    noise_coef: Array
    noise_range: Array
    active: Array

    @property
    def rows(self) -> int:
        """How many rows there are, those that only fill up among them."""
        return self.timestep.shape[0]


@dataclass(frozen=True)
class Grid:
    """The levels that a sampler visits. timestep: (n,), falling.   level: rates (n + 1,) with the end, in float64."""

    timestep: np.ndarray
    level: Level

    @property
    def steps(self) -> range:
        """The numbers of the steps, from 0 to n - 1."""
        return range(len(self.timestep))

    def at(self, i: int) -> Level:
        """One level."""
        return Level(self.level.alpha[i], self.level.sigma[i])

    @property
    def pure(self) -> int:
        """How many levels at the start, none or one, are as good as pure noise."""
        return int(self.level.alpha[0] ** 2 < PURE_NOISE * self.level.sigma[0] ** 2)

    @property
    def edm_sigma(self) -> np.ndarray:
        """sigma / alpha: infinite at pure noise, 0 at the clean image."""
        with np.errstate(divide="ignore"):
            return self.level.sigma / self.level.alpha


def grid(schedule: Schedule, timesteps: np.ndarray, *, last: float = -1) -> Grid:
    """Levels of falling timesteps. last: where the final step ends; -1 is the clean image."""
    return Grid(np.asarray(timesteps, np.float64), schedule.rates(np.append(timesteps, last)))


@dataclass
class Row:
    """One row of a tableau as a method writes it."""

    timestep: float
    level: Level
    xt_coef: float = 0.0
    x0_coef: float = 0.0
    eps_coef: float = 0.0
    weights: Sequence[float] = (1.0,)
    noise_coef: float = 0.0
    noise_range: float = 0.0


def tableau(rows: Sequence[Row]) -> Tableau:
    """The rows as columns, as deep as any of them looks back."""

    def column(name: str) -> np.ndarray:
        return np.array([getattr(row, name) for row in rows], np.float64)

    weights = np.zeros((len(rows), DEPTH))
    for row, given in zip(weights, (row.weights for row in rows)):
        row[: len(given)] = given
    depth = 1 + int(np.max(np.nonzero(weights)[1], initial=0))
    return Tableau(
        timestep=column("timestep"),
        level=Level(np.array([row.level.alpha for row in rows]), np.array([row.level.sigma for row in rows])),
        guidance_scale=np.ones(len(rows)),
        xt_coef=column("xt_coef"),
        x0_coef=column("x0_coef"),
        eps_coef=column("eps_coef"),
        weights=weights[:, :depth],
        noise_coef=column("noise_coef"),
        noise_range=column("noise_range"),
        active=np.ones(len(rows), bool),
    )


def stack_tableaux(tableaux: Sequence[Tableau], rows: int, *, dtype: type = np.float32) -> Tableau:
    """One tableau for a batch whose images have each their own, filled up with idle rows to ``rows``.

    Returns fields of (rows, b) and weights of (rows, DEPTH, b), in ``dtype``.
    """
    filled = {id(one): _filled(one, rows) for one in tableaux}

    def column(*values: np.ndarray) -> np.ndarray:
        together = np.stack(values, axis=-1)
        return together if together.dtype == bool else together.astype(dtype)

    return jax.tree.map(column, *(filled[id(one)] for one in tableaux))


def _filled(given: Tableau, rows: int) -> Tableau:
    """A tableau with rows after its own that leave an image as it is."""
    depth = given.weights.shape[1]
    given = replace(given, weights=np.pad(given.weights, ((0, 0), (0, DEPTH - depth))))
    zero, one = np.zeros(1), np.ones(1)
    idle = replace(
        jax.tree.map(lambda column: column[-1:], given),
        guidance_scale=one,
        xt_coef=one,
        x0_coef=zero,
        eps_coef=zero,
        weights=np.zeros((1, DEPTH)),
        noise_coef=zero,
        noise_range=zero,
        active=np.zeros(1, bool),
    )
    return jax.tree.map(
        lambda column, more: np.concatenate([column, np.repeat(more, rows - len(column), axis=0)]), given, idle
    )


def with_guidance(tableau: Tableau, scale: float, *, low: float = -np.inf, high: float = np.inf) -> Tableau:
    """The tableau with a guidance scale, 1 where the log SNR is outside [low, high] [interval]."""
    logsnr = tableau.level.logsnr
    return replace(tableau, guidance_scale=np.where((logsnr >= low) & (logsnr <= high), scale, 1.0))
