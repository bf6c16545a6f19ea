"""A measurement that a sampler can use: how well x0 is predicted at each noise level."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jdiff import rng
from jdiff.diffusion import prediction, process
from jdiff.inference.program import SamplerSpec, bind_denoiser, encode
from jdiff.inference.sampler import DenoisingMse, Sampler
from jdiff.levels import Level


def measure_denoising_mse(
    model: Sampler,
    images: np.ndarray,
    prompts: Sequence[str],
    *,
    levels: int = 17,
    seed: int = 0,
    batch_size: int = 64,
) -> DenoisingMse:
    """The mean squared error of x0 at ``levels`` noise levels, which DDPM's "analytic" variance needs [analytic].

    images: (n, h, w, 3) uint8, that training has not seen.   prompts: of each.
    Returns log SNRs, increasing, and the mean over images and dimensions at each.
    """
    schedule = model.schedule
    low, high = schedule.rates(np.array([schedule.last, schedule.first])).logsnr
    timesteps = schedule.timestep(np.linspace(max(low, -20.0), high, levels))
    timesteps = np.unique(np.clip(np.round(timesteps), schedule.first, schedule.last))[::-1]
    timesteps = timesteps[schedule.rates(timesteps).alpha > 0]  # pure noise has no log SNR
    rates, tokens = schedule.rates(timesteps), model.tokenizer.encode(list(prompts))
    batches = np.array_split(np.arange(len(images)), -(-len(images) // batch_size))
    errors = np.zeros(len(timesteps))
    for i, values in enumerate(zip(timesteps, rates.alpha, rates.sigma)):
        level = [np.float32(value) for value in values]
        for batch in batches:
            keys = rng.image_keys(seed + len(images) * i + batch)
            captions = [column[batch] for column in tokens]
            error = _squared_error(model.spec(), model.params, images[batch], captions, keys, *level)
            errors[i] += float(error) * len(batch) / len(images)
    return tuple(rates.logsnr.tolist()), tuple(errors.tolist())


@partial(jax.jit, static_argnums=0)
def _squared_error(spec: SamplerSpec, params, images, tokens, keys, timestep, alpha, sigma) -> Array:
    """The mean squared error of x0, in [-1, 1] or in latents, of images noised to one level."""
    x0 = jnp.asarray(images, jnp.float32) / 127.5 - 1
    if spec.autoencoder is not None:
        x0, _ = spec.autoencoder.apply({"params": params["autoencoder"]}, x0, method="encode")
    level = Level(jnp.full(len(x0), alpha), jnp.full(len(x0), sigma))
    xt = process.diffuse(x0, rng.normal(keys, x0.shape[1:]), level)
    caption = encode(spec.text, params, *tokens)
    output = bind_denoiser(spec.denoiser, params)(xt, jnp.full(len(x0), timestep), caption)
    denoised = prediction.parse_output(spec.prediction_type, output, xt, level)
    if spec.autoencoder is None:
        denoised = prediction.clipped(denoised, xt, level)
    return jnp.mean((denoised.x0 - x0) ** 2)
