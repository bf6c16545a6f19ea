"""The task of a text-to-image diffusion model: a denoiser that reads captions by cross-attention."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from jdiff import rng
from jdiff.config.construct import ConfigError, choose, construct
from jdiff.config.sections import Config, check_diffusion
from jdiff.diffusion import loss as diffusion
from jdiff.diffusion import weighting
from jdiff.diffusion.gaussian_baseline import data_spectrum
from jdiff.diffusion.schedules import Discrete, Schedule
from jdiff.diffusion.weighting import WEIGHTINGS
from jdiff.evaluation import diversity
from jdiff.evaluation.sampler_metrics import COLUMNS, Draw, negative_prompt_metrics, sampler_metrics, shares
from jdiff.images import display_scale, image_grid
from jdiff.inference.sampler import Sampler
from jdiff.models.autoencoder import Autoencoder
from jdiff.models.unet import UNet
from jdiff.sharding import mesh as meshes
from jdiff.tasks.task import DATA_SECTIONS, Evaluation, ImageTextTask, Picture, TracedKeys, traced_keys
from jdiff.training.hyperparameters import TracedHyperparameters
from jdiff.training.state import Params, TrainState
from jdiff.training.update import Keys, images_of

DENOISERS = {"unet": UNet}  # config.denoiser.kind
STATISTICS_IMAGES = 512  # training images that a Gaussian is fitted to, whose loss is reported beside the model's
MEASURE_IMAGES = 16  # of a sweep's cell, on its page


@dataclass(frozen=True)
class DiffusionObjective:
    """The denoising loss: noise each image, and predict what was added with the help of its caption.

    Parameters are found by the names of their networks. Timesteps, noise, caption dropout and, with an autoencoder,
    latents are drawn per example from (seed, step, index in the global batch).

    empty: tokens and mask (n,) of the empty caption, the one that sampling guides away from.
    spectrum: variances of what is noised, for the report; see ``diffusion.loss``.
    """

    networks: Mapping[str, Any]
    config: Config
    schedule: Schedule
    empty: tuple[np.ndarray, np.ndarray]
    spectrum: np.ndarray | None
    mean_of_rows: ClassVar[bool] = True

    def optimizer(self, hparams: TracedHyperparameters) -> optax.GradientTransformation:
        return self.config.make_optimizer(hparams.optimizer)

    def forward(self, params: Params, hparams: TracedHyperparameters, rows: dict, keys: Keys) -> tuple[Array, dict]:
        """The loss of a microbatch, and its report."""
        is_dropped = jax.vmap(lambda key: jax.random.bernoulli(key, hparams.caption_dropout))(keys("caption_dropout"))
        tokens, mask = (
            jnp.where(is_dropped[:, None], empty[None], rows[name])
            for empty, name in zip(self.empty, ("tokens", "mask"))
        )
        x0 = images_of(rows)
        if "autoencoder" in self.networks:
            latents = {"params": params["autoencoder"]}
            mean, deviation = self.networks["autoencoder"].apply(latents, x0, method="encode")
            x0 = mean + deviation * rng.normal(keys("latents"), mean.shape[1:])
        hidden, pooled = self.networks["text"].apply({"params": params["text"]}, tokens, mask)

        def predict(xt: Array, timestep: Array) -> Array:
            return self.networks["denoiser"].apply({"params": params["denoiser"]}, xt, timestep, hidden, mask, pooled)

        return diffusion.loss(
            predict,
            x0,
            keys=keys("noise"),
            schedule=traced_schedule(self.schedule, hparams),
            prediction_type=self.config.diffusion.prediction_type,
            weighting=traced_weighting(self.config, hparams),
            timestep_sampling=self.config.diffusion.timestep_sampling_function(),
            spectrum=None if self.spectrum is None else jnp.asarray(self.spectrum),
        )

    def reduce(self, params: Params, hparams: TracedHyperparameters, outputs: tuple) -> tuple[Array, dict]:
        return outputs

    def project(self, new: Params, old: Params, step: Array) -> Params:
        return new


def traced_schedule(schedule: Schedule, hparams: TracedHyperparameters) -> Schedule:
    """The schedule, with its table where that is passed to the compiled step."""
    if hparams.schedule_table is None:
        return schedule
    assert isinstance(schedule, Discrete)  # ``trace_diffusion`` traces no other's table
    return schedule.with_traced_table(hparams.schedule_table)


def traced_weighting(config: Config, hparams: TracedHyperparameters) -> Callable:
    """The loss weighting, or the one whose place is passed to the compiled step."""
    if hparams.weighting_index is None:
        return config.diffusion.weighting_function()
    return weighting.select(list(WEIGHTINGS.values()), hparams.weighting_index)


def trace_diffusion(config: Config) -> tuple[TracedHyperparameters, TracedKeys]:
    """``Task.traced_hparams`` of a diffusion model: also a discrete schedule's table, and the weighting's index."""
    hparams, keys, section = config.hparams, traced_keys(config), config.diffusion
    names: tuple[str, ...] = ("caption_dropout",)
    schedule = section.make_schedule()
    if isinstance(schedule, Discrete) and not section.learned_variance:
        hparams = dataclasses.replace(hparams, schedule_table=schedule.table)
        names += ("schedule", "shift", "zero_terminal_snr")
    if isinstance(section.weighting, str):  # one with parameters is compiled for
        hparams = dataclasses.replace(hparams, weighting_index=list(WEIGHTINGS).index(section.weighting))
        names += ("weighting",)
    return hparams, keys | {"diffusion": names}


@dataclass(frozen=True)
class TextToImage(ImageTextTask):
    """Trains a denoiser in pixels or latents. Checked whole when it is made."""

    name: ClassVar[str] = "text_to_image"
    network_names: ClassVar[tuple[str, ...]] = ("text", "denoiser", "autoencoder")
    sections: ClassVar[tuple[str, ...]] = ("text", "denoiser", "autoencoder", "diffusion", "sample", *DATA_SECTIONS)
    frozen_by_default: ClassVar[frozenset[str]] = frozenset({"text", "autoencoder"})
    evaluate_num: ClassVar[int] = 256
    preview_num: ClassVar[int] = 16
    has_convolutions: ClassVar[bool] = True
    draws: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_diffusion(self.config)
        if self.config.train.freeze_text_steps:
            raise ConfigError("config.train.freeze_text_steps is set, but task 'text_to_image' does not use it")
        if "autoencoder" in self.config.networks and "autoencoder" not in self.frozen_networks:
            raise ConfigError("config.autoencoder.frozen is false, but the autoencoder is not trained; leave it out")
        if {"text", "denoiser"} <= self.frozen_networks:
            raise ConfigError("config.text.frozen and config.denoiser.frozen are true, so nothing is trained")
        text = self.text()
        if "layers" in self.network_keys("text") and not 0 <= text.clip_skip < text.layers:
            raise ConfigError(
                f"config.text.clip_skip is {text.clip_skip}; it must be from 0 to {text.layers - 1}, as the text "
                f"tower has {text.layers} layers"
            )
        self.denoiser()
        autoencoder = self.autoencoder()
        if autoencoder and self.image_size % autoencoder.factor:
            raise ConfigError(
                f"config.data.image_size is {self.image_size}, not a multiple of {autoencoder.factor}, as the "
                "autoencoder needs it"
            )
        if not 0 <= self.config.diffusion.caption_dropout <= 1:
            raise ConfigError(
                f"config.diffusion.caption_dropout is {self.config.diffusion.caption_dropout}; it must be from 0 to 1"
            )

    def traced_hparams(self) -> tuple[TracedHyperparameters, TracedKeys]:
        return trace_diffusion(self.config)

    def schedule(self) -> Schedule:
        return self.config.diffusion.make_schedule()

    def denoiser(self) -> nn.Module:
        keys = self.network_keys("denoiser")
        kind = choose("denoiser.kind", keys.pop("kind", "unet"), DENOISERS)
        channels = self.shape[-1] * (2 if self.config.diffusion.learned_variance else 1)
        return construct("denoiser", kind, keys, out_channels=channels)

    def autoencoder(self) -> Autoencoder | None:
        """The autoencoder whose latents are denoised; None where pixels are."""
        if "autoencoder" not in self.config.networks:
            return None
        return construct("autoencoder", Autoencoder, self.network_keys("autoencoder"))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(h, w, c) of what is denoised, pixels or latents."""
        autoencoder = self.autoencoder()
        if autoencoder is None:
            return self.image_size, self.image_size, 3
        side = self.image_size // autoencoder.factor
        return side, side, autoencoder.latent_channels

    def networks(self, mesh: Mesh | None = None) -> dict[str, Any]:
        autoencoder = self.autoencoder()  # which has an attention of its own
        return super().networks(mesh) | ({} if autoencoder is None else {"autoencoder": autoencoder})

    def make_networks(self) -> dict[str, nn.Module]:
        return {"text": self.text(), "denoiser": self.denoiser()}

    def init(self, seed: int | Array) -> Params:
        n, key = self.config.context_length, rng.stream(seed, "parameters")
        tokens, mask = jnp.zeros((1, n), jnp.int32), jnp.ones((1, n), bool)
        text, autoencoder = self.text(), self.autoencoder()
        hidden, pooled = jnp.zeros((1, n, text.width)), jnp.zeros((1, text.embed_dim or text.width))
        xt, timestep = jnp.zeros((1, *self.shape)), jnp.zeros((1,))
        params = {
            "text": text.init(key, tokens, mask)["params"],
            "denoiser": self.denoiser().init(key, xt, timestep, hidden, mask, pooled)["params"],
        }
        if autoencoder is None:
            return params
        image = jnp.zeros((1, self.image_size, self.image_size, 3))
        return params | {"autoencoder": autoencoder.init(key, image)["params"]}

    def objectives(self, mesh: Mesh | None, statistics: Any = None) -> tuple[DiffusionObjective]:
        tokens, mask = self.tokenizer.encode([""])
        empty = (tokens[0], mask[0])
        return (DiffusionObjective(self.networks(mesh), self.config, self.schedule(), empty, statistics),)

    def statistics(self, examples: Sequence[dict], state: TrainState, mesh: Mesh) -> np.ndarray:
        """The variances of a Gaussian fitted to the first training images, or to their latents."""
        images = np.stack([examples[i]["image"] for i in range(min(STATISTICS_IMAGES, len(examples)))])
        x0, autoencoder = images.astype(np.float32) / 127.5 - 1, self.autoencoder()
        if autoencoder is not None:
            encode = jax.jit(lambda params, x: autoencoder.apply({"params": params}, x, method="encode")[0])
            params = meshes.gather_to_local_device(mesh, state.frozen["autoencoder"])
            x0 = np.concatenate([encode(params, x0[i : i + 8]) for i in range(0, len(x0), 8)])
        return np.asarray(multihost_utils.broadcast_one_to_all(data_spectrum(x0)))

    def model(self, params: Mapping[str, Any], *, denoising_mse: Any = None) -> Sampler:
        """A sampler with these parameters, on this process's first device."""
        networks = self.networks()
        return Sampler(
            tokenizer=self.tokenizer,
            text=networks["text"],
            denoiser=networks["denoiser"],
            autoencoder=networks.get("autoencoder"),
            params=params,
            schedule=self.schedule(),
            prediction_type=self.config.diffusion.prediction_type,
            shape=self.shape,
            settings=self.config.sample,
            learned_variance=self.config.diffusion.learned_variance,
            denoising_mse=denoising_mse,
        )

    def previews(self, params: Mapping[str, Any], examples: Sequence[dict]) -> Picture:
        """Images for the captions of some examples."""
        captions = [example["captions"][0].decode() for example in examples]
        images = self.model(params).sample(captions, seed=0)
        picture = image_grid(images, columns=4, scale=display_scale(self.image_size), captions=captions)
        return Picture("samples", picture, {"captions": captions, "seed": 0, **dataclasses.asdict(self.config.sample)})

    def evaluate(
        self,
        model: Sampler,
        *,
        split: str,
        num: int | None = None,
        guidance_scales: Sequence[float] | None = None,
        negative_prompts: bool = False,
        progress: Callable[[float], Callable[[Sequence], Iterable]] = lambda scale: iter,
    ) -> Evaluation:
        """Images for a split's captions at each guidance scale, judged by the data's evaluator where it can.

        progress: of a scale -> what goes through the batches of a drawing.
        """
        examples, num = self.split(split), num or self.evaluate_num
        scales = list(guidance_scales or [self.config.sample.guidance_scale])
        draw: Draw = partial(_draw, model, progress)
        metrics, grids = sampler_metrics(draw, self.evaluator, self.split, examples, num, scales)
        if negative_prompts:
            draw_at_config = partial(draw, self.config.sample.guidance_scale)
            metrics["negatives"] = negative_prompt_metrics(draw_at_config, self.evaluator, num)
        pictures = []
        for scale, (images, captions) in grids.items():
            picture = image_grid(images, columns=COLUMNS, scale=display_scale(self.image_size, 64), captions=captions)
            settings = dataclasses.asdict(dataclasses.replace(self.config.sample, guidance_scale=scale))
            pictures.append(
                Picture(f"guidance_{scale:g}", picture, {"captions": [c for c in captions if c], "seed": 0, **settings})
            )
        return Evaluation(metrics, shares(metrics["scales"][f"{scales[0]:g}"]), pictures)

    def measure(
        self, model: Sampler, *, split: str, num: int, seed: int = 0
    ) -> tuple[dict[str, float], np.ndarray | None]:
        """Of a sweep's cell: every prompt is drawn twice, from different noise; cells of one seed share the noise."""
        examples = self.split(split)
        indices = self.evaluator.choose(examples, (num or self.evaluate_num) // 2)
        captions, n = [self.evaluator.caption(examples[i]) for i in indices], 2 * len(indices)
        images = model.sample(captions * 2, settings=self.config.sample, seed=range(seed * n, seed * n + n))
        rates = self.evaluator.judge(images, [examples[i] for i in indices] * 2, self.split)
        spread = diversity.pairwise_diversity(images[: n // 2], images[n // 2 :])
        scale = display_scale(self.image_size, 64)
        first = slice(MEASURE_IMAGES)
        grid = image_grid(images[first], columns=COLUMNS, scale=scale, captions=(captions * 2)[first])
        return shares(rates) | {"diversity": spread}, grid


def _draw(
    model: Sampler,
    progress: Callable[[float], Callable[[Sequence], Iterable]],
    scale: float,
    prompts: Sequence[str],
    *,
    negative: str | Sequence[str] = "",
    seed: int | Sequence[int] = 0,
) -> np.ndarray:
    settings = dataclasses.replace(model.settings, guidance_scale=scale)
    return model.sample(list(prompts), settings=settings, negative=negative, seed=seed, progress=progress(scale))
