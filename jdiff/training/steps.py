"""One training step of each model: the only gradients in the project."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from jdiff import rng
from jdiff.contrastive.loss import Loss
from jdiff.diffusion import loss as diffusion
from jdiff.diffusion.schedules import Schedule
from jdiff.models.autoencoder import Autoencoder
from jdiff.models.clip import LOGIT_SCALE_CAP, DualEncoder, TextTower
from jdiff.models.mlp import MLP
from jdiff.models.unet import UNet
from jdiff.training import metrics
from jdiff.training.ema import EmaConfig
from jdiff.training.parts import DeterministicReduction, GradientAccumulation
from jdiff.training.state import Params, TrainState

Step = Callable[[TrainState, dict], tuple[TrainState, metrics.Metrics]]
Parts = GradientAccumulation | DeterministicReduction
WHOLE = GradientAccumulation()
NO_EMA_CONFIG = EmaConfig()


def images_of(batch: dict) -> Array:
    """The batch's images as the networks take them. u8 (b,h,w,3) -> float32 in [-1, 1]."""
    return batch["image"].astype(jnp.float32) / 127.5 - 1


def _apply(
    state: TrainState,
    gradients: Params,
    report: metrics.Metrics,
    optimizer: optax.GradientTransformation,
    ema: EmaConfig,
    constrain: Callable = lambda params: params,
) -> tuple[TrainState, metrics.Metrics]:
    """Update, average. constrain: undoes what no step may do."""
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = constrain(optax.apply_updates(state.params, updates))
    new_ema = ema.update(state.ema, params, state.step)
    state = state.replace(step=state.step + 1, params=params, opt_state=opt_state, ema=new_ema)
    return state, report | metrics.from_values({"grad_norm": optax.tree.norm(gradients)})


def _mean(loss_fn: Callable, state: TrainState, batch: dict, parts: Parts) -> tuple[Params, metrics.Metrics]:
    """The gradient of a mean over the rows of a batch, and the report.

    loss_fn: (params, state, rows) -> (scalar, report).
    """

    def of(state: TrainState, part: dict) -> tuple[Params, metrics.Metrics]:
        (loss, report), gradients = jax.value_and_grad(loss_fn, has_aux=True)(state.params, state, part)
        return gradients, metrics.from_values(report | {"loss": loss})

    gradients, report = parts.sum(of, state, batch)
    return jax.tree.map(lambda g: g / parts.count, gradients) if parts.count > 1 else gradients, report


def contrastive_step(
    encoder: DualEncoder,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    *,
    ema: EmaConfig = NO_EMA_CONFIG,
    freeze_text_steps: int = 0,
    parts: Parts = WHOLE,
) -> Step:
    """The dual encoder's step: bring each caption and its image together, all others apart.

    freeze_text_steps: steps for which the text tower stays as it is, the mirror of [lit]. At first it tells all a
    little, the order of words too, but soon forgets what no image answers to; held, it teaches the vision tower first.
    Its gradients count all the while, in the norm that is clipped and in the optimizer's moments; with fresh moments it
    would start with steps so long that the loss triples.

    parts: of a batch whose activations exceed memory. All is embedded, the loss is differentiated by the embeddings,
    and the towers go over each part again with the gradient of its embeddings [gradcache].
    """

    def embed(towers: Params, state: TrainState, rows: dict) -> tuple[Array, Array]:
        weights = {**state.frozen, **state.params, **towers}
        return encoder.apply({"params": weights}, rows["tokens"], rows["mask"], images_of(rows))[:2]

    def loss_fn(numbers: dict, text: Array, image: Array) -> tuple[Array, dict]:
        scale, bias = jnp.exp(numbers["logit_scale"]), numbers.get("logit_bias", jnp.zeros(()))
        value, report = loss(text, image, scale, bias)
        return value, report | {"logit_scale": scale, "loss": value}

    def split(params: Params) -> tuple[dict, Params]:
        """The temperature, with the bias where there is one, and the towers."""
        numbers = {name: value for name, value in params.items() if name.startswith("logit_")}
        return numbers, {name: tree for name, tree in params.items() if name not in numbers}

    def again(state: TrainState, part: tuple[dict, list]) -> Params:
        rows, slopes = part
        return jax.vjp(lambda towers: embed(towers, state, rows), split(state.params)[1])[1](tuple(slopes))[0]

    def step(state: TrainState, batch: dict) -> tuple[TrainState, metrics.Metrics]:
        numbers, towers = split(state.params)
        if parts.count == 1:
            embeddings, pull = jax.vjp(lambda towers: embed(towers, state, batch), towers)
        else:
            embeddings = parts.each(partial(embed, {}), state, batch)
        graded = jax.grad(loss_fn, argnums=(0, 1, 2), has_aux=True)
        (gradients, *slopes), report = graded(numbers, *parts.whole(embeddings))
        if parts.count == 1:
            (of_towers,) = pull(tuple(slopes))
        else:
            of_towers = parts.sum(again, state, (batch, parts.own(slopes)))

        def constrain(params: dict) -> dict:
            """The logit scale at most 100 [clip sec. 2.5], the text tower as it was while it is held."""
            params = params | {"logit_scale": jnp.minimum(params["logit_scale"], LOGIT_SCALE_CAP)}
            if freeze_text_steps:
                held, old = state.step < freeze_text_steps, state.params["text"]
                params["text"] = jax.tree.map(lambda old, new: jnp.where(held, old, new), old, params["text"])
            return params

        return _apply(state, gradients | of_towers, metrics.from_values(report), optimizer, ema, constrain)

    return step


@dataclass(frozen=True)
class Captioning:
    """How often, and by what, a caption is replaced in training.

    tokens, mask: (n,) the empty caption, the very one that sampling guides away from.
    dropout: share of examples whose caption is replaced by it.
    """

    tokens: Array
    mask: Array
    dropout: float


def diffusion_step(
    unet: UNet,
    text: TextTower,
    autoencoder: Autoencoder | None,
    optimizer: optax.GradientTransformation,
    *,
    schedule: Schedule,
    prediction_type: str,
    weighting: str | Array,
    timestep_sampling: str,
    spectrum: np.ndarray | None = None,
    empty: Captioning,
    ema: EmaConfig = NO_EMA_CONFIG,
    seed: int,
    parts: Parts = WHOLE,
) -> Step:
    """The U-Net's step: noise each image, and find the noise with the help of its caption.

    Weights are found by name, "text", "unet" and "autoencoder": those in ``state.params`` are trained, those in
    ``state.frozen`` read. Timesteps, noise, caption dropout and, where there is an autoencoder, latents are drawn per
    example from (seed, step, place in the global batch).

    spectrum: variances of what is noised, for the report; see ``diffusion.loss``.
    parts: of a batch whose activations exceed memory; the gradient is the mean of theirs.
    """

    def loss_fn(params: Params, state: TrainState, rows: dict) -> tuple[Array, dict]:
        def keys(name: str) -> Array:
            return rng.example_keys(rng.stream(seed, name), state.step, rows["index"])

        weights = {**state.frozen, **params}
        dropped = jax.vmap(lambda key: jax.random.bernoulli(key, empty.dropout))(keys("caption_dropout"))[:, None]
        tokens = jnp.where(dropped, empty.tokens[None], rows["tokens"])
        mask = jnp.where(dropped, empty.mask[None], rows["mask"])
        x0 = images_of(rows)
        if autoencoder is not None:
            mean, deviation = autoencoder.apply({"params": weights["autoencoder"]}, x0, method="encode")
            x0 = mean + deviation * rng.normal(keys("latents"), mean.shape[1:])
        hidden, pooled = text.apply({"params": weights["text"]}, tokens, mask)

        def predict(xt: Array, timestep: Array) -> Array:
            return unet.apply({"params": weights["unet"]}, xt, timestep, hidden, mask, pooled)

        return diffusion.loss(
            predict,
            x0,
            keys=keys("noise"),
            schedule=schedule,
            prediction_type=prediction_type,
            weighting=weighting,
            timestep_sampling=timestep_sampling,
            spectrum=None if spectrum is None else jnp.asarray(spectrum),
        )

    def step(state: TrainState, batch: dict) -> tuple[TrainState, metrics.Metrics]:
        return _apply(state, *_mean(loss_fn, state, batch, parts), optimizer, ema)

    return step


def points_step(
    mlp: MLP,
    points: Array,
    optimizer: optax.GradientTransformation,
    *,
    schedule: Schedule,
    prediction_type: str,
    weighting: str | Array,
    timestep_sampling: str,
    ema: EmaConfig = NO_EMA_CONFIG,
    seed: int,
) -> Step:
    """The step of a network of points: noise some of them, and find the noise.

    points: (n, d), of which each example of a batch, known by its "index" (b,) alone, draws one.
    """

    def loss_fn(params: Params, state: TrainState, rows: dict) -> tuple[Array, dict]:
        def keys(name: str) -> Array:
            return rng.example_keys(rng.stream(seed, name), state.step, rows["index"])

        place = jax.vmap(lambda key: jax.random.randint(key, (), 0, len(points)))(keys("points"))
        return diffusion.loss(
            lambda xt, timestep: mlp.apply({"params": params["mlp"]}, xt, timestep),
            points[place],
            keys=keys("noise"),
            schedule=schedule,
            prediction_type=prediction_type,
            weighting=weighting,
            timestep_sampling=timestep_sampling,
        )

    def step(state: TrainState, batch: dict) -> tuple[TrainState, metrics.Metrics]:
        return _apply(state, *_mean(loss_fn, state, batch, WHOLE), optimizer, ema)

    return step
