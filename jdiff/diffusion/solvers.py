"""Sampling methods as rows of coefficients.

One step from level t to the cleaner level s is, for every method here,

    d_k = x0_coef x0 + eps_coef eps,   xs = xt_coef xt + sum_j weights_j d_(k-j) + noise_coef z,  z ~ N(0, 1),  (9)

with d_(k-j) what the rows before found. A method that asks twice in a step takes two rows.

    DDPM  q(xs | xt, x0), equation (4), with x0 as found                                       [ddpm eq. 7]    (10)
          noise_coef^2 = the posterior's variance ("small"); v of (4) ("large"); between the two as the network
          says, in the log ("learned") [iddpm eq. 15]; or the posterior's and what is unknown of x0,
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
    UniPC            the same, and each step once more with what was found at its end          [unipc alg. 1]  (24)

or the reverse SDE dx = (-x/2 - score) dB + dw in B = -log alpha^2, of whose ends the ODE has the same:

    Euler-Maruyama   xt (1 + B/2) - B eps / sigma + sqrt(B) z, B = log(alpha_s^2/alpha_t^2)    [sde eq. 6, 32] (25)
    Euler-ancestral  Euler to a level below and noise up again: the DDIM of eta 1              [kdiffusion]    (26)
    SDE-DPM-Solver++ 2M  (23) with the noise of (10)                                           [dpmpp sec. 5]  (27)

Published 3M weights count the second divided difference half, in every library we read, and are of order 2; here 3M is
the quadratic itself, of order 3.

Strides are of any length; the step after the last timestep ends at the clean image, alpha = 1, unless it is said to be
timestep 0, where Stable Diffusion ends. A step to the clean image is of first order in (20), whose end lies at
infinity: it gives the last x0. So is a first step that begins at pure noise, an SNR below 1e-6, where (19) has no or
hardly a coordinate: in every method it is DDIM's, of eta 1 in methods that add noise, and no later step looks back.
Tables are made in float64 on the host.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import hyp1f1

from jdiff.diffusion import process
from jdiff.diffusion.tableau import DEPTH, Grid, Row, Tableau, tableau

VARIANCES = ("small", "large", "learned", "analytic")


def ddpm(grid: Grid, *, variance: str = "small", denoising_mse: Callable | None = None) -> Tableau:
    """Ancestral sampling, equation (10).

    variance: "small" suits data that is one point, "large" data that is unit noise; the truth lies
    between [ddpm sec. 3.2], and the choice matters more the fewer the steps. "learned" asks the network,
    "analytic" ``denoising_mse``: a function of levels that tells the mean over dimensions of Var[x0 | xt].
    """
    rows = []
    for i in grid.steps:
        level, cleaner = grid.at(i), grid.at(i + 1)
        xt_coef, x0_coef, small = process.posterior(cleaner, level)
        large = process.added_variance(cleaner, level)
        row = Row(grid.timestep[i], level, xt_coef, x0_coef)
        if cleaner.sigma > 0:
            noise = large if variance == "large" else small
            if variance == "analytic":
                noise = small + x0_coef**2 * float(denoising_mse(level))
            row.noise_coef = np.sqrt(noise)
            row.noise_range = np.log(large / small) / 2 if variance == "learned" else 0.0
        rows.append(row)
    return tableau(rows)


def ddim(grid: Grid, *, eta: float = 0.0) -> Tableau:
    """DDIM, equation (11): eta 0 follows the data's own flow without noise, eta 1 is DDPM with its small variance."""
    return tableau([_ddim_row(grid, i, eta) for i in grid.steps])


def _ddim_row(grid: Grid, i: int, eta: float) -> Row:
    level, cleaner = grid.at(i), grid.at(i + 1)
    noise = eta * np.sqrt(process.posterior(cleaner, level)[2])
    direction = np.sqrt(np.maximum(cleaner.sigma**2 - noise**2, 0))
    return Row(grid.timestep[i], level, x0_coef=cleaner.alpha, eps_coef=direction, noise_coef=noise)


def euler(grid: Grid) -> Tableau:
    """Euler's method on (19), which is the DDIM of eta 0."""
    return ddim(grid)


def euler_ancestral(grid: Grid) -> Tableau:
    """Euler down past the level and noise up to it, (26), which is the DDIM of eta 1."""
    return ddim(grid, eta=1.0)


def heun(grid: Grid) -> Tableau:
    """Heun's method on (19), equation (21): two rows a step, but for one that begins at pure noise or ends clean."""
    sigma, rows = grid.edm_sigma, []
    for i in grid.steps:
        if i < grid.pure:
            rows.append(_ddim_row(grid, i, 0.0))
            continue
        level, cleaner = grid.at(i), grid.at(i + 1)
        move = cleaner.alpha * (sigma[i + 1] - sigma[i])
        rows.append(Row(grid.timestep[i], level, cleaner.alpha / level.alpha, eps_coef=1.0, weights=[move]))
        if sigma[i + 1] > 0 and i + 1 in grid.steps:
            rows.append(Row(grid.timestep[i + 1], cleaner, 1.0, eps_coef=1.0, weights=[move / 2, -move / 2]))
    return tableau(rows)


def plms(grid: Grid) -> Tableau:
    """Adams-Bashforth on (19), equation (22), of order 4 once as many answers are known."""
    sigma, rows, first = grid.edm_sigma, [], grid.pure
    for i in grid.steps:
        if i < first:
            rows.append(_ddim_row(grid, i, 0.0))
            continue
        level, cleaner = grid.at(i), grid.at(i + 1)
        seen = np.arange(min(DEPTH, i - first + 1))
        move = sigma[i + 1] - sigma[i]
        weights = _quadrature((sigma[i - seen] - sigma[i]) / move, 1 / (seen + 1))
        xt_coef = cleaner.alpha / level.alpha
        rows.append(Row(grid.timestep[i], level, xt_coef, eps_coef=1.0, weights=cleaner.alpha * move * weights))
    return tableau(rows)


def dpmpp_2m(grid: Grid) -> Tableau:
    """DPM-Solver++ of two steps, equation (23), as published."""
    return _exponential(grid, 2)


def dpmpp_3m(grid: Grid) -> Tableau:
    """DPM-Solver++ of three steps, equation (23): the quadratic through three x0."""
    return _exponential(grid, 3)


def unipc_2(grid: Grid) -> Tableau:
    """UniPC of order 2, equation (24): DPM-Solver++ 2M, corrected."""
    return _exponential(grid, 2, corrected=True)


def unipc_3(grid: Grid) -> Tableau:
    """UniPC of order 3, equation (24): DPM-Solver++ 3M, corrected."""
    return _exponential(grid, 3, corrected=True)


def _exponential(grid: Grid, order: int, *, corrected: bool = False) -> Tableau:
    """(23), or with the correction (24).

    A corrected step is written into the row after it, which takes back the prediction and puts the correction there:
    xs = sigma_s/sigma_t (xt + alpha_t (correction - prediction)) + alpha_s prediction.
    """
    lam = grid.level.logsnr / 2
    rows: list[Row] = []
    first, n = grid.pure, len(grid.timestep)
    predicted = np.zeros(DEPTH)
    for i in grid.steps:
        level, cleaner = grid.at(i), grid.at(i + 1)
        move = lam[i + 1] - lam[i]
        left = n - i if np.isinf(lam[n]) else order
        use = 1 if i < first else min(order, i - first + 1, left)
        weights = np.zeros(DEPTH)
        if i - 1 >= first and corrected:
            behind = lam[i] - lam[i - 1]
            known = int(np.count_nonzero(predicted))
            nodes = np.append(1.0, (lam[i - 1 - np.arange(known)] - lam[i - 1]) / behind)
            weights[: known + 1] = _quadrature(nodes, _moments(behind, known + 1, halved=known == 1))
            weights[1:] -= predicted[:-1]
            weights *= cleaner.sigma / level.sigma * level.alpha
        predicted = np.zeros(DEPTH)
        if use == 1:
            predicted[0] = -np.expm1(-move)
        else:
            nodes = (lam[i - np.arange(use)] - lam[i]) / move
            predicted[:use] = _quadrature(nodes, _moments(move, use, halved=use == 2))
        weights += cleaner.alpha * predicted
        rows.append(Row(grid.timestep[i], level, cleaner.sigma / level.sigma, x0_coef=1.0, weights=weights))
    return tableau(rows)


def euler_maruyama(grid: Grid) -> Tableau:
    """The reverse SDE by Euler and Maruyama, equation (25); the last step, to the clean image, is x0 itself."""
    rows = []
    for i in grid.steps:
        level, cleaner = grid.at(i), grid.at(i + 1)
        if i < grid.pure or cleaner.sigma == 0:
            rows.append(_ddim_row(grid, i, 1.0))
            continue
        b = 2 * np.log(cleaner.alpha / level.alpha)
        rows.append(
            Row(grid.timestep[i], level, 1 + b / 2, eps_coef=1.0, weights=[-b / level.sigma], noise_coef=np.sqrt(b))
        )
    return tableau(rows)


def dpmpp_2m_sde(grid: Grid) -> Tableau:
    """SDE-DPM-Solver++ 2M, equation (27), as published."""
    lam, rows, first = grid.level.logsnr / 2, [], grid.pure
    for i in grid.steps:
        level, cleaner = grid.at(i), grid.at(i + 1)
        move = lam[i + 1] - lam[i]
        gain = -np.expm1(-2 * move)
        weights = np.array([1.0, 0.0])
        if i - 1 >= first and np.isfinite(move):
            back = move / (lam[i] - lam[i - 1]) / 2
            weights = np.array([1 + back, -back])
        rows.append(
            Row(
                grid.timestep[i],
                level,
                cleaner.sigma / level.sigma * np.exp(-move),
                x0_coef=1.0,
                weights=cleaner.alpha * gain * weights,
                noise_coef=cleaner.sigma * np.sqrt(gain),
            )
        )
    return tableau(rows)


def _quadrature(nodes: np.ndarray, moments: np.ndarray) -> np.ndarray:
    """Weights of values at ``nodes`` that integrate every polynomial of as many terms, given the powers' integrals."""
    return np.linalg.solve(np.vander(nodes, increasing=True).T, moments)


def _moments(move: float, count: int, *, halved: bool = False) -> np.ndarray:
    """The integrals over u in [0, 1] of move exp(-move (1 - u)) u^k, k < count, by Kummer's function.

    halved: the second as half of the first, which is what both papers publish for two nodes.
    """
    k = np.arange(count)
    found = move / (k + 1) * hyp1f1(1, k + 2, -move)
    if halved:
        found[1] = found[0] / 2
    return found


@dataclass(frozen=True)
class Solver:
    """A method and what it promises.

    order: the power of the stride that its error falls with, from exact starting values: of an image where nothing is
    random, else of the distribution (weak order).   options: which keywords it takes beside the grid.
    """

    rows: Callable[..., Tableau]
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
