"""Schedules and spacings against the papers' formulas and against figures of other libraries (goldens.json)."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from jdiff.diffusion.schedules import SCHEDULES, SPACINGS, cosine, linear, scaled_linear
from tests import truths

GOLDENS = json.loads((Path(__file__).parent / "goldens.json").read_text())


def test_equation_1_linear_alpha_bar():
    """Equation (1) of schedules, against a product written out and against another library's float64 figures."""
    schedule = linear(1000)
    for t, alpha_bar in zip(GOLDENS["linear"]["t"], GOLDENS["linear"]["alpha_bar"]):
        np.testing.assert_allclose(schedule.alpha_bar[t], alpha_bar, rtol=1e-12)
        np.testing.assert_allclose(schedule.alpha_bar[t], truths.linear_alpha_bar(t), rtol=1e-12)


def test_scaled_linear_is_stable_diffusions():
    expected = {0: 0.99915, 100: 0.89422348, 500: 0.27633268, 999: 0.0046600985}
    for t, alpha_bar in expected.items():
        np.testing.assert_allclose(scaled_linear(1000).alpha_bar[t], alpha_bar, rtol=1e-7)


def test_equation_2_cosine():
    """Equation (2): below the cap on beta, alpha_bar is the cosine itself."""
    alpha_bar = cosine(1000).alpha_bar
    for t in (0, 100, 500, 900):
        f = [np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2 for u in (0.0, (t + 1) / 1000)]
        np.testing.assert_allclose(alpha_bar[t], f[1] / f[0], rtol=1e-12)
    np.testing.assert_allclose(alpha_bar[999], 2.4287669e-9, rtol=1e-6)


@pytest.mark.parametrize("name", SCHEDULES)
def test_laws_of_every_schedule(name):
    schedule = SCHEDULES[name](1000)
    assert schedule.timesteps == 1000
    assert np.all(np.diff(schedule.alpha_bar) < 0)
    assert schedule.alpha_bar[0] > 0.99
    assert 0 < schedule.alpha_bar[-1] < 0.01
    rates = schedule.rates(np.arange(1000))
    np.testing.assert_allclose(rates.alpha**2 + rates.sigma**2, 1, rtol=1e-12)
    clean = schedule.rates(np.array([-1]))
    assert clean.alpha == 1
    assert clean.sigma == 0
    on_device = schedule.level(jnp.array([0, 500, 999]))
    np.testing.assert_allclose(on_device.sigma, rates.sigma[[0, 500, 999]], rtol=1e-6)
    np.testing.assert_allclose(on_device.alpha, rates.alpha[[0, 500, 999]], rtol=1e-6)


def test_small_sigma_keeps_its_digits():
    """1 - alpha_bar is taken in float64: in float32 the first cosine level would lose three digits."""
    sigma = float(cosine(1000).level(jnp.array([0])).sigma[0])
    np.testing.assert_allclose(sigma**2, 4.128e-5, rtol=1e-3)


@pytest.mark.parametrize("key", [key for key in GOLDENS["timesteps"] if not key.endswith("1000")])
def test_spacings_equal_another_librarys(key):
    name, steps = key.rsplit("_", 1)
    assert SPACINGS[name](1000, int(steps)).tolist() == GOLDENS["timesteps"][key]


@pytest.mark.parametrize("name", SPACINGS)
@pytest.mark.parametrize("steps", [1, 7, 30, 150, 999, 1000])
def test_laws_of_every_spacing(name, steps):
    timesteps = SPACINGS[name](1000, steps)
    assert len(timesteps) == steps
    assert np.all(np.diff(timesteps) < 0)
    assert timesteps.min() >= 0
    assert timesteps.max() <= 999
    if name != "leading":
        assert timesteps[0] == 999
