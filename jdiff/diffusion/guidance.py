"""Guidance: closures around a network, so that samplers have no options about it.

    answer = without + scale (with - without)                                          [cfg eq. 6]       (8)

A network that answers without its caption, or with a negative prompt in its place, or a weaker one
[autoguidance eq. 3], is what the answer is led away from. What a large scale does to an image can be held back:

    rescale    answer std(with) / std(answer), mixed in by a share                     [zsnr eq. 15, 16] (28)
    APG        with - without of x0, plus ``momentum`` times the same of the step before; at most ``norm`` long;
               its part along the x0 of ``with`` only to the share ``parallel``        [apg alg. 1]      (29)
    interval   a scale of 1 outside of a range of log SNRs: a column of the tableau    [interval]

Everything is per image: an image's answer depends on its own options alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

from jdiff.diffusion.prediction import equations, solve, split_variance
from jdiff.levels import broadcast_like


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Corrections:
    """How guidance is held back, each (b,), one per image; these values do nothing.

    rescale: share of (28).   parallel, norm, momentum: of (29); norm is of the root mean square over an image.
    """

    rescale: Array | float = 0.0
    parallel: Array | float = 1.0
    norm: Array | float = jnp.inf
    momentum: Array | float = 0.0


def two_captions(predict: Callable, prompt, negative) -> Callable:
    """Ask one network about both captions, in one batch of 2b.

    predict: (xt (b, ...), timestep (b,), conditioning) -> output.   prompt, negative: captions, trees of (b, ...).
    Returns (xt, timestep) -> (with, without).
    """
    both = jax.tree.map(lambda p, n: jnp.concatenate([p, n]), prompt, negative)

    def ask(xt: Array, timestep: Array) -> tuple[Array, Array]:
        doubled = predict(jnp.concatenate([xt, xt]), jnp.concatenate([timestep, timestep]), both)
        with_prompt, without = jnp.split(doubled, 2)
        return with_prompt, without

    return ask


def two_networks(predict: Callable, weaker: Callable) -> Callable:
    """Ask a network and a weaker one, both (xt, timestep) -> output. Returns (xt, timestep) -> (with, without)."""
    return lambda xt, timestep: (predict(xt, timestep), weaker(xt, timestep))


def guided(both: Callable, prediction_type: str, corrections: Corrections) -> Callable:
    """Turn a text-conditioned network into one that leans harder on its prompt, equation (8).

    The scale is the tableau's: 0 ignores the prompt, 1 is the plain conditional model; larger values trade variety for
    fidelity. A negative prompt is nothing more than a caption for ``without`` that is not the empty one. Channels that
    tell a variance are not guided.

    both: (xt, timestep) -> (with, without), as ``two_captions`` makes it.
    Returns (xt, row, memory) -> (output, memory); memory is of the shape of xt, zeros at the start.
    """

    def ask(xt: Array, row, memory: Array) -> tuple[Array, Array]:
        scale = broadcast_like(row.guidance_scale, xt)
        c = jax.tree.map(lambda value: broadcast_like(value, xt), corrections)
        outputs, others = both(xt, row.timestep)
        (with_, fraction), (without, _) = split_variance(outputs, xt), split_variance(others, xt)
        answer = without + scale * (with_ - without)
        held, now = _corrected(with_, without, answer, xt, row, prediction_type, c, memory)
        memory = jnp.where(scale == 1, memory, now)  # as for an image that is drawn alone
        used = (c.rescale != 0) | (c.parallel != 1) | jnp.isfinite(c.norm) | (c.momentum != 0)
        answer = jnp.where(scale == 1, with_, jnp.where(used, held, answer))
        if fraction is not None:
            answer = jnp.concatenate([answer, outputs[..., xt.shape[-1] :]], axis=-1)
        return answer, memory

    return ask


def _corrected(with_, without, plain, xt, row, prediction_type, c, memory) -> tuple[Array, Array]:
    """(29), then (28). An output is a straight line of x0, so differences are turned into those of x0 and back."""
    axes = tuple(range(1, xt.ndim))
    level = row.level.broadcast_like(xt)
    per_output = -level.sigma / equations(prediction_type, level)[2]  # of x0 by an output of one more

    x0 = solve(prediction_type, with_, xt, row.level).x0
    difference = per_output * (with_ - without) + c.momentum * memory
    size = jnp.sqrt(jnp.mean(difference**2, axis=axes, keepdims=True))
    short = difference * jnp.minimum(1, c.norm / jnp.maximum(size, 1e-12))
    along = jnp.sum(short * x0, axis=axes, keepdims=True) / jnp.maximum(jnp.sum(x0**2, axes, keepdims=True), 1e-12) * x0
    projected = with_ + (broadcast_like(row.guidance_scale, xt) - 1) * (short - along + c.parallel * along) / per_output
    neutral = (c.parallel == 1) & jnp.isinf(c.norm) & (c.momentum == 0)
    answer = jnp.where(neutral, plain, projected)

    held = answer * with_.std(axes, keepdims=True) / jnp.maximum(answer.std(axes, keepdims=True), 1e-12)
    answer = jnp.where(c.rescale != 0, c.rescale * held + (1 - c.rescale) * answer, answer)
    return answer, jnp.where(c.momentum != 0, difference, memory)
