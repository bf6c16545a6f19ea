"""Sampling methods as rows of coefficients.

One step from level t to the cleaner level s is, for every method here,

    d_k = x0_coef x0 + eps_coef eps,
    xs = xt_coef xt + sum_j history_weights_j d_(k-j) + noise_coef z,   z ~ N(0, 1),                             (9)

with d_(k-j) the d of j rows before. A method that evaluates the network twice in a step takes two rows.

    DDPM  q(xs | xt, x0), equation (4), with the estimated x0                                  [ddpm eq. 7]    (10)
          noise_coef^2 = the posterior's variance ("small"); v of (4) ("large"); between the logs of the two,
          where the network predicts ("learned") [iddpm eq. 15]; or with the uncertainty of x0 added,
          small + x0_coef^2 Var[x0 | xt] ("analytic") [analytic eq. 7]
    DDIM  alpha_s x0 + sqrt(sigma_s^2 - noise_coef^2) eps, noise_coef = eta sqrt(small)        [ddim eq. 12, 16] (11)

The others integrate the probability-flow ODE, which in two coordinates has no linear part:

    d(xt / alpha) / d(sigma / alpha) = eps                                                     [ddim eq. 14]   (19)
    d(xt / sigma) / d lambda = exp(lambda) x0,   lambda = logsnr / 2                           [dpmpp eq. 8]   (20)

    Euler            one point of (19): the DDIM of eta 0
    Heun             the trapezium of (19), from Euler's end                                   [edm alg. 1]    (21)
    Adams-Bashforth  the polynomial through the last four eps, integrated over (19); on even   [plms eq. 12]   (22)
                     strides of sigma / alpha these are the weights (55, -59, 37, -9) / 24
    DPM-Solver++     the polynomial through the last x0, integrated over (20); 2M halves the   [dpmpp alg. 2]  (23)
                     second moment as published, which keeps its order
    UniPC            the same, and each step corrected with the x0 estimated at its end        [unipc alg. 1]  (24)

or the reverse SDE dx = (-x/2 - score) dB + dw in B = -log alpha^2, with the same marginal distributions as the ODE:

    Euler-Maruyama   xt (1 + B/2) - B eps / sigma + sqrt(B) z, B = log(alpha_s^2/alpha_t^2)    [sde eq. 6, 32] (25)
    Euler-ancestral  Euler to a level below and noise up again: the DDIM of eta 1              [kdiffusion]    (26)
    SDE-DPM-Solver++ 2M  (23) with the noise of (10)                                           [dpmpp sec. 5]  (27)

Published 3M weights halve the second divided difference, in every library we read, and are of order 2; here 3M
integrates the quadratic itself, and is of order 3.

Strides are of any length. The final step ends at the clean image, alpha = 1, or at timestep 0 where Stable Diffusion
ends (final_step_to_zero=False). A step to the clean image is of first order in (20), whose end is at infinity: it
returns the last x0. A first step from pure noise, an SNR below 1e-6, where the coordinate of (19) is infinite or nearly
so, is of first order too: in every method it is DDIM's, of eta 1 in methods that add noise, and no later step uses its
d. Tables are computed in float64 on the host.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import hyp1f1

from jdiff.diffusion import process
from jdiff.diffusion.tableau import DEPTH, Grid, Tableau, TableauRow, tableau

VARIANCES = ("small", "large", "learned", "analytic")


def ddpm(grid: Grid, *, variance: str = "small", denoising_mse: Callable | None = None) -> Tableau:
    """Ancestral sampling, equation (10).

    variance: "small" is exact for data that is one point, "large" for data that is unit noise; real data is in
        between [ddpm sec. 3.2], and the choice matters more the fewer the steps. "learned" is predicted by the network.
    denoising_mse: level -> the mean over dimensions of Var[x0 | xt], which "analytic" needs.
    """
    rows = []
    for i in grid.steps:
        level, cleaner = grid.level_at(i), grid.level_at(i + 1)
        xt_coef, x0_coef, small = process.posterior(cleaner, level)
        large = process.added_variance(cleaner, level)
        row = TableauRow(grid.timestep[i], level, xt_coef, x0_coef)
        if cleaner.sigma > 0:
            noise = large if variance == "large" else small
            if variance == "analytic":
                # ``Settings.tableau`` refuses an analytic variance without its denoising error.
                noise = small + x0_coef**2 * float(denoising_mse(level))  # pyright: ignore[reportOptionalCall]
            row.noise_coef = np.sqrt(noise)
            row.noise_range = np.log(large / small) / 2 if variance == "learned" else 0.0
        rows.append(row)
    return tableau(rows)


def ddim(grid: Grid, *, eta: float = 0.0) -> Tableau:
    """DDIM, equation (11): eta 0 follows the probability-flow ODE without noise, eta 1 is DDPM of small variance."""
    return tableau([_ddim_row(grid, i, eta) for i in grid.steps])


def _ddim_row(grid: Grid, i: int, eta: float) -> TableauRow:
    level, cleaner = grid.level_at(i), grid.level_at(i + 1)
    noise = eta * np.sqrt(process.posterior(cleaner, level)[2])
    direction = np.sqrt(np.maximum(cleaner.sigma**2 - noise**2, 0))
    return TableauRow(grid.timestep[i], level, x0_coef=cleaner.alpha, eps_coef=direction, noise_coef=noise)


def euler(grid: Grid) -> Tableau:
    """Euler's method on (19), which is DDIM of eta 0."""
    return ddim(grid)


def euler_ancestral(grid: Grid) -> Tableau:
    """Euler to a level below and noise up to the next, (26), which is DDIM of eta 1."""
    return ddim(grid, eta=1.0)


def heun(grid: Grid) -> Tableau:
    """Heun's method on (19), equation (21): two rows a step, except from pure noise and to the clean image."""
    sigma, rows = grid.edm_sigma, []
    for i in grid.steps:
        if i < grid.num_pure_noise:
            rows.append(_ddim_row(grid, i, 0.0))
            continue
        level, cleaner = grid.level_at(i), grid.level_at(i + 1)
        move = cleaner.alpha * (sigma[i + 1] - sigma[i])
        rows.append(
            TableauRow(grid.timestep[i], level, cleaner.alpha / level.alpha, eps_coef=1.0, history_weights=[move])
        )
        if sigma[i + 1] > 0 and i + 1 in grid.steps:
            rows.append(
                TableauRow(grid.timestep[i + 1], cleaner, 1.0, eps_coef=1.0, history_weights=[move / 2, -move / 2])
            )
    return tableau(rows)


def plms(grid: Grid) -> Tableau:
    """Adams-Bashforth on (19), equation (22), of order 4 once the history has four eps."""
    sigma, rows, first = grid.edm_sigma, [], grid.num_pure_noise
    for i in grid.steps:
        if i < first:
            rows.append(_ddim_row(grid, i, 0.0))
            continue
        level, cleaner = grid.level_at(i), grid.level_at(i + 1)
        lags = np.arange(min(DEPTH, i - first + 1))
        move = sigma[i + 1] - sigma[i]
        weights = _quadrature((sigma[i - lags] - sigma[i]) / move, 1 / (lags + 1))
        xt_coef = cleaner.alpha / level.alpha
        rows.append(
            TableauRow(grid.timestep[i], level, xt_coef, eps_coef=1.0, history_weights=cleaner.alpha * move * weights)
        )
    return tableau(rows)


def dpmpp_2m(grid: Grid) -> Tableau:
    """Multistep DPM-Solver++ 2M, equation (23), as published."""
    return _exponential(grid, 2)


def dpmpp_3m(grid: Grid) -> Tableau:
    """Multistep DPM-Solver++ 3M, equation (23): the quadratic through three x0."""
    return _exponential(grid, 3)


def unipc_2(grid: Grid) -> Tableau:
    """UniPC of order 2, equation (24): DPM-Solver++ 2M with a corrector."""
    return _exponential(grid, 2, corrected=True)


def unipc_3(grid: Grid) -> Tableau:
    """UniPC of order 3, equation (24): DPM-Solver++ 3M with a corrector."""
    return _exponential(grid, 3, corrected=True)


def _exponential(grid: Grid, order: int, *, corrected: bool = False) -> Tableau:
    """(23), or with the corrector of (24).

    The corrector of a step is part of the row after it, which subtracts the prediction of the step and adds its
    correction: xs = sigma_s/sigma_t (xt + alpha_t (correction - prediction)) + alpha_s prediction.
    """
    lam = np.asarray(grid.level.logsnr) / 2
    rows: list[TableauRow] = []
    first, n = grid.num_pure_noise, len(grid.timestep)
    predicted = np.zeros(DEPTH)
    for i in grid.steps:
        level, cleaner = grid.level_at(i), grid.level_at(i + 1)
        move = lam[i + 1] - lam[i]
        remaining_steps = n - i if np.isinf(lam[n]) else order
        num_x0 = 1 if i < first else min(order, i - first + 1, remaining_steps)
        weights = np.zeros(DEPTH)
        if i - 1 >= first and corrected:
            last_move = lam[i] - lam[i - 1]
            order_before = int(np.count_nonzero(predicted))
            nodes = np.append(1.0, (lam[i - 1 - np.arange(order_before)] - lam[i - 1]) / last_move)
            moments = _moments(last_move, order_before + 1, halve_second=order_before == 1)
            weights[: order_before + 1] = _quadrature(nodes, moments)
            weights[1:] -= predicted[:-1]
            weights *= cleaner.sigma / level.sigma * level.alpha
        predicted = np.zeros(DEPTH)
        if num_x0 == 1:
            predicted[0] = -np.expm1(-move)
        else:
            nodes = (lam[i - np.arange(num_x0)] - lam[i]) / move
            predicted[:num_x0] = _quadrature(nodes, _moments(move, num_x0, halve_second=num_x0 == 2))
        weights += cleaner.alpha * predicted
        rows.append(
            TableauRow(grid.timestep[i], level, cleaner.sigma / level.sigma, x0_coef=1.0, history_weights=weights)
        )
    return tableau(rows)


def euler_maruyama(grid: Grid) -> Tableau:
    """Euler-Maruyama on the reverse SDE, equation (25); the last step, to the clean image, returns x0 itself."""
    rows = []
    for i in grid.steps:
        level, cleaner = grid.level_at(i), grid.level_at(i + 1)
        if i < grid.num_pure_noise or cleaner.sigma == 0:
            rows.append(_ddim_row(grid, i, 1.0))
            continue
        b = 2 * np.log(cleaner.alpha / level.alpha)
        rows.append(
            TableauRow(
                grid.timestep[i],
                level,
                1 + b / 2,
                eps_coef=1.0,
                history_weights=[-b / level.sigma],
                noise_coef=np.sqrt(b),
            )
        )
    return tableau(rows)


def dpmpp_2m_sde(grid: Grid) -> Tableau:
    """SDE-DPM-Solver++ 2M, equation (27), as published."""
    lam, rows, first = np.asarray(grid.level.logsnr) / 2, [], grid.num_pure_noise
    for i in grid.steps:
        level, cleaner = grid.level_at(i), grid.level_at(i + 1)
        move = lam[i + 1] - lam[i]
        gain = -np.expm1(-2 * move)
        weights = np.array([1.0, 0.0])
        if i - 1 >= first and np.isfinite(move):
            slope_weight = move / (lam[i] - lam[i - 1]) / 2
            weights = np.array([1 + slope_weight, -slope_weight])
        rows.append(
            TableauRow(
                grid.timestep[i],
                level,
                cleaner.sigma / level.sigma * np.exp(-move),
                x0_coef=1.0,
                history_weights=cleaner.alpha * gain * weights,
                noise_coef=cleaner.sigma * np.sqrt(gain),
            )
        )
    return tableau(rows)


def _quadrature(nodes: np.ndarray, moments: np.ndarray) -> np.ndarray:
    """Weights of values at ``nodes`` that integrate the polynomial through them. moments: integrals of 1, u, u^2."""
    return np.linalg.solve(np.vander(nodes, increasing=True).T, moments)


def _moments(move: float, count: int, *, halve_second: bool = False) -> np.ndarray:
    """The integrals over u in [0, 1] of move exp(-move (1 - u)) u^k, k < count, by Kummer's function.

    halve_second: replace the second moment by half of the first, which is what both papers publish for two nodes.
    """
    k = np.arange(count)
    moments = move / (k + 1) * hyp1f1(1, k + 2, -move)
    if halve_second:
        moments[1] = moments[0] / 2
    return moments


@dataclass(frozen=True)
class Solver:
    """A sampling method and its order of convergence.

    make_tableau: (grid, **options) -> tableau.
    order: the power of the stride by which its error falls, from exact starting values: the error of an image for a
        deterministic method, of the distribution for a stochastic one (weak order).
    options: the keywords that make_tableau takes.
    """

    make_tableau: Callable[..., Tableau]
    order: int
    stochastic: bool = False
    options: tuple[str, ...] = ()


SOLVERS = {
    "ddpm": Solver(ddpm, 1, stochastic=True, options=("variance", "denoising_mse")),
    "ddim": Solver(ddim, 1, options=("eta",)),
    "euler": Solver(euler, 1),
    "heun": Solver(heun, 2),
    "euler_maruyama": Solver(euler_maruyama, 1, stochastic=True),
    "euler_ancestral": Solver(euler_ancestral, 1, stochastic=True),
    "plms": Solver(plms, 4),
    "dpmpp_2m": Solver(dpmpp_2m, 2),
    "dpmpp_3m": Solver(dpmpp_3m, 3),
    "dpmpp_2m_sde": Solver(dpmpp_2m_sde, 2, stochastic=True),
    "unipc_2": Solver(unipc_2, 2),
    "unipc_3": Solver(unipc_3, 3),
}
