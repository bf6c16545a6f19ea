"""Optimizers by name, from optax, with the same learning-rate schedule, weight decay and gradient clipping.

The gradient is clipped by its global norm to ``clip_norm``. The learning rate warms up linearly from 0
over ``warmup_steps``, then falls along a cosine to ``final_lr_fraction`` of itself at ``steps``, the length of the run.
Weight decay is decoupled [adamw]: step t multiplies a decayed parameter by 1 - learning rate(t) * ``weight_decay``.
Only matrices and kernels decay; biases, norms and scales do not.

Every hyperparameter annotated ``float`` may be a traced JAX scalar, so one compiled step serves all their values and a
sweep can ``vmap`` over them. ``steps`` and ``warmup_steps`` are Python integers: the schedule branches on them.
"""

from __future__ import annotations

from typing import Any

import jax
import optax
from optax.contrib import MuonDimensionNumbers


def learning_rate_schedule(
    *, learning_rate: float, warmup_steps: int, steps: int, final_lr_fraction: float = 0.0
) -> optax.Schedule:
    """Linear warm-up from 0 to ``learning_rate``, then a cosine to ``final_lr_fraction`` of it at ``steps``."""
    shape = optax.warmup_cosine_decay_schedule(0.0, 1.0, warmup_steps, max(steps, warmup_steps + 1), final_lr_fraction)
    return lambda step: learning_rate * shape(step)


def adamw(
    *,
    steps: int,
    learning_rate: float = 1e-3,
    warmup_steps: int = 100,
    final_lr_fraction: float = 0.0,
    weight_decay: float = 0.01,
    b1: float = 0.9,
    b2: float = 0.99,
    clip_norm: float = 1.0,
) -> optax.GradientTransformation:
    """AdamW [adamw]: two moments per parameter, so the optimizer state is twice the parameters.

    b1, b2: decays of the first and of the second moment.
    """
    schedule = learning_rate_schedule(
        learning_rate=learning_rate, warmup_steps=warmup_steps, steps=steps, final_lr_fraction=final_lr_fraction
    )
    return optax.chain(
        optax.clip_by_global_norm(clip_norm),
        optax.adamw(schedule, b1, b2, weight_decay=weight_decay, mask=_matrices),
    )


def adafactor(
    *,
    steps: int,
    learning_rate: float = 1e-3,
    warmup_steps: int = 100,
    final_lr_fraction: float = 0.0,
    weight_decay: float = 0.01,
    momentum: float = 0.9,
    decay_rate: float = 0.8,
    clipping_threshold: float = 1.0,
    clip_norm: float = 1.0,
) -> optax.GradientTransformation:
    """Adafactor [adafactor] with momentum and an absolute learning rate [scalingvit sec. 3.4].

    The second moment of a kernel whose two largest dimensions are 128 or more is stored as a row and a column, so the
    optimizer state is little more than the momentum. The update is not scaled by the parameter's size, so learning
    rates are of AdamW's order.

    momentum: decay of the running mean of updates.
    decay_rate: c of the second moment's decay, 1 - t^-c at step t [adafactor sec. 7.2].
    clipping_threshold: bound on each parameter's root mean square update, before the learning rate [adafactor sec. 6].
    """
    schedule = learning_rate_schedule(
        learning_rate=learning_rate, warmup_steps=warmup_steps, steps=steps, final_lr_fraction=final_lr_fraction
    )
    return optax.chain(
        optax.clip_by_global_norm(clip_norm),
        optax.adafactor(
            schedule,
            decay_rate=decay_rate,
            multiply_by_parameter_scale=False,
            clipping_threshold=clipping_threshold,
            momentum=momentum,
            weight_decay_rate=lambda step: weight_decay * schedule(step),  # optax does not multiply by the rate
            weight_decay_mask=_matrices,
        ),
    )


def muon(
    *,
    steps: int,
    learning_rate: float = 1e-3,
    warmup_steps: int = 100,
    final_lr_fraction: float = 0.0,
    weight_decay: float = 0.01,
    beta: float = 0.95,
    adam_b1: float = 0.9,
    adam_b2: float = 0.99,
    consistent_rms: float = 0.2,
    clip_norm: float = 1.0,
) -> optax.GradientTransformation:
    """Muon [muon]: momentum, orthogonalized by Newton-Schulz, for kernels; Adam without decay for all other parameters.

    A convolution's kernel (h, w, in, out) counts as a matrix of h * w * in rows. Embeddings are
    updated by Adam.

    beta: decay of the momentum.   adam_b1, adam_b2: decays of Adam's moments.
    consistent_rms: root mean square of a kernel's update per unit of learning rate; 0.2 is about AdamW's, so that
        AdamW's learning rates and weight decays carry over [muonscale sec. 2.2].
    """
    schedule = learning_rate_schedule(
        learning_rate=learning_rate, warmup_steps=warmup_steps, steps=steps, final_lr_fraction=final_lr_fraction
    )
    return optax.chain(
        optax.clip_by_global_norm(clip_norm),
        optax.contrib.muon(
            schedule,
            beta=beta,
            weight_decay=weight_decay,
            adam_b1=adam_b1,
            adam_b2=adam_b2,
            muon_weight_dimension_numbers=_kernel_dimensions,
            consistent_rms=consistent_rms,
        ),
    )


OPTIMIZERS = {"adamw": adamw, "adafactor": adafactor, "muon": muon}


def _matrices(params: Any) -> Any:
    """Mask of the parameters that decay: those of two or more dimensions."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def _kernel_dimensions(params: Any) -> Any:
    """Muon's view of every kernel as a matrix (inputs, outputs); None for a parameter that Adam updates."""

    def dimensions(path: tuple, leaf: jax.Array) -> MuonDimensionNumbers | None:
        if path[-1].key != "kernel":
            return None
        return MuonDimensionNumbers(reduction_axis=tuple(range(leaf.ndim - 1)), output_axis=leaf.ndim - 1)

    return jax.tree_util.tree_map_with_path(dimensions, params)
