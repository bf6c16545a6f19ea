"""The loss: its draws, its value for predictions known in closed form, and its report."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import ndtr

from jdiff import rng
from jdiff.diffusion import process, timestep_sampling
from jdiff.diffusion.gaussian_baseline import data_spectrum, gaussian_loss
from jdiff.diffusion.loss import BINS, EDGES, draw_timesteps_and_noise, loss, variational_bound
from jdiff.diffusion.prediction import PREDICTION_TYPES
from jdiff.diffusion.schedules import cosine, linear, make
from jdiff.diffusion.weighting import min_snr


def keys():
    return rng.example_keys(rng.stream(0, "noise"), 3, jnp.arange(20_000))


def test_draws_are_uniform_and_normal_and_belong_to_their_example():
    size = 16  # a multiple of the vector width, as images are: XLA rounds the remainder differently (jax 0.12)
    timestep, eps = draw_timesteps_and_noise(keys(), jnp.zeros((20_000, size)), linear(1000))
    assert timestep.min() == 0
    assert timestep.max() == 999
    np.testing.assert_allclose(timestep.mean(), 499.5, atol=4 * 1000 / np.sqrt(12 * 20_000))
    np.testing.assert_allclose([eps.mean(), eps.std()], [0, 1], atol=0.02)
    indices = jnp.array([17, 3, 1999])
    subset = draw_timesteps_and_noise(keys()[indices], jnp.zeros((3, size)), linear(1000))
    np.testing.assert_array_equal(timestep[indices], subset[0])
    np.testing.assert_array_equal(eps[indices], subset[1])


def test_linear_sampling_draws_noisy_timesteps_more_often():
    """P(t < k) = (k / T)^2, so a quarter of the timesteps gets 1, 3, 5, 7 sixteenths of the draws."""
    timestep, _ = draw_timesteps_and_noise(keys(), jnp.zeros((20_000, 1)), linear(1000), timestep_sampling.linear)
    assert timestep.min() >= 0
    assert timestep.max() == 999
    shares = np.histogram(timestep, bins=4, range=(0, 1000))[0] / 20_000
    np.testing.assert_allclose(shares, np.array([1, 3, 5, 7]) / 16, atol=4 * np.sqrt(0.25 / 20_000))


def assert_normal_quantiles(values, thresholds, z_scores):
    """As many values are below each threshold as a standard normal has below ``z_scores``, to 4 standard errors."""
    shares = ndtr(z_scores)
    errors = np.searchsorted(np.sort(values), thresholds) / len(values) - shares
    assert np.abs(errors / np.sqrt(shares * (1 - shares) / len(values))).max() < 4


@pytest.mark.parametrize(("mean", "std"), [(-1.2, 1.2), (0.3, 0.5)])
@pytest.mark.parametrize("options", [{}, {"shift": 2.0, "zero_terminal_snr": True}], ids=str)
@pytest.mark.parametrize("continuous", [False, True])
@pytest.mark.parametrize("name", ["linear", "cosine", "sigmoid"])
def test_log_edm_sigma_is_normal_under_lognormal_sampling(name, continuous, options, mean, std):
    """On every schedule. A discrete one takes the nearest timestep, so thresholds are half way between two."""
    schedule = make(name, continuous=continuous, **options)
    sampling = partial(timestep_sampling.lognormal, mean=mean, std=std)
    timestep = np.asarray(draw_timesteps_and_noise(keys(), jnp.zeros((20_000, 1)), schedule, sampling)[0])
    assert schedule.first <= timestep.min() and timestep.max() <= schedule.last
    grid = -schedule.rates(np.arange(1, 999)).logsnr / 2
    thresholds = (grid[1:] + grid[:-1]) / 2
    thresholds = thresholds[np.abs(thresholds - mean) < 2 * std]
    assert continuous or np.all(timestep % 1 == 0)
    assert_normal_quantiles(-schedule.rates(timestep).logsnr / 2, thresholds, (thresholds - mean) / std)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.5, 0.6)])
@pytest.mark.parametrize("continuous", [False, True])
def test_logit_of_the_quantile_is_normal_under_logit_normal_sampling(continuous, mean, std):
    schedule = make("cosine", continuous=continuous)
    sampling = partial(timestep_sampling.logit_normal, mean=mean, std=std)
    timestep = np.asarray(draw_timesteps_and_noise(keys(), jnp.zeros((20_000, 1)), schedule, sampling)[0])
    quantiles = np.arange(5, 100, 5) / 100
    thresholds = schedule.first + (1000 - schedule.first) * quantiles
    assert_normal_quantiles(timestep, thresholds, (np.log(quantiles / (1 - quantiles)) - mean) / std)


@pytest.mark.parametrize("name", PREDICTION_TYPES)
def test_loss_of_predicting_zero(name):
    """A network that predicts 0 loses the mean square of its target: x0_coef^2 + eps_coef^2 for unit data."""
    x0 = jax.random.normal(jax.random.key(1), (20_000, 4))
    value, report = loss(lambda xt, t: jnp.zeros_like(xt), x0, keys=keys(), schedule=linear(1000), prediction_type=name)
    rates = linear(1000).rates(np.arange(1000))
    expected = {"flow": 2.0, "score": (1 / rates.sigma**2).mean()}.get(name, 1.0)
    np.testing.assert_allclose(value, expected, rtol=0.3 if name == "score" else 0.02)  # few draws of the least sigma
    assert sum(int(report[f"loss_{name}"][1]) for name in BINS) == 20_000


def test_loss_of_the_best_denoiser():
    """For data N(0, s^2) the least loss in eps is E[alpha^2 s^2 / (alpha^2 s^2 + sigma^2)] over timesteps."""
    schedule, s = cosine(1000), 0.5
    x0 = s * jax.random.normal(jax.random.key(1), (20_000, 4))

    def best(xt, timestep):
        level = schedule.level(timestep.astype(int)).broadcast_like(xt)
        return level.sigma / (level.alpha**2 * s**2 + level.sigma**2) * xt

    value, report = loss(best, x0, keys=keys(), schedule=schedule, prediction_type="eps", spectrum=jnp.full(3, s**2))
    alpha2 = schedule.alpha_bar
    expected = alpha2 * s**2 / (alpha2 * s**2 + 1 - alpha2)
    np.testing.assert_allclose(value, expected.mean(), rtol=0.03)
    bin_index = np.searchsorted(EDGES, schedule.rates(np.arange(1000)).logsnr)
    for i, name in enumerate(BINS):
        # Three standard errors of about 600 draws in the smallest bin, where the loss's std is about its mean.
        np.testing.assert_allclose(report[f"loss_{name}"][0], expected[bin_index == i].mean(), rtol=0.12)
        np.testing.assert_allclose(report[f"gaussian_{name}"][0], expected[bin_index == i].mean(), rtol=0.12)


@pytest.mark.parametrize("name", PREDICTION_TYPES)
def test_equation_31_is_the_loss_of_the_best_denoiser_in_every_type(name):
    """Against the closed form for one variance, converted from an error of x0 to one of the type."""
    rates = cosine(1000).rates(np.array([50, 500, 900]))
    in_x0 = 0.3 * rates.sigma**2 / (0.3 * rates.alpha**2 + rates.sigma**2)
    a, s = rates.alpha, rates.sigma
    per_x0_error = {"eps": a / s, "x0": 1.0, "v": 1 / s, "score": a / s**2, "flow": (a + s) / s}[name]
    baseline = gaussian_loss(jnp.full(5, 0.3), cosine(1000).level(jnp.array([50.0, 500.0, 900.0])), name)
    np.testing.assert_allclose(baseline, in_x0 * per_x0_error**2, rtol=1e-4)


def test_data_spectrum_of_a_wave_of_random_phase():
    """Images of one wave, the same in all colours, have half of the variance in each of two eigenvectors."""
    phase = np.random.default_rng(0).uniform(0, 2 * np.pi, 4000)
    wave = np.cos(2 * np.pi * np.arange(8) / 8 + phase[:, None])[:, None, :, None]
    images = np.broadcast_to(wave, (4000, 8, 8, 3))
    spectrum = np.sort(data_spectrum(images))[::-1]
    np.testing.assert_allclose(spectrum.sum(), images.var(0).sum(), rtol=1e-3)
    np.testing.assert_allclose(spectrum[:2], 8 * 8 * 3 / 4, rtol=1e-3)
    np.testing.assert_allclose(spectrum[2:], 0, atol=1e-3)


@pytest.mark.parametrize("t", [2, 400])  # where the two variances differ by half, and where they hardly do
def test_equation_30_is_a_divergence_of_two_gaussians(t):
    """It is 0 at the posterior's mean and variance, else the KL divergence of two normal distributions, in bits."""
    schedule = linear(1000)
    x0, eps = (jax.random.normal(jax.random.key(i), (1, 6)) for i in range(2))
    xt = process.diffuse(x0, eps, schedule.level(jnp.array([t])))

    def bound(x0_hat, fraction):
        return variational_bound(x0_hat, jnp.full((1, 6), fraction), x0, xt, jnp.array([float(t)]), schedule)[0]

    np.testing.assert_allclose(bound(x0, 0.0), 0, atol=1e-6)
    _, x0_coef, small = process.posterior(*(schedule.rates(np.array(s)) for s in (t - 1, t)))
    beta = 1 - schedule.alpha_bar[t] / schedule.alpha_bar[t - 1]
    variance = np.exp((np.log(small) + np.log(beta)) / 2)
    shift = x0_coef * 0.1
    divergence = (np.log(variance / small) + (small + shift**2) / variance - 1) / 2 / np.log(2)
    np.testing.assert_allclose(bound(x0 + 0.1, 0.5), divergence, rtol=1e-3)


def test_each_example_is_weighted_by_its_own_level():
    """Before the mean over examples: here errors grow with the timestep."""
    schedule, x0 = cosine(1000), jnp.zeros((20_000, 4))
    timestep, eps = draw_timesteps_and_noise(keys(), x0, schedule)

    def predict(xt, timestep):
        return jnp.broadcast_to(timestep[:, None] / 500, xt.shape)

    value, _ = loss(predict, x0, keys=keys(), schedule=schedule, prediction_type="eps", weighting=min_snr)
    alpha_bar = schedule.alpha_bar[np.asarray(timestep, int)]
    snr = alpha_bar / (1 - alpha_bar)
    error = ((np.float64(eps) - np.asarray(timestep)[:, None] / 500) ** 2).mean(1)
    np.testing.assert_allclose(value, (np.minimum(snr, 5) / snr * error).mean(), rtol=1e-3)


def test_variational_bound_trains_the_variance_alone():
    """The prediction's channels have the gradient of the plain loss; those of the variance have the bound's."""
    x0 = jax.random.normal(jax.random.key(1), (8, 2, 2, 3))

    def total(prediction, fraction):
        def predict(xt, timestep):
            return prediction if fraction is None else jnp.concatenate([prediction, fraction], -1)

        return loss(predict, x0, keys=keys()[:8], schedule=linear(1000), prediction_type="eps")[0]

    prediction = jnp.full((8, 2, 2, 3), 0.1)
    plain_grad = jax.grad(lambda prediction: total(prediction, None))(prediction)
    prediction_grad, fraction_grad = jax.grad(total, argnums=(0, 1))(prediction, jnp.zeros((8, 2, 2, 3)))
    np.testing.assert_allclose(prediction_grad, plain_grad, rtol=1e-5, atol=1e-9)
    assert jnp.abs(fraction_grad).max() > 0


def test_bound_at_t_0_is_the_likelihood_of_a_pixels_256_values():
    """The probabilities of all values of a pixel sum to 1, and the most probable value is the mean."""
    values = jnp.linspace(-1, 1, 256)[:, None]
    mean = jnp.full((256, 1), values[100])  # of the last step, whose xt coefficient is 0

    def bits(fraction):
        return variational_bound(mean, jnp.full((256, 1), fraction), values, mean, jnp.zeros(256), linear(1000))

    for fraction in (0.0, 1.0):
        likelihood = np.exp2(-np.float64(bits(fraction)))
        likelihood = np.where(likelihood > 1e-11, likelihood, 0)  # the bound clips probabilities to 1e-12
        np.testing.assert_allclose(likelihood.sum(), 1, atol=1e-4)
        assert np.argmax(likelihood) == 100
