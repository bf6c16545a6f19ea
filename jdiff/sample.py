"""From sentences to images: the whole inference path on one page."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jdiff import rng
from jdiff.data.tokenizer import Tokenizer
from jdiff.diffusion import guidance, prediction, process, sampler
from jdiff.diffusion.guidance import Corrections, two_captions, two_networks
from jdiff.diffusion.schedules import Schedule
from jdiff.diffusion.settings import Settings
from jdiff.diffusion.tableau import Tableau, stack_tableaux
from jdiff.levels import Level
from jdiff.models.autoencoder import Autoencoder
from jdiff.models.clip import TextTower
from jdiff.models.unet import UNet

MAX_ROWS = 1000  # of a tableau, in the program that is compiled if nothing else is asked for


@dataclass(frozen=True)
class Program:
    """What a compiled sampler is compiled for; all else is run-time data. weaker: as in ``Sampler``."""

    text: TextTower
    unet: UNet
    autoencoder: Autoencoder | None
    prediction_type: str
    shape: tuple[int, int, int]
    weaker: tuple[TextTower, UNet] | None
    trajectory: bool


class Method(NamedTuple):
    """How to draw each image of a batch: run-time data, all of it. clip, percentile: of ``prediction.clipped``."""

    tableau: Tableau
    corrections: Corrections
    clip: Array
    percentile: Array


CAPTIONS = ("tokens", "mask", "negative_tokens", "negative_mask", "seeds")  # what else a program takes


@dataclass(frozen=True)
class Sampler:
    """A trained text-to-image model, ready to draw.

    weights: of each network, by the name of its field.
    autoencoder: where the U-Net works in latents; None where it works in pixels.
    shape: (h, w, c) of what the U-Net works in.
    learned_variance: whether the U-Net also says, in as many channels more, how much noise a step of DDPM adds.
    weaker: the networks of a weaker model, see ``with_autoguidance``.
    denoising_mse: what ``measure_denoising_mse`` has measured, None where it was not.
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
    learned_variance: bool = False
    weaker: tuple[TextTower, UNet] | None = None
    denoising_mse: tuple[tuple[float, ...], tuple[float, ...]] | None = None

    def sample(
        self,
        prompts: Sequence[str],
        *,
        negative: str | Sequence[str] = "",
        guidance_scale: float | Sequence[float] | None = None,
        seed: int | Sequence[int] = 0,
        noise: np.ndarray | None = None,
        settings: Settings | Sequence[Settings] | None = None,
        batch_size: int = 64,
        max_rows: int = MAX_ROWS,
        trajectory: bool = False,
        progress: Callable[[Sequence], Iterable] = iter,
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """Draw an image for each prompt.

        One compiled program for a batch size and ``max_rows`` draws everything: what is said here is data, and each
        image may have its own.

        negative: captions to move away from; the empty caption if not said.
        guidance_scale: in place of that of the settings.
        seed: image i of one seed has seed + i, so each can be drawn again alone.
        noise: what to begin from in place of the seeds' own, (n, h, w, c) standard normal, of latents where there are.
        settings: how to sample, for all or for each.
        batch_size: images per run of the compiled program; an image does not depend on its batch.
        max_rows: the most rows that a method may take; those that none takes cost nothing.
        progress: goes through the batches in order, and may tell how far it is.
        Returns images (n, h, w, 3) uint8 and, on request, the denoiser's view of each image at
        every step, (rows, n, h, w, 3) uint8; one that is done early stays as it is.
        Raises ``ValueError`` where something has not one value for each prompt, or cannot be drawn by.
        """
        if isinstance(prompts, str):
            raise ValueError(f"prompts is one sentence, {prompts!r}, but must be a list of them")
        n = len(prompts)
        if n < 1 or batch_size < 1:
            raise ValueError(f"there are {n} prompts and batch_size is {batch_size}; both must be 1 or more")
        chosen = _each("settings", self.settings if settings is None else settings, n)
        if guidance_scale is not None:
            scales = _each("guidance_scale", guidance_scale, n)
            chosen = [replace(one, guidance_scale=float(scale)) for one, scale in zip(chosen, scales)]
        seeds = np.array([seed + i for i in range(n)] if np.ndim(seed) == 0 else _each("seed", seed, n))
        if seeds.min() < 0 or seeds.max() >= 2**32:
            raise ValueError(f"seeds are from {seeds.min()} to {seeds.max()}, but must be from 0 to {2**32 - 1}")
        negatives = _each("negative", negative, n)
        if self.weaker is not None and any(negatives):
            raise ValueError("negative is said, but this model is led away from a weaker one in place of a caption")
        tableaux = {one: self.tableau(one) for one in set(chosen)}
        longest = max(tableau.num_rows for tableau in tableaux.values())
        rows = longest if trajectory else max(longest, max_rows)
        columns = [*self.tokenizer.encode(list(prompts)), *self.tokenizer.encode(negatives), seeds.astype(np.uint32)]
        begun = None
        if noise is not None:
            if np.shape(noise) != (n, *self.shape):
                raise ValueError(f"noise is of shape {np.shape(noise)}, but must be {(n, *self.shape)}")
            begun = np.asarray(noise, np.float32)
        program = self.program(trajectory=trajectory)
        together = batches([tableaux[one] for one in chosen], min(batch_size, n))
        images, paths = [], []
        for at in progress(together):
            image, path = draw(
                program,
                self.weights,
                self.method([chosen[i] for i in at], tableaux, max_rows=rows),
                [column[at] for column in columns],
                None if begun is None else begun[at],
            )
            images.append(np.asarray(image))
            paths.append(path if path is None else np.asarray(path))
        # Where each image was drawn first.
        place = np.unique(np.concatenate(together), return_index=True)[1]
        drawn = np.concatenate(images)[place]
        return (drawn, np.concatenate(paths, axis=1)[:, place]) if trajectory else drawn

    def tableau(self, settings: Settings) -> Tableau:
        """The coefficients that settings ask for, of this model's schedule. Raises ``ValueError``."""
        measured = self.denoising_mse
        return settings.tableau(
            self.schedule,
            self.prediction_type,
            learned_variance=self.learned_variance,
            denoising_mse=measured and (lambda level: np.interp(level.logsnr, *measured)),
        )

    def measure_denoising_mse(
        self, images: np.ndarray, prompts: Sequence[str], *, levels: int = 17, seed: int = 0, batch_size: int = 64
    ) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """What the model does not know of x0 at so many levels, the mean over images and dimensions of its squared
        error: for ``denoising_mse``, by which DDPM's "analytic" variance is drawn [analytic].

        images: (n, h, w, 3) uint8, that training has not seen.   prompts: of each.
        Returns log SNRs, rising, and variances.
        """
        low, high = self.schedule.rates(np.array([self.schedule.last, self.schedule.first])).logsnr
        timesteps = self.schedule.timestep(np.linspace(max(low, -20.0), high, levels))
        timesteps = np.unique(np.clip(np.round(timesteps), self.schedule.first, self.schedule.last))[::-1]
        timesteps = timesteps[self.schedule.rates(timesteps).alpha > 0]  # pure noise has no log SNR
        rates, tokens = self.schedule.rates(timesteps), self.tokenizer.encode(list(prompts))
        parts = np.array_split(np.arange(len(images)), -(-len(images) // batch_size))
        errors = np.zeros(len(timesteps))
        for i, at in enumerate(zip(timesteps, rates.alpha, rates.sigma)):
            level = [np.float32(value) for value in at]
            for part in parts:
                keys = rng.image_keys(seed + len(images) * i + part)
                captions = [column[part] for column in tokens]
                error = _squared_error(self.program(), self.weights, images[part], captions, keys, *level)
                errors[i] += float(error) * len(part) / len(images)
        return tuple(rates.logsnr.tolist()), tuple(errors.tolist())

    def program(self, *, trajectory: bool = False) -> Program:
        """What this model's compiled program depends on."""
        return Program(
            self.text, self.unet, self.autoencoder, self.prediction_type, self.shape, self.weaker, trajectory
        )

    def with_autoguidance(self, weaker: Sampler) -> Sampler:
        """This model led away from what a weaker one, such as an earlier or smaller, answers to the same prompt, in
        place of a negative prompt [autoguidance]. Raises ``ValueError`` where the two do not speak of the same."""
        for what, ours, theirs in (
            ("prediction type", self.prediction_type, weaker.prediction_type),
            ("shape", self.shape, weaker.shape),
            ("way of reading captions", self.tokenizer.layout(), weaker.tokenizer.layout()),
            ("vocabulary", self.tokenizer.vocab_size, weaker.tokenizer.vocab_size),
            ("number of timesteps", self.schedule.timesteps, weaker.schedule.timesteps),
            ("schedule's log SNRs", _some_levels(self.schedule), _some_levels(weaker.schedule)),
            ("channels of variance", self.learned_variance, weaker.learned_variance),
        ):
            if ours != theirs:
                raise ValueError(f"the weaker model's {what} is {theirs}, but must be this one's, {ours}")
        weights = {**self.weights, "weaker": {part: weaker.weights[part] for part in ("text", "unet")}}
        return replace(self, weaker=(weaker.text, weaker.unet), weights=weights)

    def method(
        self,
        settings: Sequence[Settings],
        tableaux: Mapping[Settings, Tableau] | None = None,
        *,
        max_rows: int = MAX_ROWS,
    ) -> Method:
        """How to draw images of one of these settings each. Latents are not clipped.

        tableaux: of the settings, where they were made before.
        """

        def column(values: Iterable) -> np.ndarray:
            return np.array(list(values), np.float32)

        pixels = self.autoencoder is None
        tableaux = tableaux or {one: self.tableau(one) for one in set(settings)}
        rows = max(max_rows, *(tableaux[one].num_rows for one in settings))
        return Method(
            stack_tableaux([tableaux[one] for one in settings], rows),
            Corrections(
                rescale=column(one.guidance_rescale for one in settings),
                parallel=column(one.apg_parallel for one in settings),
                norm=column(np.inf if one.apg_norm is None else one.apg_norm for one in settings),
                momentum=column(one.apg_momentum for one in settings),
            ),
            clip=np.array([one.clip and pixels for one in settings]),
            percentile=column(one.threshold_percentile if pixels else 0.0 for one in settings),
        )


def _some_levels(schedule: Schedule) -> list[float]:
    """What tells a schedule from others: log SNRs at its start, middle and end."""
    return schedule.rates(np.linspace(schedule.first, schedule.last, 3)).logsnr.round(6).tolist()


def _each(name: str, said: Any, n: int) -> list:
    """One value for each of n images, of what was said once for all or once for each."""
    values = [said] * n if np.ndim(said) == 0 else list(said)
    if len(values) != n:
        raise ValueError(f"{name} has {len(values)} values, but there are {n} prompts")
    return values


def batches(tableaux: Sequence[Tableau], size: int) -> list[np.ndarray]:
    """Which images are drawn together, each batch filled up with some of its own, so that one program serves all.

    A network rounds a batch of 2b another way than one of b, so images that are guided are not drawn beside images
    that are not, nor those that are guided for a part of the rows beside others that are at others: then an image's
    bits do not depend on what it is drawn with.
    """
    alike: dict[bytes, list[int]] = {}
    for i, tableau in enumerate(tableaux):
        led = tableau.guidance_scale != 1
        kind = np.flatnonzero(led).tobytes() if led.any() and not led.all() else bytes([int(led.any())])
        alike.setdefault(kind, []).append(i)
    found = []
    for members in alike.values():
        for first in range(0, len(members), size):
            part = members[first : first + size]
            found.append(np.resize(part, size))
    return found


@partial(jax.jit, static_argnums=0)
def draw(program: Program, weights, method: Method, captions, noise) -> tuple[Array, Array | None]:
    """Tokens in, images out.

    weights: of each network.   method: of each image.   captions: those of ``CAPTIONS``, (b, n) and (b,).
    noise: where it is not the seeds', (b, *shape).
    Returns images (b, h, w, 3) uint8 and the trajectory (rows, b, h, w, 3) uint8 or None.
    """

    def image(x0: Array) -> Array:
        if program.autoencoder is not None:
            x0 = program.autoencoder.apply({"params": weights["autoencoder"]}, x0, method="decode")
        return jnp.round((jnp.clip(x0, -1, 1) + 1) * 127.5).astype(jnp.uint8)

    x0, path = denoised(program, weights, method, captions, noise)
    return image(x0), (None if path is None else jax.lax.map(image, path))


def denoised(program: Program, weights, method: Method, captions, noise) -> tuple[Array, Array | None]:
    """As ``draw``, of x0 as the U-Net works in it, floats (b, *shape) and (rows, b, *shape)."""
    tokens, mask, negative_tokens, negative_mask, seeds = captions
    tableau, corrections, clip, percentile = method

    def denoiser(ask: Callable) -> Callable:
        def denoise(xt: Array, row: Tableau, memory: Array):
            output, memory = ask(xt, row, memory)
            answer = prediction.parse_output(program.prediction_type, output, xt, row.level)
            return prediction.clipped(answer, xt, row.level, clip_mask=clip, percentile=percentile), memory

        return denoise

    led = jnp.any(tableau.guidance_scale != 1, axis=1)
    predict, prompt = _network(program.unet, weights), _encode(program.text, weights, tokens, mask)
    if program.weaker is None:
        negative = jax.lax.cond(
            jnp.any(led),
            partial(_encode, program.text, weights),
            lambda *_: jax.tree.map(jnp.zeros_like, prompt),
            negative_tokens,
            negative_mask,
        )
        both = two_captions(predict, prompt, negative)
    else:
        text, unet = program.weaker
        theirs, caption = _network(unet, weights["weaker"]), _encode(text, weights["weaker"], tokens, mask)
        both = two_networks(
            lambda xt, timestep: predict(xt, timestep, prompt), lambda xt, timestep: theirs(xt, timestep, caption)
        )
    alone = denoiser(lambda xt, row, memory: (predict(xt, row.timestep, prompt), memory))
    guided = denoiser(guidance.guided(both, program.prediction_type, corrections))

    keys = rng.image_keys(seeds)
    start = sampler.initial_noise(keys, program.shape) if noise is None else noise
    memory = jnp.zeros_like(start)
    if not program.trajectory:
        return sampler.sample_switching_denoisers([alone, guided], led, tableau, start, keys=keys, memory=memory), None

    def either(xt: Array, row: Tableau, memory: Array):
        return jax.lax.cond(jnp.any(row.guidance_scale != 1), guided, alone, xt, row, memory)

    return sampler.sample(either, tableau, start, keys=keys, memory=memory, trajectory=True)


def _encode(text: TextTower, weights, tokens: Array, mask: Array) -> tuple:
    """Captions as a U-Net reads them. weights: by network."""
    hidden, pooled = text.apply({"params": weights["text"]}, tokens, mask)
    return hidden, mask, pooled


def _network(unet: UNet, weights) -> Callable:
    """(xt, timestep, caption of ``_encode``) -> output."""
    return lambda xt, timestep, caption: unet.apply({"params": weights["unet"]}, xt, timestep, *caption)


@partial(jax.jit, static_argnums=0)
def _squared_error(program: Program, weights, images, tokens, keys, timestep, alpha, sigma) -> Array:
    """The mean squared error of x0, in [-1, 1] or in latents, of images noised to one level."""
    x0 = jnp.asarray(images, jnp.float32) / 127.5 - 1
    if program.autoencoder is not None:
        x0, _ = program.autoencoder.apply({"params": weights["autoencoder"]}, x0, method="encode")
    level = Level(jnp.full(len(x0), alpha), jnp.full(len(x0), sigma))
    xt = process.diffuse(x0, rng.normal(keys, x0.shape[1:]), level)
    caption = _encode(program.text, weights, *tokens)
    output = _network(program.unet, weights)(xt, jnp.full(len(x0), timestep), caption)
    answer = prediction.parse_output(program.prediction_type, output, xt, level)
    if program.autoencoder is None:
        answer = prediction.clipped(answer, xt, level)
    return jnp.mean((answer.x0 - x0) ** 2)
