"""Samplers that are handed a perfect denoiser must make the data, to the digits a float64 recursion predicts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff import rng
from jdiff.diffusion import sampler
from jdiff.diffusion.exact import mixture_denoiser
from jdiff.diffusion.guidance import guided
from jdiff.diffusion.schedules import cosine, linear, trailing
from jdiff.diffusion.solvers import SOLVERS, ddim, ddpm
from tests import truths

MEAN, STD = 0.3, 0.25
EXACT = mixture_denoiser(jnp.array([[MEAN]]), jnp.array([STD]), jnp.array([1.0]))
GRIDS = [10, 50, 150, 1000]


def draw(tableau, n=40_000, seed=0):
    keys = jax.random.split(jax.random.key(seed), n)
    return jax.jit(lambda keys: sampler.sample(EXACT, tableau, sampler.start(keys, (1,)), keys=keys)[0])(keys)


@pytest.mark.parametrize("steps", GRIDS)
@pytest.mark.parametrize(
    ("make", "method", "eta"),
    [
        (lambda s, t: ddim(s, t), "ddim", 0.0),
        (lambda s, t: ddim(s, t, eta=0.5), "ddim", 0.5),
        (lambda s, t: ddim(s, t, eta=1.0), "ddim", 1.0),
        (lambda s, t: ddpm(s, t), "small", None),
        (lambda s, t: ddpm(s, t, variance="large"), "large", None),
    ],
    ids=["ddim", "ddim-half", "ddim-full", "ddpm-small", "ddpm-large"],
)
def test_equations_9_to_11_against_the_moments_of_gaussian_data(make, method, eta, steps):
    """Equations (9), (10), (11): mean and std of 40,000 samples against the exact recursion, at any stride."""
    schedule = linear(1000)
    timesteps = trailing(1000, steps)
    n = 40_000 if steps < 1000 else 4_000
    samples = np.asarray(draw(make(schedule, timesteps), n))
    mean, variance = truths.strided_moments(schedule.alpha_bar[timesteps], MEAN, STD**2, method=method, eta=eta or 0.0)
    # Four standard errors of a mean and of a std of n draws.
    std = np.sqrt(variance)
    np.testing.assert_allclose(samples.mean(), mean, atol=4 * std / np.sqrt(n))
    np.testing.assert_allclose(samples.std(), std, rtol=4 / np.sqrt(2 * n))


def test_the_recursion_itself_reproduces_published_figures():
    """guided-diffusion's own samplers with this denoiser: DDIM of 50 steps .2266 / .207; DDPM of 10 .125 / .407."""
    alpha_bar = linear(1000).alpha_bar

    def std(steps, **method):
        space = np.round(np.linspace(0, 999, steps)).astype(int)[::-1]  # its "N sections" of 1000
        return np.sqrt(truths.strided_moments(alpha_bar[space], MEAN, STD**2, **method)[1])

    np.testing.assert_allclose(std(50, method="ddim"), 0.2266, atol=0.002)
    np.testing.assert_allclose(std(50, method="ddim", eta=1.0), 0.207, atol=0.002)
    np.testing.assert_allclose([std(10, method="small"), std(10, method="large")], [0.125, 0.407], atol=0.006)


def test_ddim_of_eta_1_is_ddpm_of_small_variance():
    schedule, timesteps = cosine(1000), trailing(1000, 20)
    keys = jax.random.split(jax.random.key(0), 64)
    noise = sampler.start(keys, (1,))
    a, b = (
        sampler.sample(EXACT, tableau, noise, keys=keys)[0]
        for tableau in (ddim(schedule, timesteps, eta=1.0), ddpm(schedule, timesteps))
    )
    np.testing.assert_allclose(a, b, atol=2e-5)


def test_ddim_converges_with_order_one():
    """Halving the step halves the error against the flow's end: m + s / sqrt(a^2 s^2 + 1 - a^2) (x_T - a m)."""
    schedule = linear(1000)
    xt = jnp.array([[-1.5], [0.2], [1.1]])
    keys = jax.random.split(jax.random.key(0), 3)
    errors = []
    for steps in (25, 50, 100):
        timesteps = trailing(1000, steps)
        x0, _ = sampler.sample(EXACT, ddim(schedule, timesteps), xt, keys=keys)
        alpha = np.sqrt(schedule.alpha_bar[999])
        exact = MEAN + STD / np.sqrt(alpha**2 * STD**2 + 1 - alpha**2) * (np.asarray(xt, np.float64) - alpha * MEAN)
        errors.append(np.abs(x0 - exact).max())
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    np.testing.assert_allclose(orders, 1, atol=0.2)


@pytest.mark.parametrize("name", SOLVERS)
def test_an_image_does_not_depend_on_its_batch(name):
    tableau = SOLVERS[name](linear(1000), trailing(1000, 10))
    keys = rng.image_keys(jnp.arange(8))

    @jax.jit
    def run(keys):
        return sampler.sample(EXACT, tableau, sampler.start(keys, (1,)), keys=keys)[0]

    whole = run(keys)
    np.testing.assert_array_equal(whole[2:4], run(keys[jnp.array([5, 6, 2, 3, 0, 1, 1, 0])])[2:4])
    np.testing.assert_allclose(whole[3:4], run(keys[3:4]), atol=1e-6)
    assert len(np.unique(np.asarray(whole))) == 8


def test_trajectory_shows_the_denoisers_view():
    tableau = ddim(linear(1000), trailing(1000, 10))
    keys = jax.random.split(jax.random.key(0), 4)
    x0, path = sampler.sample(EXACT, tableau, sampler.start(keys, (1,)), keys=keys, trajectory=True)
    assert path.shape == (10, 4, 1)
    np.testing.assert_allclose(path[0], MEAN, atol=0.05)  # from pure noise the best guess is the mean
    np.testing.assert_allclose(path[-1], x0, atol=1e-6)  # the last row ends at the clean image


def test_equation_8_guidance():
    """Equation (8): scale 0 is the negative's answer, 1 the prompt's, and between and beyond a straight line."""

    def predict(xt, timestep, caption):
        return xt * caption[:, None] + timestep[:, None]

    xt, timestep = jnp.ones((4, 2)), jnp.array([0.0, 1.0, 2.0, 3.0])
    scale = jnp.array([0.0, 1.0, 3.0, 8.0])
    answer = guided(predict, jnp.full(4, 5.0), jnp.full(4, 2.0), scale)(xt, timestep)
    np.testing.assert_allclose(answer[:, 0], 2 + scale * 3 + timestep)
