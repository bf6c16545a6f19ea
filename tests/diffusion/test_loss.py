"""The loss: its draws, its value for answers known in closed form, and its report."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff import rng
from jdiff.diffusion.loss import BINS, draw, loss
from jdiff.diffusion.prediction import PREDICTION_TYPES
from jdiff.diffusion.schedules import cosine, linear


def keys():
    return rng.example_keys(rng.stream(0, "noise"), 3, jnp.arange(20_000))


def test_draws_are_uniform_and_normal_and_belong_to_their_example():
    size = 16  # whole vectors, as in pictures: XLA rounds what is left over of them another way (jax 0.12)
    timestep, eps = draw(keys(), jnp.zeros((20_000, size)), 1000)
    assert timestep.min() == 0
    assert timestep.max() == 999
    np.testing.assert_allclose(timestep.mean(), 499.5, atol=4 * 1000 / np.sqrt(12 * 20_000))
    np.testing.assert_allclose([eps.mean(), eps.std()], [0, 1], atol=0.02)
    some = jnp.array([17, 3, 1999])
    again = draw(keys()[some], jnp.zeros((3, size)), 1000)
    np.testing.assert_array_equal(timestep[some], again[0])
    np.testing.assert_array_equal(eps[some], again[1])


def test_the_rising_density_draws_noisy_timesteps_more_often():
    """P(t < k) = (k / T)^2, so a quarter of the timesteps gets 1, 3, 5, 7 sixteenths of the draws."""
    timestep, _ = draw(keys(), jnp.zeros((20_000, 1)), 1000, "rising")
    assert timestep.min() >= 0
    assert timestep.max() == 999
    shares = np.histogram(timestep, bins=4, range=(0, 1000))[0] / 20_000
    np.testing.assert_allclose(shares, np.array([1, 3, 5, 7]) / 16, atol=4 * np.sqrt(0.25 / 20_000))


@pytest.mark.parametrize("name", PREDICTION_TYPES)
def test_the_loss_of_saying_nothing(name):
    """A network that answers 0 loses the mean square of its target: 1 for unit data, whatever the type."""
    x0 = jax.random.normal(jax.random.key(1), (20_000, 4))
    value, report = loss(lambda xt, t: jnp.zeros_like(xt), x0, keys=keys(), schedule=linear(1000), prediction_type=name)
    np.testing.assert_allclose(value, 1, atol=0.02)
    assert sum(int(report[f"loss_bin_{i}"][1]) for i in range(BINS)) == 20_000


def test_the_loss_of_the_best_answer():
    """For data N(0, s^2) the least loss in eps is E[alpha^2 s^2 / (alpha^2 s^2 + sigma^2)] over timesteps."""
    schedule, s = cosine(1000), 0.5
    x0 = s * jax.random.normal(jax.random.key(1), (20_000, 4))

    def best(xt, timestep):
        level = schedule.level(timestep.astype(int)).over(xt)
        return level.sigma / (level.alpha**2 * s**2 + level.sigma**2) * xt

    value, report = loss(best, x0, keys=keys(), schedule=schedule, prediction_type="eps")
    alpha2 = schedule.alpha_bar
    least = alpha2 * s**2 / (alpha2 * s**2 + 1 - alpha2)
    np.testing.assert_allclose(value, least.mean(), rtol=0.03)
    for i, quarter in enumerate(np.split(least, BINS)):
        np.testing.assert_allclose(report[f"loss_bin_{i}"][0], quarter.mean(), rtol=0.06)
