"""Schedules and spacings against the papers' formulas and against numbers of other libraries (goldens.json)."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from jdiff.diffusion.schedules import SCHEDULES, cosine, linear, make, scaled_linear
from jdiff.diffusion.spacing import SPACINGS, trailing
from jdiff.levels import Level
from reference import papers

GOLDENS = json.loads((Path(__file__).parent / "goldens.json").read_text())


def test_equation_1_linear_alpha_bar():
    """Equation (1) of schedules, against a product written out and against another library's float64 numbers."""
    schedule = linear(1000)
    for t, alpha_bar in zip(GOLDENS["linear"]["t"], GOLDENS["linear"]["alpha_bar"]):
        np.testing.assert_allclose(schedule.alpha_bar[t], alpha_bar, rtol=1e-12)
        np.testing.assert_allclose(schedule.alpha_bar[t], papers.linear_alpha_bar(t), rtol=1e-12)


def test_scaled_linear_is_the_schedule_of_stable_diffusion():
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


DISCRETE, CONTINUOUS = ([name for name, forms in SCHEDULES.items() if forms[i]] for i in (0, 1))


@pytest.mark.parametrize("name", DISCRETE)
def test_laws_of_every_discrete_schedule(name):
    schedule = make(name)
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
    """1 - alpha_bar is computed in float64: in float32 the first cosine level would lose three digits."""
    sigma = float(cosine(1000).level(jnp.array([0])).sigma[0])
    np.testing.assert_allclose(sigma**2, 4.128e-5, rtol=1e-3)


@pytest.mark.parametrize("key", [key for key in GOLDENS["timesteps"] if not key.endswith("1000")])
def test_spacings_equal_those_of_another_library(key):
    name, steps = key.rsplit("_", 1)
    assert SPACINGS[name](linear(1000), int(steps)).tolist() == GOLDENS["timesteps"][key]


def test_trailing_strides_that_do_not_divide_are_rounded():
    """1000 - i 1000 / 30 to the nearest whole number, less one: 1000, 966.7, 933.3, 900, ..., 33.3."""
    timesteps = trailing(linear(1000), 30).tolist()
    assert timesteps[:4] == [999, 966, 932, 899]
    assert timesteps[-1] == 32


@pytest.mark.parametrize("name", SPACINGS)
@pytest.mark.parametrize("steps", [1, 7, 30, 150, 999, 1000])
def test_laws_of_every_spacing(name, steps):
    for schedule in (linear(1000), make("cosine", continuous=True), make("linear", zero_terminal_snr=True)):
        timesteps = SPACINGS[name](schedule, steps)
        assert len(timesteps) == steps
        assert np.all(np.diff(timesteps) < 0)
        assert timesteps.min() >= schedule.first
        assert timesteps.max() <= schedule.last
        if name != "leading":
            np.testing.assert_allclose(timesteps[0], schedule.last, rtol=1e-12)


def test_karras_and_logsnr_spacings_are_even_in_their_coordinate():
    schedule = make("linear")
    rates = schedule.rates(SPACINGS["karras"](schedule, 12))
    np.testing.assert_allclose(np.diff((rates.sigma / rates.alpha) ** (1 / 7), 2), 0, atol=1e-9)
    logsnr = schedule.rates(SPACINGS["logsnr"](schedule, 12)).logsnr
    np.testing.assert_allclose(np.diff(logsnr, 2), 0, atol=1e-9)


EVERY = [
    (name, {"continuous": continuous, "shift": shift, "zero_terminal_snr": zero})
    for continuous, names in ((False, DISCRETE), (True, CONTINUOUS))
    for name in names
    for shift in (1.0, 2.0)
    for zero in (False, True)
]


@pytest.mark.parametrize(("name", "options"), EVERY)
def test_laws_of_every_schedule(name, options):
    """Noise grows, alpha^2 + sigma^2 = 1, the log SNR gives back the timestep, and device and host agree."""
    for timesteps in (1000, 50):
        schedule = make(name, timesteps, **options)
        grid = np.linspace(schedule.first, schedule.last, 41)
        rates = schedule.rates(grid)
        np.testing.assert_allclose(rates.alpha**2 + rates.sigma**2, 1, rtol=1e-12)
        assert np.all(np.diff(rates.logsnr) < 0)
        assert (rates.alpha[-1] == 0) == options["zero_terminal_snr"]
        np.testing.assert_allclose(schedule.timestep(rates.logsnr), grid, atol=1e-5)
        timestep = jnp.asarray(grid if options["continuous"] else np.round(grid), jnp.float32)
        nearest = schedule.nearest_timestep(jnp.asarray(schedule.rates(np.asarray(timestep)).logsnr, jnp.float32))
        np.testing.assert_allclose(nearest, timestep, atol=1e-4 * timesteps if options["continuous"] else 0)
        host, device = schedule.rates(np.asarray(timestep, np.float64)), schedule.level(timestep)
        np.testing.assert_allclose(device.sigma, host.sigma, rtol=2e-6)
        # Close to pure noise, alpha is a small difference, of which float32 keeps four digits.
        np.testing.assert_allclose(device.alpha, host.alpha, rtol=2e-4)


@pytest.mark.parametrize("options", [{}, {"zero_terminal_snr": True}])
@pytest.mark.parametrize(("continuous", "name"), [(False, n) for n in DISCRETE] + [(True, n) for n in CONTINUOUS])
def test_nearest_timestep_of_a_log_snr_beyond_the_ends_is_the_end(continuous, name, options):
    schedule = make(name, continuous=continuous, **options)
    nearest = schedule.nearest_timestep(jnp.array([60.0, -60.0]))
    last = schedule.last if continuous or not options else schedule.last - 1  # pure noise is infinitely far
    np.testing.assert_allclose(nearest, [schedule.first, last], rtol=1e-6)


# Each form with parameters of its own and the log SNR that it then ends with, by hand from (1), (13), (14) and (16).
PARAMETERS = [
    ("linear", False, {"beta_start": 0.01, "beta_end": 0.01}, np.log(1 / (0.99**-1000 - 1))),
    ("scaled_linear", False, {"beta_start": 0.01, "beta_end": 0.01}, np.log(1 / (0.99**-1000 - 1))),
    ("linear", True, {"beta_min": 2.0, "beta_max": 4.0}, -np.log(np.exp(3) - 1)),
    ("scaled_linear", True, {"beta_min": 3.0, "beta_max": 3.0 + 1e-9}, -np.log(np.exp(3) - 1)),
    ("cosine", True, {"logsnr_max": 12.0, "logsnr_min": -7.0}, -7.0),
    ("logsnr", False, {"logsnr_max": 12.0, "logsnr_min": -7.0}, -7.0),
    ("logsnr", True, {"logsnr_max": 12.0, "logsnr_min": -7.0}, -7.0),
]


@pytest.mark.parametrize(("name", "continuous", "parameters", "end"), PARAMETERS)
def test_parameters_reach_the_schedule(name, continuous, parameters, end):
    schedule = make(name, continuous=continuous, **parameters)
    np.testing.assert_allclose(schedule.rates(np.array(schedule.last)).logsnr, end, rtol=1e-6)


def test_offset_and_beta_max_reach_the_cosine_schedule():
    alpha_bar = make("cosine", offset=0.1, beta_max=0.5).alpha_bar
    f = [np.cos((u + 0.1) / 1.1 * np.pi / 2) ** 2 for u in (0.0, 0.5)]
    np.testing.assert_allclose(alpha_bar[499], f[1] / f[0], rtol=1e-12)
    np.testing.assert_allclose(alpha_bar[-1] / alpha_bar[-2], 0.5, rtol=1e-12)


def test_sigmoid_parameters_reach_both_forms():
    """Between a start and an end close to 0 the logistic function is nearly linear, and so is alpha_bar."""
    for continuous in (False, True):
        schedule = make("sigmoid", continuous=continuous, start=-0.01, end=0.01)
        half = schedule.rates(np.array(500.0 if continuous else 499.0))
        np.testing.assert_allclose(half.alpha**2, 0.5, rtol=1e-6)
        quarter = schedule.rates(np.array(250.0 if continuous else 249.0))
        np.testing.assert_allclose(quarter.alpha**2, 0.75, rtol=1e-4)


@pytest.mark.parametrize(("forms", "continuous"), [((linear, None), True), ((None, linear), False)])
def test_a_form_that_a_schedule_does_not_have_is_refused(monkeypatch, forms, continuous):
    monkeypatch.setitem(SCHEDULES, "single", forms)
    with pytest.raises(ValueError, match=f"'single'.*config.diffusion.continuous = {not continuous}"):
        make("single", continuous=continuous)
    make("single", continuous=not continuous)


def test_final_noise_level_does_not_depend_on_the_number_of_timesteps():
    for name in ("linear", "scaled_linear"):
        logsnr = [make(name, timesteps).rates(np.array([timesteps - 1])).logsnr[0] for timesteps in (1000, 20)]
        np.testing.assert_allclose(logsnr[1], logsnr[0], atol=0.1)


def test_equation_13_is_the_limit_of_many_timesteps():
    for name in ("linear", "scaled_linear"):
        table, limit = make(name), make(name, continuous=True)
        timestep = np.array([99, 499, 999])
        np.testing.assert_allclose(limit.rates(timestep + 1.0).logsnr, table.rates(timestep).logsnr, rtol=2e-2)


def test_equation_14_to_16_by_hand():
    u = np.array([0.1, 0.5, 0.8])
    half = make("cosine", continuous=True).rates(np.array([500.0]))
    np.testing.assert_allclose(half.logsnr, 0, atol=1e-12)
    logistic = 1 / (1 + np.exp(-(-3 + 6 * u)))
    ends = [1 / (1 + np.exp(3)), 1 / (1 + np.exp(-3))]
    noise = (logistic - ends[0]) / (ends[1] - ends[0])
    np.testing.assert_allclose(make("sigmoid", continuous=True).rates(1000 * u).sigma ** 2, noise, rtol=1e-12)
    np.testing.assert_allclose(make("logsnr", continuous=True).rates(1000 * u).logsnr, 10 - 20 * u, rtol=1e-12)


def test_equation_17_shift_multiplies_the_ratio_of_noise_to_signal():
    for continuous in (False, True):
        timestep = np.array([100.0, 600.0])
        plain, larger = (make("linear", continuous=continuous, shift=shift).rates(timestep) for shift in (1.0, 4.0))
        np.testing.assert_allclose(larger.sigma / larger.alpha, 4 * plain.sigma / plain.alpha, rtol=1e-9)


@pytest.mark.parametrize("name", CONTINUOUS)
def test_levels_close_to_pure_noise_are_finite(name):
    """In float32, where alpha is smaller than the rounding of 1 - alpha."""
    schedule = make(name, continuous=True, zero_terminal_snr=True)
    rates = schedule.rates(schedule.last * (1 - jnp.logspace(-8, -3, 2001)))
    assert bool(jnp.all(rates.alpha >= 0) & jnp.all(rates.sigma > 0.9) & jnp.all(rates.alpha < 0.1))


def test_equation_18_zero_terminal_snr():
    """Numbers of another library for the linear schedule; the first timestep keeps its level."""
    rescaled_alpha_bar = make("linear", zero_terminal_snr=True).alpha_bar
    expected = {0: 0.9999, 10: 0.997793, 100: 0.89449, 500: 0.0752462, 900: 1.03038e-4, 990: 3.67139e-7, 999: 0}
    for t, alpha_bar in expected.items():
        np.testing.assert_allclose(rescaled_alpha_bar[t], alpha_bar, rtol=1e-5, atol=1e-15)
    ends = make("linear", continuous=True, zero_terminal_snr=True).rates(np.array([0.0, 1000.0]))
    assert ends.alpha[0] == 1 and ends.alpha[1] == 0


def test_log_snr_of_pure_ends():
    assert Level(np.array(1.0), np.array(0.0)).logsnr == np.inf
    assert Level(np.array(0.0), np.array(1.0)).logsnr == -np.inf
