"""One training step of each model: the only gradients in the project."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

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
from jdiff.training import ema
from jdiff.training.state import TrainState

Step = Callable[[TrainState, dict], tuple[TrainState, dict]]


def images_of(batch: dict) -> Array:
    """The batch's images as the networks take them. u8 (b,h,w,3) -> float32 in [-1, 1]."""
    return batch["image"].astype(jnp.float32) / 127.5 - 1


def _apply(
    state: TrainState,
    loss_fn: Callable,
    optimizer: optax.GradientTransformation,
    decay: float | None,
    constrain: Callable = lambda params: params,
):
    """Differentiate, update, average. loss_fn: params -> (scalar, report).   constrain: undoes what no step may do."""
    (loss, report), gradients = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = constrain(optax.apply_updates(state.params, updates))
    average = None if decay is None else ema.update(state.ema, params, step=state.step, decay=decay)
    state = state.replace(step=state.step + 1, params=params, opt_state=opt_state, ema=average)
    return state, report | {"loss": loss, "grad_norm": optax.tree.norm(gradients)}


def contrastive_step(
    encoder: DualEncoder,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    *,
    ema_decay: float | None,
    hold_text: int = 0,
) -> Step:
    """The dual encoder's step: bring each caption and its image together, all others apart.

    hold_text: steps for which the text tower stays as it is, the mirror of [lit]. At its start it tells everything a
    little, the order of words too, but soon forgets what no image answers to; held, it teaches the vision tower first.
    Its gradients count all the while, in the norm that is clipped and in the optimizer's moments; with fresh moments it
    would start with steps so long that the loss triples.
    """

    def step(state: TrainState, batch: dict) -> tuple[TrainState, dict]:
        def loss_fn(params):
            weights = {**state.frozen, **params}
            found = encoder.apply({"params": weights}, batch["tokens"], batch["mask"], images_of(batch))
            value, report = loss(*found)
            return value, report | {"logit_scale": found[2]}

        def constrain(params: dict) -> dict:
            """The logit scale at most 100 [clip sec. 2.5], the text tower as it was while it is held."""
            params = params | {"logit_scale": jnp.minimum(params["logit_scale"], LOGIT_SCALE_CAP)}
            if hold_text:
                held, old = state.step < hold_text, state.params["text"]
                params["text"] = jax.tree.map(lambda old, new: jnp.where(held, old, new), old, params["text"])
            return params

        return _apply(state, loss_fn, optimizer, ema_decay, constrain)

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
    weighting: str,
    density: str,
    spectrum: np.ndarray | None = None,
    empty: Captioning,
    ema_decay: float | None,
    seed: int,
) -> Step:
    """The U-Net's step: noise each image, and find the noise with the help of its caption.

    Weights are found by name, "text", "unet" and "autoencoder": those in ``state.params`` are trained, those in
    ``state.frozen`` read. Timesteps, noise, caption dropout and, where there is an autoencoder, latents are drawn per
    example from (seed, step, place in the global batch).

    spectrum: variances of what is noised, for the report; see ``diffusion.loss``.
    """

    def step(state: TrainState, batch: dict) -> tuple[TrainState, dict]:
        def keys(name: str) -> Array:
            return rng.example_keys(rng.stream(seed, name), state.step, batch["index"])

        dropped = jax.vmap(lambda key: jax.random.bernoulli(key, empty.dropout))(keys("caption_dropout"))[:, None]
        tokens = jnp.where(dropped, empty.tokens[None], batch["tokens"])
        mask = jnp.where(dropped, empty.mask[None], batch["mask"])
        x0 = images_of(batch)
        if autoencoder is not None:
            mean, deviation = autoencoder.apply({"params": state.frozen["autoencoder"]}, x0, method="encode")
            x0 = mean + deviation * rng.normal(keys("latents"), mean.shape[1:])

        def loss_fn(params):
            weights = {**state.frozen, **params}
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
                density=density,
                spectrum=None if spectrum is None else jnp.asarray(spectrum),
            )

        return _apply(state, loss_fn, optimizer, ema_decay)

    return step


def points_step(
    mlp: MLP,
    points: Array,
    optimizer: optax.GradientTransformation,
    *,
    schedule: Schedule,
    prediction_type: str,
    weighting: str,
    density: str,
    ema_decay: float | None,
    seed: int,
) -> Step:
    """The step of a network of points: noise some of them, and find the noise.

    points: (n, d), of which each example of a batch, known by its "index" (b,) alone, draws one.
    """

    def step(state: TrainState, batch: dict) -> tuple[TrainState, dict]:
        def keys(name: str) -> Array:
            return rng.example_keys(rng.stream(seed, name), state.step, batch["index"])

        place = jax.vmap(lambda key: jax.random.randint(key, (), 0, len(points)))(keys("points"))

        def loss_fn(params):
            return diffusion.loss(
                lambda xt, timestep: mlp.apply({"params": params["mlp"]}, xt, timestep),
                points[place],
                keys=keys("noise"),
                schedule=schedule,
                prediction_type=prediction_type,
                weighting=weighting,
                density=density,
            )

        return _apply(state, loss_fn, optimizer, ema_decay)

    return step
