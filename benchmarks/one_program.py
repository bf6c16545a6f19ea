"""The program that samples with all settings, and a program dedicated to one of them, to be compared."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jdiff import rng
from jdiff.diffusion import prediction, sampler
from jdiff.diffusion.settings import Settings
from jdiff.inference import program
from jdiff.inference.sampler import Sampler

PROMPTS = ("a large red circle above a small blue star", "two green rings", "a small black cross at the top", "")
NEGATIVES = ("", "a blue star")


def captions_of(model: Sampler, b: int) -> list:
    """The columns of ``program.CAPTIONS`` for b images."""
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(b)]
    negatives = [NEGATIVES[i % len(NEGATIVES)] for i in range(b)]
    return [*model.tokenizer.encode(prompts), *model.tokenizer.encode(negatives), np.arange(b, dtype=np.uint32)]


def general_sampler(model: Sampler, settings: Settings, b: int) -> Callable:
    """The program for all settings, with these as its inputs."""
    spec, inputs = model.spec(), jax.device_put(model.inputs([settings] * b))
    captions = jax.device_put(captions_of(model, b))
    return lambda: program.draw(spec, model.params, inputs, captions, None)[0]


def dedicated_sampler(model: Sampler, settings: Settings, b: int) -> Callable:
    """A program for DDIM of these steps alone, guided or not, as one would write it for nothing else."""
    tableau = jax.tree.map(lambda c: c.astype(np.float32), model.tableau(settings))
    scale = settings.guidance_scale
    captions = jax.device_put(captions_of(model, b))

    @jax.jit
    def draw(params, captions):
        tokens, mask, negative, negative_mask, seeds = captions

        def encode(tokens, mask):
            hidden, pooled = model.text.apply({"params": params["text"]}, tokens, mask)
            return hidden, mask, pooled

        caption = encode(tokens, mask)
        if scale != 1:
            caption = jax.tree.map(lambda p, n: jnp.concatenate([p, n]), caption, encode(negative, negative_mask))

        def step(xt, row):
            x, t = (jnp.concatenate([xt, xt]), jnp.full(2 * b, row.timestep)) if scale != 1 else (xt, row.timestep)
            output = model.denoiser.apply({"params": params["denoiser"]}, x, jnp.broadcast_to(t, x.shape[:1]), *caption)
            if scale != 1:
                output = output[b:] + scale * (output[:b] - output[b:])
            level = jax.tree.map(lambda rate: jnp.broadcast_to(rate, (b,)), row.level)
            estimate = prediction.solve(model.prediction_type, output, xt, level)
            x0 = jnp.clip(estimate.x0, -1, 1)
            eps = (xt - row.level.alpha * x0) / row.level.sigma
            return row.x0_coef * x0 + row.eps_coef * eps, None

        xt = sampler.initial_noise(rng.image_keys(seeds), model.shape)
        x0, _ = jax.lax.scan(step, xt, tableau)
        return jnp.round((jnp.clip(x0, -1, 1) + 1) * 127.5).astype(jnp.uint8)

    return lambda: draw(model.params, captions)
