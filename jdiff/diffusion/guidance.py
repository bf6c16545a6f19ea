"""Guidance: closures around a network, so that samplers have no options about it.

    guided = unconditional + scale (conditional - unconditional)                       [cfg eq. 6]       (8)

Unconditional is the prediction for the empty caption or for a negative prompt, or that of a weaker network for the
same prompt [autoguidance eq. 3]. Corrections limit what a large scale does to an image:

    rescale    guided std(conditional) / std(guided), mixed in by a share              [zsnr eq. 15, 16] (28)
    APG        the contrast, conditional - unconditional of x0, plus ``momentum`` times the contrast of the step
               before; its root mean square at most ``norm``; its part along the conditional x0 scaled by
               ``parallel``                                                            [apg alg. 1]      (29)
    interval   a scale of 1 outside of a range of log SNRs: a column of the tableau    [interval]

Everything is per image: an image's prediction depends on its own options alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

from jdiff.diffusion.prediction import equations, solve, split_variance
from jdiff.levels import AnyArray, broadcast_like


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Corrections:
    """Corrections of guidance, each (b,), one per image; the defaults are plain guidance (8).

    rescale: share of (28).   parallel, norm, momentum: of (29); norm bounds the root mean square over an image.
    """

    rescale: AnyArray | float = 0.0
    parallel: AnyArray | float = 1.0
    norm: AnyArray | float = jnp.inf
    momentum: AnyArray | float = 0.0


def two_captions(predict: Callable, prompt, negative) -> Callable:
    """Predict with one network for both captions, in one batch of 2b.

    predict: (xt (b, ...), timestep (b,), conditioning) -> output.   prompt, negative: captions, trees of (b, ...).
    Returns (xt, timestep) -> (conditional, unconditional).
    """
    captions = jax.tree.map(lambda p, n: jnp.concatenate([p, n]), prompt, negative)

    def predict_pair(xt: Array, timestep: Array) -> tuple[Array, Array]:
        outputs = predict(jnp.concatenate([xt, xt]), jnp.concatenate([timestep, timestep]), captions)
        conditional, unconditional = jnp.split(outputs, 2)
        return conditional, unconditional

    return predict_pair


def two_networks(predict: Callable, weaker: Callable) -> Callable:
    """Autoguidance: predict with a network and with a weaker one, both (xt, timestep) -> output.

    Returns (xt, timestep) -> (conditional, unconditional), the latter being the weaker network's prediction.
    """
    return lambda xt, timestep: (predict(xt, timestep), weaker(xt, timestep))


def guided(predict_pair: Callable, prediction_type: str, corrections: Corrections) -> Callable:
    """Classifier-free guidance: extrapolate a text-conditioned network towards its prompt, equation (8).

    The scale is the tableau's: 0 ignores the prompt, 1 is the plain conditional model; larger values trade variety for
    fidelity. A negative prompt is nothing more than a caption for the unconditional prediction that is not empty.
    The channels of a learned variance are not guided.

    predict_pair: (xt, timestep) -> (conditional, unconditional), from ``two_captions`` or ``two_networks``.
    Returns (xt, row, memory) -> (output, memory); memory is of the shape of xt, zeros at the start.
    """

    def predict(xt: Array, row, memory: Array) -> tuple[Array, Array]:
        scale = broadcast_like(row.guidance_scale, xt)
        c = jax.tree.map(lambda value: broadcast_like(value, xt), corrections)
        output, other_output = predict_pair(xt, row.timestep)
        conditional, variance_fraction = split_variance(output, xt)
        unconditional, _ = split_variance(other_output, xt)
        prediction = unconditional + scale * (conditional - unconditional)
        has_corrections = (c.rescale != 0) | (c.parallel != 1) | jnp.isfinite(c.norm) | (c.momentum != 0)
        corrected, new_memory = jax.lax.cond(
            jnp.any(has_corrections),
            lambda: _corrected(conditional, unconditional, prediction, xt, row, prediction_type, c, memory),
            lambda: (prediction, memory),
        )
        memory = jnp.where(scale == 1, memory, new_memory)  # as for an image that is sampled alone
        prediction = jnp.where(scale == 1, conditional, jnp.where(has_corrections, corrected, prediction))
        if variance_fraction is not None:
            prediction = jnp.concatenate([prediction, output[..., xt.shape[-1] :]], axis=-1)
        return prediction, memory

    return predict


def _corrected(conditional, unconditional, plain, xt, row, prediction_type, c, memory) -> tuple[Array, Array]:
    """(29), then (28). x0 is linear in a network's output, so contrasts are converted to those of x0 and back."""
    axes = tuple(range(1, xt.ndim))
    level = row.level.broadcast_like(xt)
    x0_per_output = -level.sigma / equations(prediction_type, level)[2]

    x0 = solve(prediction_type, conditional, xt, row.level).x0
    contrast = x0_per_output * (conditional - unconditional) + c.momentum * memory
    size = jnp.sqrt(jnp.mean(contrast**2, axis=axes, keepdims=True))
    bounded_contrast = contrast * jnp.minimum(1, c.norm / jnp.maximum(size, 1e-12))
    squared_norm = jnp.maximum(jnp.sum(x0**2, axes, keepdims=True), 1e-12)
    parallel = jnp.sum(bounded_contrast * x0, axis=axes, keepdims=True) / squared_norm * x0
    update = bounded_contrast - parallel + c.parallel * parallel
    projection = conditional + (broadcast_like(row.guidance_scale, xt) - 1) * update / x0_per_output
    without_apg = (c.parallel == 1) & jnp.isinf(c.norm) & (c.momentum == 0)
    prediction = jnp.where(without_apg, plain, projection)

    prediction_std = jnp.maximum(prediction.std(axes, keepdims=True), 1e-12)
    same_std = prediction * conditional.std(axes, keepdims=True) / prediction_std
    prediction = jnp.where(c.rescale != 0, c.rescale * same_std + (1 - c.rescale) * prediction, prediction)
    return prediction, jnp.where(c.momentum != 0, contrast, memory)
