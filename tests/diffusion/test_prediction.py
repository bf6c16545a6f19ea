"""The table of prediction types, and its one solve."""

import jax.numpy as jnp
import numpy as np
import pytest

from jdiff.diffusion.prediction import PREDICTION_TYPES, WEIGHTINGS, clipped, denoiser, solve, target
from jdiff.diffusion.process import diffuse
from jdiff.diffusion.schedules import cosine
from jdiff.levels import Level

LEVEL = cosine(1000).level(jnp.array([5, 300, 700, 990]))
GENERATOR = np.random.default_rng(0)
X0 = jnp.asarray(GENERATOR.uniform(-1, 1, (4, 2, 2, 3)), jnp.float32)
EPS = jnp.asarray(GENERATOR.standard_normal((4, 2, 2, 3)), jnp.float32)
XT = diffuse(X0, EPS, LEVEL)


def test_equation_5_targets_by_name():
    """Equation (5), each type as its own paper writes it."""
    alpha, sigma = (np.asarray(rate)[:, None, None, None] for rate in (LEVEL.alpha, LEVEL.sigma))
    np.testing.assert_array_equal(target("eps", X0, EPS, LEVEL), EPS)
    np.testing.assert_array_equal(target("x0", X0, EPS, LEVEL), X0)
    np.testing.assert_allclose(target("v", X0, EPS, LEVEL), alpha * EPS - sigma * X0, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", PREDICTION_TYPES)
def test_equation_6_solve_inverts_target(name):
    """Equation (6): from a right answer, both the image and the noise come back, at every level."""
    answer = target(name, X0, EPS, LEVEL)
    x0, eps = solve(name, answer, XT, LEVEL)
    # Dividing by a rate of 1e-2 or more costs up to two digits of float32.
    np.testing.assert_allclose(x0, X0, atol=2e-4)
    np.testing.assert_allclose(eps, EPS, atol=2e-4)


@pytest.mark.parametrize("name", PREDICTION_TYPES)
def test_equation_7_error_in_x0(name):
    """Equation (7): an error of the answer is det / sigma times the error it makes in x0."""
    alpha, sigma = np.float64(LEVEL.alpha), np.float64(LEVEL.sigma)
    of_x0, of_eps = {"eps": (0, 1), "x0": (1, 0), "v": (-sigma, alpha)}[name]
    det = alpha * of_eps - sigma * of_x0
    x0, _ = solve(name, target(name, X0, EPS, LEVEL) + 0.1, XT, LEVEL)
    np.testing.assert_allclose(np.abs(x0 - X0).mean((1, 2, 3)), 0.1 * sigma / np.abs(det), rtol=1e-2)


# What an error of each type counts, for s = SNR = alpha^2 / sigma^2: by [minsnr eq. 5]; by |x0 error| |eps error|.
COUNTS = {
    "min_snr": {"eps": lambda s: np.minimum(s, 9) / s, "x0": lambda s: np.minimum(s, 9)}
    | {"v": lambda s: np.minimum(s, 9) / (s + 1)},
    "root_snr": {"eps": lambda s: np.clip(s**0.5, 0.1, 9) / s, "x0": lambda s: np.clip(s**0.5, 0.1, 9)}
    | {"v": lambda s: np.clip(s**0.5, 0.1, 9) / (s + 1)},
}


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("name", COUNTS)
def test_weightings_by_hand(name, prediction_type):
    """Levels on both sides of the cap and of the floor; eps and v divided alike, a known mistake, would fail here."""
    alpha, sigma = np.float64(LEVEL.alpha), np.float64(LEVEL.sigma)
    right = COUNTS[name][prediction_type]((alpha / sigma) ** 2)
    np.testing.assert_allclose(WEIGHTINGS[name](prediction_type, LEVEL, cap=9.0), right, rtol=1e-4)


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_weightings_are_finite_at_pure_noise(name):
    noise = Level(jnp.zeros(1), jnp.ones(1))
    assert jnp.isfinite(WEIGHTINGS[name]("x0", noise)).all()
    assert jnp.isfinite(WEIGHTINGS[name]("v", noise)).all()


def test_clipping_derives_eps_anew():
    """After clipping, the pair still explains xt: alpha x0 + sigma eps = xt."""

    def predict(xt, timestep):
        return jnp.full_like(xt, 0.5)

    denoise = clipped(denoiser(predict, "eps"))
    x0, eps = denoise(XT, jnp.zeros(4), LEVEL)
    assert jnp.abs(x0).max() <= 1
    wide = LEVEL.over(XT)
    np.testing.assert_allclose(wide.alpha * x0 + wide.sigma * eps, XT, atol=1e-5)
    assert jnp.abs(eps - 0.5).max() > 0.1
