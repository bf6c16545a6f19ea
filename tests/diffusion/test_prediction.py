"""Prediction types, their one solve, clipping and loss weightings."""

from itertools import product
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff.diffusion.prediction import (
    BLIND_AT_ZERO_SNR,
    PREDICTION_TYPES,
    Denoised,
    clipped,
    denoiser,
    solve,
    target,
)
from jdiff.diffusion.process import diffuse
from jdiff.diffusion.schedules import cosine
from jdiff.diffusion.weighting import WEIGHTINGS, select
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
    # The score of N(alpha x0, sigma^2) at xt; the velocity of a straight line from the image to the noise.
    np.testing.assert_allclose(target("score", X0, EPS, LEVEL), -(XT - alpha * X0) / sigma**2, rtol=1e-3, atol=2e-3)
    np.testing.assert_allclose(target("flow", X0, EPS, LEVEL), EPS - X0, rtol=1e-6)


@pytest.mark.parametrize("name", PREDICTION_TYPES)
def test_equation_6_solve_inverts_target(name):
    """Equation (6): the target gives back both the image and the noise, at every level."""
    x0, eps, _ = solve(name, target(name, X0, EPS, LEVEL), XT, LEVEL)
    # Dividing by a rate of 1e-2 or more costs up to two digits of float32.
    np.testing.assert_allclose(x0, X0, atol=2e-4)
    np.testing.assert_allclose(eps, EPS, atol=2e-4)


@pytest.mark.parametrize("name", PREDICTION_TYPES)
def test_equation_7_error_in_x0(name):
    """Equation (7): an error of the prediction is det / sigma times the error it causes in x0."""
    alpha, sigma = np.float64(LEVEL.alpha), np.float64(LEVEL.sigma)
    types = {"eps": (0, 1), "x0": (1, 0), "v": (-sigma, alpha), "score": (0, -1 / sigma), "flow": (-1, 1)}
    x0_coef, eps_coef = types[name]
    det = alpha * eps_coef - sigma * x0_coef
    x0 = solve(name, target(name, X0, EPS, LEVEL) + 0.1, XT, LEVEL).x0
    np.testing.assert_allclose(np.abs(x0 - X0).mean((1, 2, 3)), 0.1 * sigma / np.abs(det), rtol=1e-2)


# The weight of an error of each type, for s = SNR = alpha^2 / sigma^2: by [minsnr eq. 5]; by |x0 error| |eps error|.
WEIGHTS_BY_TYPE = {
    "min_snr": {"eps": lambda s: np.minimum(s, 9) / s, "x0": lambda s: np.minimum(s, 9)}
    | {"v": lambda s: np.minimum(s, 9) / (s + 1)},
    "root_snr": {"eps": lambda s: np.clip(s**0.5, 0.1, 9) / s, "x0": lambda s: np.clip(s**0.5, 0.1, 9)}
    | {"v": lambda s: np.clip(s**0.5, 0.1, 9) / (s + 1)},
}


@pytest.mark.parametrize("prediction_type", ["eps", "x0", "v"])
@pytest.mark.parametrize("name", WEIGHTS_BY_TYPE)
def test_weightings_by_hand(name, prediction_type):
    """At levels on both sides of the cap and of the floor; dividing v by SNR, a known mistake, would fail here."""
    alpha, sigma = np.float64(LEVEL.alpha), np.float64(LEVEL.sigma)
    expected = WEIGHTS_BY_TYPE[name][prediction_type]((alpha / sigma) ** 2)
    np.testing.assert_allclose(WEIGHTINGS[name](prediction_type, LEVEL, cap=9.0), expected, rtol=1e-4)


# The weight of an error of x0 as each paper states it, for s = SNR; of another type by equation (7).
WEIGHTS_IN_X0 = {
    "snr": lambda s: s,
    "p2": lambda s: s / (1 + s),
    "sigmoid": lambda s: s / (1 + s),  # S(-log s) = 1 / (1 + s) in eps
    "edm": lambda s: (1 / s + 0.25) / (1 / s * 0.25),
    "min_snr": lambda s: np.minimum(s, 5),
    "root_snr": lambda s: np.clip(s**0.5, 0.1, 2),
}


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("name", WEIGHTS_IN_X0)
def test_weightings_of_an_error_of_x0_are_as_published(name, prediction_type):
    alpha, sigma = np.float64(LEVEL.alpha), np.float64(LEVEL.sigma)
    x0_coef, eps_coef = PREDICTION_TYPES[prediction_type](Level(alpha, sigma))
    per_x0 = ((alpha * eps_coef - sigma * x0_coef) / sigma) ** 2
    expected = WEIGHTS_IN_X0[name]((alpha / sigma) ** 2) / per_x0
    np.testing.assert_allclose(WEIGHTINGS[name](prediction_type, LEVEL), expected, rtol=1e-3)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_select_takes_the_weighting_at_a_traced_index(prediction_type):
    weightings = list(WEIGHTINGS.values())
    rows = jax.vmap(lambda index: select(weightings, index)(prediction_type, LEVEL))(jnp.arange(len(weightings)))
    for row, weighting in zip(rows, weightings):
        np.testing.assert_array_equal(row, weighting(prediction_type, LEVEL))


# At pure noise any finite error of eps is an infinite one of x0, so a weight stated for x0 is infinite for these types.
INFINITE = {(name, blind) for name in ("edm", "root_snr") for blind in BLIND_AT_ZERO_SNR}
FINITE = [pair for pair in product(WEIGHTINGS, PREDICTION_TYPES) if pair not in INFINITE]


@pytest.mark.parametrize(("name", "prediction_type"), FINITE)
def test_weightings_are_finite_at_pure_noise(name, prediction_type):
    noise = Level(jnp.zeros(1), jnp.ones(1))
    weight = WEIGHTINGS[name](prediction_type, noise)
    assert jnp.isfinite(weight).all() and (weight >= 0).all()


def test_dynamic_thresholding_divides_by_the_percentile():
    x0 = jnp.asarray(np.linspace(-4, 2, 12).reshape(1, 2, 2, 3), jnp.float32).repeat(4, 0)
    percentile = jnp.array([0.0, 50.0, 90.0, 100.0])
    thresholded_x0 = clipped(Denoised(x0, x0), XT, LEVEL, percentile=percentile).x0
    for i, p in enumerate(percentile):
        threshold = max(1.0, np.percentile(np.abs(x0[i]), p)) if p > 0 else 1.0
        np.testing.assert_allclose(thresholded_x0[i], np.clip(x0[i], -threshold, threshold) / threshold, rtol=1e-5)
    np.testing.assert_array_equal(clipped(Denoised(x0, x0), XT, LEVEL, clip_mask=jnp.zeros(4, bool)).x0, x0)


def test_clipping_derives_eps_anew():
    """After clipping, the pair still explains xt: alpha x0 + sigma eps = xt."""

    def predict(xt, timestep):
        return jnp.full_like(xt, 0.5)

    row = SimpleNamespace(timestep=jnp.zeros(4), level=LEVEL)
    x0, eps, _ = clipped(denoiser(predict, "eps")(XT, row), XT, LEVEL)
    assert jnp.abs(x0).max() <= 1
    wide = LEVEL.broadcast_like(XT)
    np.testing.assert_allclose(wide.alpha * x0 + wide.sigma * eps, XT, atol=1e-5)
    assert jnp.abs(eps - 0.5).max() > 0.1
