"""The compiled sampling program: tokens in, images out, with everything that a user may change as a runtime input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from jdiff import rng
from jdiff.diffusion import guidance, prediction, sampler
from jdiff.diffusion.guidance import Corrections, two_captions, two_networks
from jdiff.diffusion.sampler import Chunk
from jdiff.diffusion.tableau import Tableau
from jdiff.models.autoencoder import Autoencoder
from jdiff.models.clip import TextTower

CAPTIONS = ("tokens", "mask", "negative_tokens", "negative_mask", "seeds")  # the caption columns of a program


@dataclass(frozen=True)
class SamplerSpec:
    """What the sampling program is compiled for; all else is a runtime input.

    weak_networks: text tower and denoiser of a weaker model, for autoguidance.
    """

    text: TextTower
    denoiser: nn.Module
    autoencoder: Autoencoder | None
    prediction_type: str
    shape: tuple[int, int, int]
    weak_networks: tuple[TextTower, nn.Module] | None
    trajectory: bool


class SamplerInputs(NamedTuple):
    """How to draw each image of a batch, all of it runtime data. clip, percentile: of ``prediction.clipped``."""

    tableau: Tableau
    corrections: Corrections
    clip: Array
    percentile: Array


@partial(jax.jit, static_argnums=0)
def draw(spec: SamplerSpec, params, inputs: SamplerInputs, captions, noise) -> tuple[Array, tuple[Array, Array] | None]:
    """Tokens in, images out.

    params: of each network.   inputs: of each image.   captions: the columns of ``CAPTIONS``, (b, n) and (b,).
    noise: (b, *shape) in place of that of the seeds, or None.
    Returns images (b, h, w, 3) uint8 and the trajectory, of xt and of x0, each (rows, b, h, w, 3) uint8, or None.
    """
    decode = partial(to_image, spec, params)
    x0, trajectory = denoised(spec, params, inputs, captions, noise)
    return decode(x0), (None if trajectory is None else tuple(jax.lax.map(decode, path) for path in trajectory))


def to_image(spec: SamplerSpec, params, x0: Array) -> Array:
    """x0 as images (b, h, w, 3) uint8; latents are decoded."""
    if spec.autoencoder is not None:
        x0 = spec.autoencoder.apply({"params": params["autoencoder"]}, x0, method="decode")
    return jnp.round((jnp.clip(x0, -1, 1) + 1) * 127.5).astype(jnp.uint8)


def denoised(spec: SamplerSpec, params, inputs: SamplerInputs, captions, noise) -> tuple[Array, Any]:
    """As ``draw``, of x0 as the denoiser works in it, floats (b, *shape) and (rows, b, *shape)."""
    unguided, guided, guided_rows = _denoisers(spec, params, inputs, captions)
    keys, start = _start(spec, captions, noise)
    tableau, memory = inputs.tableau, jnp.zeros_like(start)
    if not spec.trajectory:
        denoisers = [unguided, guided]
        return sampler.sample_in_chunks(denoisers, guided_rows, tableau, start, keys=keys, memory=memory), None

    def guided_or_not(xt: Array, row: Tableau, memory: Array):
        return jax.lax.cond(jnp.any(row.guidance_scale != 1), guided, unguided, xt, row, memory)

    return sampler.sample(guided_or_not, tableau, start, keys=keys, memory=memory, trajectory=True)


@partial(jax.jit, static_argnums=0)
def draw_chunk(
    spec: SamplerSpec, params, inputs: SamplerInputs, captions, noise, chunk: Chunk | None
) -> tuple[Chunk, Array, Array]:
    """The next chunk of rows of ``draw``, for a caller who looks at images between chunks, and may stop.

    chunk: from the call before; None to start.
    Returns the chunk, the images as the denoiser sees them, (b, h, w, 3) uint8, and whether rows are left, ().
    """
    unguided, guided, guided_rows = _denoisers(spec, params, inputs, captions)
    keys, start = _start(spec, captions, noise)
    if chunk is None:
        chunk = sampler.first_chunk(inputs.tableau, start, jnp.zeros_like(start))
    chunk = sampler.run_chunk([unguided, guided], guided_rows, inputs.tableau, chunk, keys=keys)
    rows_left = chunk.row < sampler.num_active_rows(inputs.tableau)
    return chunk, to_image(spec, params, jnp.where(rows_left, chunk.x0, chunk.state[0])), rows_left


def _start(spec: SamplerSpec, captions, noise) -> tuple[Array, Array]:
    """The keys of the images, and their initial noise."""
    keys = rng.image_keys(captions[-1])
    return keys, sampler.initial_noise(keys, spec.shape) if noise is None else noise


def _denoisers(spec: SamplerSpec, params, inputs: SamplerInputs, captions) -> tuple[Callable, Callable, Array]:
    """The unguided and the guided denoiser, each (xt, row, memory) -> (``Denoised``, memory), and which of them is of
    each row, (rows,) int."""
    tokens, mask, negative_tokens, negative_mask, _ = captions
    tableau, corrections, clip, percentile = inputs

    def denoiser(predict: Callable) -> Callable:
        def denoise(xt: Array, row: Tableau, memory: Array):
            output, memory = predict(xt, row, memory)
            estimate = prediction.parse_output(spec.prediction_type, output, xt, row.level)
            return prediction.clipped(estimate, xt, row.level, clip_mask=clip, percentile=percentile), memory

        return denoise

    guided_rows = jnp.any(tableau.guidance_scale != 1, axis=1)
    predict, prompt = bind_denoiser(spec.denoiser, params), encode(spec.text, params, tokens, mask)
    if spec.weak_networks is None:
        negative = jax.lax.cond(
            jnp.any(guided_rows),
            partial(encode, spec.text, params),
            lambda *_: jax.tree.map(jnp.zeros_like, prompt),
            negative_tokens,
            negative_mask,
        )
        pair = two_captions(predict, prompt, negative)
    else:
        text, weak_denoiser = spec.weak_networks
        weak_predict = bind_denoiser(weak_denoiser, params["weak"])
        caption = encode(text, params["weak"], tokens, mask)
        pair = two_networks(
            lambda xt, timestep: predict(xt, timestep, prompt), lambda xt, timestep: weak_predict(xt, timestep, caption)
        )
    unguided = denoiser(lambda xt, row, memory: (predict(xt, row.timestep, prompt), memory))
    return unguided, denoiser(guidance.guided(pair, spec.prediction_type, corrections)), guided_rows.astype(jnp.int32)


def encode(text: TextTower, params, tokens: Array, mask: Array) -> tuple:
    """Captions as a denoiser reads them: hidden states, mask, pooled embedding. params: by network."""
    hidden, pooled = text.apply({"params": params["text"]}, tokens, mask)
    return hidden, mask, pooled


def bind_denoiser(denoiser: nn.Module, params) -> Callable:
    """(xt, timestep, caption of ``encode``) -> output. params: by network."""
    return lambda xt, timestep, caption: denoiser.apply({"params": params["denoiser"]}, xt, timestep, *caption)
