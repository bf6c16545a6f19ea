"""Schedules and sampling steps against diffusers, where diffusers is known to be right."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff.diffusion import process, sampler, solvers
from jdiff.diffusion.prediction import Denoised
from jdiff.diffusion.schedules import cosine, linear, make, scaled_linear
from jdiff.diffusion.solvers import SOLVERS, ddim
from jdiff.diffusion.spacing import leading, trailing
from jdiff.diffusion.tableau import level_grid
from reference import papers
from reference.orders import MEAN, STD
from tests.diffusion import orders

torch = pytest.importorskip("torch", reason="the extra 'parity' is not installed")
diffusers = pytest.importorskip("diffusers", reason="the extra 'parity' is not installed")

pytestmark = pytest.mark.filterwarnings("ignore")  # the other libraries' own warnings


@pytest.mark.parametrize(
    ("schedule", "options"),
    [
        (linear(1000), {"beta_schedule": "linear"}),
        (scaled_linear(1000), {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}),
        (cosine(1000), {"beta_schedule": "squaredcos_cap_v2"}),
    ],
    ids=["linear", "scaled linear", "cosine"],
)
def test_alpha_bar(schedule, options):
    alphas_cumprod = diffusers.DDPMScheduler(**options).alphas_cumprod.numpy()
    np.testing.assert_allclose(schedule.alpha_bar, alphas_cumprod, rtol=3e-4)  # diffusers: a product in float32


def fixed(xt, row):
    """A network that is a fixed function: eps = 0.9 xt t / (t + 1)."""
    eps = xt * (row.timestep / (row.timestep + 1))[:, None] * 0.9
    level = row.level.broadcast_like(xt)
    return Denoised((xt - level.sigma * eps) / level.alpha, eps)


@pytest.mark.parametrize("final_step_to_zero", [True, False])
@pytest.mark.parametrize("steps", [10, 50])
def test_ddim_loop(steps, final_step_to_zero):
    """Whole loops with leading spacing, which diffusers implements correctly, on a network that is a fixed function."""
    scheduler = diffusers.DDIMScheduler(beta_schedule="linear", clip_sample=False, set_alpha_to_one=final_step_to_zero)
    scheduler.set_timesteps(steps)
    start = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
    x = torch.tensor(start)
    for t in scheduler.timesteps:
        x = scheduler.step(x * t / (t + 1) * 0.9, t, x, eta=0.0).prev_sample

    end_timestep = -1 if final_step_to_zero else 0
    tableau = ddim(level_grid(linear(1000), leading(linear(1000), steps), end_timestep=end_timestep))
    keys = jax.random.split(jax.random.key(0), 4)
    x0, _ = sampler.sample(fixed, tableau, jnp.asarray(start), keys=keys)
    np.testing.assert_allclose(x0, x.numpy(), rtol=1e-3, atol=1e-4)


START = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
MULTISTEP = {"algorithm_type": "dpmsolver++", "final_sigmas_type": "zero"}


def diffusers_loop(scheduler, steps, scale=1.0):
    """The image that a diffusers scheduler samples from START with the fixed network. scale: of its initial noise."""
    scheduler.set_timesteps(steps)
    x = torch.tensor(START) * scale
    for t in scheduler.timesteps:
        model_input = scheduler.scale_model_input(x, t)
        x = scheduler.step(model_input * t / (t + 1) * 0.9, t, x).prev_sample
    return x.numpy()


def jdiff_loop(name, steps):
    tableau = SOLVERS[name].make_tableau(level_grid(linear(1000), trailing(linear(1000), steps)))
    return sampler.sample(fixed, tableau, jnp.asarray(START), keys=jax.random.split(jax.random.key(0), 4))[0]


@pytest.mark.parametrize("steps", [10, 20])
@pytest.mark.parametrize(
    ("name", "scheduler_class", "options"),
    [
        ("euler", "EulerDiscreteScheduler", {}),
        ("heun", "HeunDiscreteScheduler", {"beta_start": 0.0001, "beta_end": 0.02}),
        ("dpmpp_2m", "DPMSolverMultistepScheduler", {"solver_order": 2, **MULTISTEP}),
        ("unipc_2", "UniPCMultistepScheduler", {"solver_order": 2}),
        ("unipc_3", "UniPCMultistepScheduler", {"solver_order": 3}),
    ],
)
def test_loops_of_the_probability_flow(name, scheduler_class, options, steps):
    """Whole loops over trailing timesteps, with a number of steps that divides 1000, to the clean image."""
    scheduler = getattr(diffusers, scheduler_class)(beta_schedule="linear", timestep_spacing="trailing", **options)
    # Euler and Heun work in sigma / alpha, and start at x / alpha.
    first = linear(1000).rates(trailing(linear(1000), steps)).alpha[0]
    x0 = diffusers_loop(scheduler, steps, 1 / first if name in ("euler", "heun") else 1.0)
    np.testing.assert_allclose(jdiff_loop(name, steps), x0, rtol=2e-3, atol=2e-3)


def test_diffusers_3m_halves_the_second_difference_and_is_of_order_2(monkeypatch):
    """With its third moment halved our 3M is that of diffusers, of order 2 from exact starting values; ours is of 3."""
    scheduler = diffusers.DPMSolverMultistepScheduler(
        beta_schedule="linear", timestep_spacing="trailing", solver_order=3, **MULTISTEP
    )
    x0, moments = diffusers_loop(scheduler, 10), solvers._moments
    assert np.abs(jdiff_loop("dpmpp_3m", 10) - x0).max() > 0.01
    np.testing.assert_allclose(orders.of_images("dpmpp_3m")[-1], 3, atol=0.15)

    def halve_third_moment(move, count, **options):
        exact = moments(move, count, **options)
        return np.append(exact[:2], exact[2:] / 2)

    monkeypatch.setattr(solvers, "_moments", halve_third_moment)
    np.testing.assert_allclose(jdiff_loop("dpmpp_3m", 10), x0, rtol=2e-3, atol=2e-3)
    assert orders.of_images("dpmpp_3m")[-1] < 2.15


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned_range"])
def test_ddpm_steps(variance):
    """A step from each of 50 leading timesteps, its mean and its noise."""
    scheduler = diffusers.DDPMScheduler(beta_schedule="linear", variance_type=variance, clip_sample=False)
    scheduler.set_timesteps(50)
    name = {"fixed_small": "small", "fixed_large": "large", "learned_range": "learned"}[variance]
    rows = solvers.ddpm(level_grid(linear(1000), leading(linear(1000), 50)), variance=name)
    eps, fraction = np.random.default_rng(1).standard_normal((2, *START.shape)).astype(np.float32)
    for i, t in enumerate(scheduler.timesteps[:-1]):
        output = np.concatenate([eps, fraction], axis=1) if name == "learned" else eps
        output, x = torch.tensor(output), torch.tensor(START)
        if name == "learned":  # diffusers splits the channels of images
            output, x = output[..., None, None], x[..., None, None]
        xs = scheduler.step(output, t, x, generator=torch.Generator().manual_seed(0)).prev_sample
        z = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).numpy().reshape(START.shape)
        x0 = (START - rows.level.sigma[i] * eps) / rows.level.alpha[i]
        noise = rows.noise_coef[i] * np.exp((fraction + 1) / 2 * rows.noise_range[i])
        expected = rows.xt_coef[i] * START + rows.x0_coef[i] * x0 + noise * z
        np.testing.assert_allclose(expected, xs.numpy().reshape(START.shape), rtol=1e-3, atol=1e-3)


def test_constants_of_the_process():
    """Noising, the velocity, the variances and the rescaling to zero terminal SNR."""
    scheduler = diffusers.DDPMScheduler(beta_schedule="linear")
    x0, eps = START, np.random.default_rng(1).standard_normal(START.shape).astype(np.float32)
    t = np.array([0, 10, 500, 999])
    level = linear(1000).level(jnp.asarray(t, jnp.float32))
    tensors = [torch.tensor(x0), torch.tensor(eps), torch.tensor(t)]
    noised = process.diffuse(jnp.asarray(x0), jnp.asarray(eps), level)
    np.testing.assert_allclose(noised, scheduler.add_noise(*tensors).numpy(), rtol=1e-4, atol=1e-4)
    wide = level.broadcast_like(jnp.asarray(x0))
    v = scheduler.get_velocity(*tensors).numpy()
    np.testing.assert_allclose(wide.alpha * eps - wide.sigma * x0, v, rtol=1e-4, atol=1e-4)
    for s in (1, 10, 500, 999):
        _, _, small = process.posterior(*(linear(1000).rates(np.array(i)) for i in (s - 1, s)))
        np.testing.assert_allclose(small, scheduler._get_variance(s).numpy(), rtol=2e-3)
    zero_snr = diffusers.DDPMScheduler(beta_schedule="linear", rescale_betas_zero_snr=True)
    alpha_bar = make("linear", zero_terminal_snr=True).alpha_bar
    np.testing.assert_allclose(alpha_bar, zero_snr.alphas_cumprod.numpy(), rtol=3e-3, atol=1e-7)


def test_diffusers_ddim_has_wrong_strides_where_steps_do_not_divide_1000():
    """Trailing, 150 steps, Gaussian data: the std is .2410 in float64, as for our DDIM; that of diffusers is .2796."""
    schedule, steps = linear(1000), 150
    timesteps = trailing(schedule, steps)
    _, variance = papers.strided_moments(schedule.alpha_bar[timesteps], MEAN, STD**2, method="ddim")
    np.testing.assert_allclose(np.sqrt(variance), 0.2410, atol=1e-3)
    scheduler = diffusers.DDIMScheduler(beta_schedule="linear", clip_sample=False, timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    assert scheduler.timesteps.tolist() == timesteps.tolist()
    start = np.array([-1.0, 1.0])
    x = torch.tensor(start)
    for t in scheduler.timesteps:
        alpha_bar = schedule.alpha_bar[t]
        eps = papers.gaussian_answers(MEAN, STD)(x.numpy(), np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar))[1]
        x = scheduler.step(torch.tensor(eps), t, x).prev_sample
    slope = float(x[1] - x[0]) / 2  # the flow of a Gaussian is linear, so this is the std
    np.testing.assert_allclose(slope, 0.2796, atol=1e-3)
    rows = ddim(level_grid(schedule, timesteps))
    _, jdiff_variance = papers.moments_of_rows(rows, MEAN, STD, papers.gaussian_answers(MEAN, STD), (0.0, 1.0))
    np.testing.assert_allclose(np.sqrt(jdiff_variance), np.sqrt(variance), rtol=1e-9)
