"""The forward process and its posterior against Bayes' rule in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff.diffusion import process
from jdiff.diffusion.schedules import linear
from jdiff.levels import Level
from reference import papers


def test_equation_3_moments_of_diffuse():
    """Equation (3): mean alpha x0 and variance sigma^2 over many draws, at one level of its own per row."""
    level = Level(jnp.array([0.9, 0.3]), jnp.array([0.19**0.5, 0.91**0.5]))
    x0 = jnp.full((2, 200_000), 0.7)
    xt = process.diffuse(x0, jax.random.normal(jax.random.key(0), x0.shape), level)
    np.testing.assert_allclose(xt.mean(1), 0.7 * level.alpha, atol=0.01)
    np.testing.assert_allclose(xt.var(1), level.sigma**2, rtol=0.02)


def test_many_small_steps_are_one():
    """A thousand steps of q(xt | x_{t-1}) leave what equation (3) says of one jump."""
    beta = np.linspace(1e-4, 0.02, 1000)
    mean, variance = 1.0, 0.0
    for b in beta:
        mean, variance = mean * np.sqrt(1 - b), variance * (1 - b) + b
    rates = linear(1000).rates(np.array([999]))
    np.testing.assert_allclose([rates.alpha[0], rates.sigma[0] ** 2], [mean, variance], rtol=1e-10)


@pytest.mark.parametrize(("t", "s"), [(999, 998), (500, 499), (999, 899), (420, 400), (50, 0), (1, 0)])
def test_equation_4_posterior(t, s):
    """Equation (4), for strides of one and of many, against precisions added up."""
    schedule = linear(1000)
    x0, xt = 0.3, -1.2
    xt_coef, x0_coef, variance = process.posterior(schedule.rates(np.array(s)), schedule.rates(np.array(t)))
    truth = papers.gaussian_posterior(schedule.alpha_bar[t], schedule.alpha_bar[s], xt, x0)
    np.testing.assert_allclose((xt_coef * xt + x0_coef * x0, variance), truth, rtol=1e-9)
