"""Our schedules and sampling steps against diffusers', where its own are known to be right."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff.diffusion import sampler
from jdiff.diffusion.prediction import Answer
from jdiff.diffusion.schedules import cosine, leading, linear, scaled_linear
from jdiff.diffusion.solvers import ddim
from jdiff.diffusion.tableau import grid

torch = pytest.importorskip("torch", reason="the extra 'parity' is not installed")
diffusers = pytest.importorskip("diffusers", reason="the extra 'parity' is not installed")

pytestmark = pytest.mark.filterwarnings("ignore")  # of the other libraries' own making


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (linear(1000), {"beta_schedule": "linear"}),
        (scaled_linear(1000), {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}),
        (cosine(1000), {"beta_schedule": "squaredcos_cap_v2"}),
    ],
    ids=["linear", "scaled linear", "cosine"],
)
def test_alpha_bar(ours, theirs):
    found = diffusers.DDPMScheduler(**theirs).alphas_cumprod.numpy()
    np.testing.assert_allclose(ours.alpha_bar, found, rtol=3e-4)  # theirs is a float32 product of a thousand


@pytest.mark.parametrize("ends_clean", [True, False])
@pytest.mark.parametrize("steps", [10, 50])
def test_ddim_loop(steps, ends_clean):
    """Whole loops with leading spacing, which diffusers has right, on a network that is a fixed function."""
    scheduler = diffusers.DDIMScheduler(beta_schedule="linear", clip_sample=False, set_alpha_to_one=ends_clean)
    scheduler.set_timesteps(steps)
    start = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
    x = torch.tensor(start)
    for t in scheduler.timesteps:
        x = scheduler.step(x * t / (t + 1) * 0.9, t, x, eta=0.0).prev_sample

    def denoise(xt, row):
        eps = xt * (row.timestep / (row.timestep + 1))[:, None] * 0.9
        level = row.level.over(xt)
        return Answer((xt - level.sigma * eps) / level.alpha, eps)

    tableau = ddim(grid(linear(1000), leading(linear(1000), steps), last=-1 if ends_clean else 0))
    keys = jax.random.split(jax.random.key(0), 4)
    x0, _ = sampler.sample(denoise, tableau, jnp.asarray(start), keys=keys)
    np.testing.assert_allclose(x0, x.numpy(), rtol=1e-3, atol=1e-4)
