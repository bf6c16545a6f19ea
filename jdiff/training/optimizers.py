"""AdamW with warm-up, cosine decay and clipping."""

from __future__ import annotations

import jax
import optax


def learning_rate_schedule(
    *, learning_rate: float, warmup_steps: int, steps: int, final_lr_fraction: float = 0.0
) -> optax.Schedule:
    """From 0 up to ``learning_rate`` in ``warmup_steps``, then a cosine to ``final_lr_fraction`` of it at ``steps``."""
    share = optax.warmup_cosine_decay_schedule(0.0, 1.0, warmup_steps, max(steps, warmup_steps + 1), final_lr_fraction)
    return lambda step: learning_rate * share(step)


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
    """The optimizer of both models.

    steps: length of the run, where the cosine ends.   final_lr_fraction: of the learning rate, there; 1: constant.
    weight_decay: of matrices and kernels only; biases, norms and scales are left alone.
    clip_norm: the gradient's norm is brought down to this.
    """
    rate = learning_rate_schedule(
        learning_rate=learning_rate, warmup_steps=warmup_steps, steps=steps, final_lr_fraction=final_lr_fraction
    )
    return optax.chain(
        optax.clip_by_global_norm(clip_norm),
        optax.adamw(rate, b1, b2, weight_decay=weight_decay, mask=lambda p: jax.tree.map(lambda x: x.ndim > 1, p)),
    )
