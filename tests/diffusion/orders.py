"""Runs every solver on the Gaussian data of ``reference.orders``, and observes its order of convergence."""

from operator import itemgetter

import jax
import jax.numpy as jnp
import numpy as np

from jdiff.diffusion import exact, sampler
from jdiff.diffusion.solvers import SOLVERS
from jdiff.diffusion.tableau import Grid
from jdiff.levels import Level
from reference import orders, papers
from reference.orders import MEAN, STD

DETERMINISTIC = [name for name, solver in SOLVERS.items() if not solver.stochastic]
STOCHASTIC = [name for name, solver in SOLVERS.items() if solver.stochastic]


def stretch(name, n):
    """n steps of ``orders.stretch``, even in the coordinate that the method integrates over."""
    return Grid(np.arange(n, 0.0, -1), Level(*orders.stretch(n, even_in_ratio=name in ("plms", "heun"))))


def of_images(name):
    """The orders between three strides of a method without noise.

    Multistep methods start from the exact answers at the levels before.
    """
    errors = []
    with jax.enable_x64(True):
        for n in (80, 160, 320) if name == "plms" else (20, 40, 80):
            grid = stretch(name, n)
            tableau = SOLVERS[name].make_tableau(grid)
            depth = tableau.history_weights.shape[1]
            first = 0 if name in ("heun", "ddim", "euler") else min(depth, SOLVERS[name].order)
            history = []
            for i in range(first - 1, first - 1 - depth, -1):
                level = grid.level_at(max(i, 0))
                xt = orders.flow(level.alpha, level.sigma)
                x0, eps = papers.gaussian_answers(MEAN, STD)(xt, level.alpha, level.sigma)
                history.append(tableau.x0_coef[max(i, 0)] * x0 + tableau.eps_coef[max(i, 0)] * eps)
            start, end = grid.level_at(first), grid.level_at(n)
            result, _ = sampler.sample(
                exact.denoiser(exact.mixture(jnp.array([[MEAN]]), jnp.array([STD]), jnp.array([1.0]))),
                jax.tree.map(itemgetter(slice(first, None)), tableau),
                jnp.array([[orders.flow(start.alpha, start.sigma)]]),
                keys=jax.random.split(jax.random.key(0), 1),
                history=jnp.array(history).reshape(depth, 1, 1),
            )
            errors.append(abs(float(result[0, 0]) - orders.flow(end.alpha, end.sigma)))
    return orders.observed_orders(errors)


def of_distributions(name):
    """The weak orders between three strides, of the mean and variance at the end, which are computed exactly."""
    errors = []
    for n in (40, 80, 160):
        grid = stretch(name, n)
        start, end = (orders.moments(level.alpha, level.sigma) for level in (grid.level_at(0), grid.level_at(n)))
        answers = papers.gaussian_answers(MEAN, STD)
        moments = papers.moments_of_rows(SOLVERS[name].make_tableau(grid), MEAN, STD, answers, start)
        errors.append(np.abs(np.array(moments) - end).max())
    return orders.observed_orders(errors)
