"""With which power of the stride each method's error falls, on Gaussian data, whose flow has a closed form."""

from operator import itemgetter

import jax
import jax.numpy as jnp
import numpy as np

from jdiff.diffusion import exact, sampler
from jdiff.diffusion.solvers import SOLVERS
from jdiff.diffusion.tableau import Grid
from jdiff.levels import Level
from tests import truths

MEAN, STD = 0.3, 0.25
DETERMINISTIC = [name for name, solver in SOLVERS.items() if not solver.stochastic]
STOCHASTIC = [name for name, solver in SOLVERS.items() if solver.stochastic]


def stretch(name: str, n: int) -> Grid:
    """n steps from sigma / alpha = 3 to 0.3, even in the coordinate that the method integrates over."""
    if name in ("plms", "heun"):
        ratio = np.linspace(3.0, 0.3, n + 1)
    else:
        ratio = np.exp(np.linspace(np.log(3.0), np.log(0.3), n + 1))
    alpha = 1 / np.sqrt(1 + ratio**2)
    return Grid(np.arange(n, 0.0, -1), Level(alpha, ratio * alpha))


def of_images(name: str) -> np.ndarray:
    """The orders between three strides of a method without noise, in float64.

    Methods that look back begin with what is true of the levels before.
    """

    def flow(level):
        return MEAN * level.alpha + 1.3 * np.sqrt((level.alpha * STD) ** 2 + level.sigma**2)

    errors = []
    with jax.enable_x64(True):
        for n in (80, 160, 320) if name == "plms" else (20, 40, 80):
            chosen = stretch(name, n)
            tableau = SOLVERS[name].make_tableau(chosen)
            depth = tableau.history_weights.shape[1]
            known = 0 if name in ("heun", "ddim", "euler") else min(depth, SOLVERS[name].order)
            rest = jax.tree.map(itemgetter(slice(known, None)), tableau)
            history = []
            for i in range(known - 1, known - 1 - depth, -1):
                at = chosen.level_at(max(i, 0))
                x0, eps = truths.gaussian_answers(MEAN, STD)(flow(at), at.alpha, at.sigma)
                history.append(tableau.x0_coef[max(i, 0)] * x0 + tableau.eps_coef[max(i, 0)] * eps)
            gaussian = exact.mixture(jnp.array([[MEAN]]), jnp.array([STD]), jnp.array([1.0]))
            found, _ = sampler.sample(
                exact.denoiser(gaussian),
                rest,
                jnp.array([[flow(chosen.level_at(known))]]),
                keys=jax.random.split(jax.random.key(0), 1),
                history=jnp.array(history).reshape(depth, 1, 1),
            )
            errors.append(abs(float(found[0, 0]) - flow(chosen.level_at(n))))
    return np.log2(np.array(errors[:-1]) / errors[1:])


def of_distributions(name: str) -> np.ndarray:
    """The weak orders between three strides: of the variance at the end, and of the mean where it is off, without one
    random number."""
    errors = []
    for n in (40, 80, 160):
        chosen = stretch(name, n)
        first, last = chosen.level_at(0), chosen.level_at(n)
        start = (MEAN * first.alpha, (first.alpha * STD) ** 2 + first.sigma**2)
        found = truths.moments_of_rows(
            SOLVERS[name].make_tableau(chosen), MEAN, STD, truths.gaussian_answers(MEAN, STD), start
        )
        errors.append(np.abs(np.array(found) - (MEAN * last.alpha, (last.alpha * STD) ** 2 + last.sigma**2)).max())
    return np.log2(np.array(errors[:-1]) / errors[1:])
