"""From sentences to images: the whole inference path on one page."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jdiff import rng
from jdiff.data.tokenizer import Tokenizer
from jdiff.diffusion import prediction, sampler
from jdiff.diffusion.guidance import guided
from jdiff.diffusion.schedules import SPACINGS, Schedule
from jdiff.diffusion.solvers import SOLVERS, Tableau
from jdiff.models.autoencoder import Autoencoder
from jdiff.models.clip import TextTower
from jdiff.models.unet import UNet


@dataclass(frozen=True)
class Settings:
    """How to sample, when the caller does not say.

    solver, spacing: names in SOLVERS and SPACINGS.   steps: network evaluations.
    offset: added to the timesteps of leading spacing.   ends_clean: whether the last step ends at the clean image, or
        at timestep 0, whose little noise stays; Stable Diffusion was shipped with 1 and the latter.
    eta: DDIM's noise, 0 for none.   variance: DDPM's, "small" or "large".
    guidance_scale: 1 is the plain conditional model.   clip: hold the clean image in [-1, 1]; never latents.
    """

    solver: str = "ddim"
    steps: int = 50
    spacing: str = "trailing"
    offset: int = 0
    ends_clean: bool = True
    eta: float = 0.0
    variance: str = "small"
    guidance_scale: float = 4.0
    clip: bool = True

    def tableau(self, schedule: Schedule) -> Tableau:
        """The coefficients these settings ask for."""
        if not 1 <= self.steps <= schedule.timesteps:
            raise ValueError(
                f"steps is {self.steps}, but it must be from 1 to {schedule.timesteps}, the schedule's timesteps"
            )
        timesteps = SPACINGS[self.spacing](schedule.timesteps, self.steps) + self.offset
        if not 0 <= timesteps.min() <= timesteps.max() < schedule.timesteps:
            raise ValueError(
                f"offset is {self.offset}, and so the timesteps are from {timesteps.min()} to {timesteps.max()}, but "
                f"there are 0 to {schedule.timesteps - 1}"
            )
        options = {"ddim": {"eta": self.eta}, "ddpm": {"variance": self.variance}}[self.solver]
        return SOLVERS[self.solver](schedule, timesteps, last=-1 if self.ends_clean else 0, **options)


@dataclass(frozen=True)
class Sampler:
    """A trained text-to-image model, ready to draw.

    weights: of each network, by the name of its field.
    autoencoder: where the U-Net works in latents; None where it works in pixels.
    shape: (h, w, c) of what the U-Net works in.
    """

    tokenizer: Tokenizer
    text: TextTower
    unet: UNet
    autoencoder: Autoencoder | None
    weights: Mapping[str, Any]
    schedule: Schedule
    prediction_type: str
    shape: tuple[int, int, int]
    settings: Settings = field(default_factory=Settings)

    def sample(
        self,
        prompts: Sequence[str],
        *,
        negative: str | Sequence[str] = "",
        guidance_scale: float | Sequence[float] | None = None,
        seed: int | Sequence[int] = 0,
        noise: np.ndarray | None = None,
        settings: Settings | None = None,
        batch_size: int = 64,
        trajectory: bool = False,
        progress: Callable[[Sequence], Iterable] = iter,
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """Draw an image for each prompt.

        negative: captions to move away from; the empty caption if not said.
        seed: image i of one seed has seed + i, so each can be drawn again alone.
        noise: what to begin from in place of the seeds' own, (n, h, w, c) standard normal, of latents where there are.
        batch_size: images per run of the compiled program; an image does not depend on its batch.
        progress: goes through the batches in order, and may tell how far it is.
        Returns images (n, h, w, 3) uint8 and, on request, the denoiser's view of each image at
        every step, (steps, n, h, w, 3) uint8.
        """
        if isinstance(prompts, str):
            raise ValueError(f"prompts is one sentence, {prompts!r}, but must be a list of them")
        n = len(prompts)
        settings = settings or self.settings
        scale = settings.guidance_scale if guidance_scale is None else guidance_scale
        scales = np.broadcast_to(np.asarray(scale, np.float32), (n,))
        seeds = np.asarray(seed, np.uint32) + (np.arange(n, dtype=np.uint32) if np.ndim(seed) == 0 else 0)
        negatives = [negative] * n if isinstance(negative, str) else list(negative)
        columns = [*self.tokenizer.encode(list(prompts)), *self.tokenizer.encode(negatives), scales, seeds]
        if noise is not None:
            if np.shape(noise) != (n, *self.shape):
                raise ValueError(f"noise is of shape {np.shape(noise)}, but must be {(n, *self.shape)}")
            columns.append(np.asarray(noise, np.float32))
        program = _Program(
            self.text,
            self.unet,
            self.autoencoder,
            self.prediction_type,
            self.shape,
            settings.clip and self.autoencoder is None,
            bool(np.any(scales != 1)),
            trajectory,
        )
        tableau = settings.tableau(self.schedule)
        batch_size = min(batch_size, n)
        images, paths = [], []
        for first in progress(range(0, n, batch_size)):
            # The last batch is filled up with rows from the beginning, so that one program serves all.
            rows = np.arange(first, first + batch_size) % n
            image, path = _draw(program, self.weights, tableau, [column[rows] for column in columns])
            images.append(np.asarray(image))
            paths.append(path if path is None else np.asarray(path))
        drawn = np.concatenate(images)[:n]
        return (drawn, np.concatenate(paths, axis=1)[:, :n]) if trajectory else drawn


@dataclass(frozen=True)
class _Program:
    """What a compiled sampler is compiled for; all else is run-time data."""

    text: TextTower
    unet: UNet
    autoencoder: Autoencoder | None
    prediction_type: str
    shape: tuple[int, int, int]
    clip: bool
    guided: bool
    trajectory: bool


@partial(jax.jit, static_argnums=0)
def _draw(program: _Program, weights, tableau: Tableau, columns) -> tuple[Array, Array | None]:
    """Tokens in, images out.

    weights: of each network.   columns: tokens and mask, negative tokens and mask, (b, n) each; scales and seeds,
        (b,) each; and, where it is not the seeds', noise (b, *shape).
    Returns images (b, h, w, 3) uint8 and the trajectory (steps, b, h, w, 3) uint8 or None.
    """
    tokens, mask, negative_tokens, negative_mask, scales, seeds, *noise = columns

    def encode(tokens: Array, mask: Array):
        hidden, pooled = program.text.apply({"params": weights["text"]}, tokens, mask)
        return hidden, mask, pooled

    def network(xt: Array, timestep: Array, caption) -> Array:
        return program.unet.apply({"params": weights["unet"]}, xt, timestep, *caption)

    def image(x0: Array) -> Array:
        if program.autoencoder is None:
            return _to_bytes(x0)
        return _to_bytes(program.autoencoder.apply({"params": weights["autoencoder"]}, x0, method="decode"))

    prompt = encode(tokens, mask)
    if program.guided:
        predict = guided(network, prompt, encode(negative_tokens, negative_mask), scales)
    else:

        def predict(xt: Array, timestep: Array) -> Array:
            return network(xt, timestep, prompt)

    denoise = prediction.denoiser(predict, program.prediction_type)
    if program.clip:
        denoise = prediction.clipped(denoise)
    keys = rng.image_keys(seeds)
    start = noise[0] if noise else sampler.start(keys, program.shape)
    x0, path = sampler.sample(denoise, tableau, start, keys=keys, trajectory=program.trajectory)
    return image(x0), (None if path is None else jax.lax.map(image, path))


def _to_bytes(x: Array) -> Array:
    """Floats in [-1, 1] as the nearest of 256 values."""
    return jnp.round((jnp.clip(x, -1, 1) + 1) * 127.5).astype(jnp.uint8)
