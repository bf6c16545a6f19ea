"""Tableaux: a sampling method as a table, with one row of coefficients of (9) of ``solvers`` per visited level.

Tables are computed in float64 on the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax
import numpy as np

from jdiff.diffusion.schedules import Schedule
from jdiff.levels import AnyArray, Level

PURE_NOISE = 1e-6  # an SNR
DEPTH = 4  # how many d of (9), the current row's included, a row may combine


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Tableau:
    """A sampling method on a grid: the timestep and level of each network evaluation, and the coefficients of (9).

    Every field is of shape (rows,), or (rows, b) where each image has its own; history_weights have an axis (depth,)
    after the rows. A sampler scans them from the noisiest row to the last.

    guidance_scale: the scale of ``guidance``.   noise_range: log of the largest noise_coef over the smallest, for
    networks with a learned variance; else 0.   active: false in padding rows.
    """

    timestep: AnyArray
    level: Level
    guidance_scale: AnyArray
    xt_coef: AnyArray
    x0_coef: AnyArray
    eps_coef: AnyArray
    history_weights: AnyArray
    noise_coef: AnyArray
    noise_range: AnyArray
    active: AnyArray

    @property
    def num_rows(self) -> int:
        """The number of rows, padding included."""
        return self.timestep.shape[0]


@dataclass(frozen=True)
class Grid:
    """The levels that a sampler visits. timestep: (n,), falling.   level: rates (n + 1,), end included, in float64."""

    timestep: np.ndarray
    level: Level[np.ndarray]

    @property
    def steps(self) -> range:
        """The indices of the steps, from 0 to n - 1."""
        return range(len(self.timestep))

    def level_at(self, i: int) -> Level[np.float64]:
        """The level that step i starts from."""
        return Level(self.level.alpha[i], self.level.sigma[i])

    @property
    def num_pure_noise(self) -> int:
        """How many levels at the start, 0 or 1, are numerically pure noise."""
        return int(self.level.alpha[0] ** 2 < PURE_NOISE * self.level.sigma[0] ** 2)

    @property
    def edm_sigma(self) -> np.ndarray:
        """sigma / alpha: infinite at pure noise, 0 at the clean image."""
        with np.errstate(divide="ignore"):
            return self.level.sigma / self.level.alpha


def level_grid(schedule: Schedule, timesteps: np.ndarray, *, end_timestep: float = -1) -> Grid:
    """Levels of falling timesteps. end_timestep: where the final step ends; -1 is the clean image."""
    return Grid(np.asarray(timesteps, np.float64), schedule.rates(np.append(timesteps, end_timestep)))


@dataclass
class TableauRow:
    """One row of a tableau, as a solver writes it."""

    timestep: float
    level: Level[np.float64]
    xt_coef: float = 0.0
    x0_coef: float = 0.0
    eps_coef: float = 0.0
    history_weights: Sequence[float] | np.ndarray = (1.0,)
    noise_coef: float = 0.0
    noise_range: float = 0.0


def tableau(rows: Sequence[TableauRow]) -> Tableau:
    """Stack rows into columns; the depth of the history is the largest that any row needs."""

    def column(name: str) -> np.ndarray:
        return np.array([getattr(row, name) for row in rows], np.float64)

    weights = np.zeros((len(rows), DEPTH))
    for padded, row in zip(weights, rows):
        padded[: len(row.history_weights)] = row.history_weights
    depth = 1 + int(np.max(np.nonzero(weights)[1], initial=0))
    return Tableau(
        timestep=column("timestep"),
        level=Level(np.array([row.level.alpha for row in rows]), np.array([row.level.sigma for row in rows])),
        guidance_scale=np.ones(len(rows)),
        xt_coef=column("xt_coef"),
        x0_coef=column("x0_coef"),
        eps_coef=column("eps_coef"),
        history_weights=weights[:, :depth],
        noise_coef=column("noise_coef"),
        noise_range=column("noise_range"),
        active=np.ones(len(rows), bool),
    )


def stack_tableaux(tableaux: Sequence[Tableau], rows: int, *, dtype: type = np.float32) -> Tableau:
    """One tableau for a batch in which each image has its own, padded with inactive rows to ``rows``.

    Returns fields of (rows, b) and history_weights of (rows, DEPTH, b), in ``dtype``.
    """
    padded_tableaux = {id(tableau): _pad_rows(tableau, rows) for tableau in tableaux}

    def stack_column(*values: np.ndarray) -> np.ndarray:
        column = np.stack(values, axis=-1)
        return column if column.dtype == bool else column.astype(dtype)

    return jax.tree.map(stack_column, *(padded_tableaux[id(tableau)] for tableau in tableaux))


def _pad_rows(tableau: Tableau, rows: int) -> Tableau:
    """Append rows that return xt unchanged."""
    depth = tableau.history_weights.shape[1]
    tableau = replace(tableau, history_weights=np.pad(tableau.history_weights, ((0, 0), (0, DEPTH - depth))))
    zero, unit = np.zeros(1), np.ones(1)
    inactive_row = replace(
        jax.tree.map(lambda column: column[-1:], tableau),
        guidance_scale=unit,
        xt_coef=unit,
        x0_coef=zero,
        eps_coef=zero,
        history_weights=np.zeros((1, DEPTH)),
        noise_coef=zero,
        noise_range=zero,
        active=np.zeros(1, bool),
    )
    return jax.tree.map(
        lambda column, padding: np.concatenate([column, np.repeat(padding, rows - len(column), axis=0)]),
        tableau,
        inactive_row,
    )


def with_guidance(tableau: Tableau, scale: float, *, low: float = -np.inf, high: float = np.inf) -> Tableau:
    """The tableau with a guidance scale, 1 where the log SNR is outside [low, high] [interval]."""
    logsnr = tableau.level.logsnr
    return replace(tableau, guidance_scale=np.where((logsnr >= low) & (logsnr <= high), scale, 1.0))
