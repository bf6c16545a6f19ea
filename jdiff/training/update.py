"""One training step, for every task: the only gradients in the project.

A task's objective says what its loss is; this takes the gradient by the trained parameters, over microbatches where
there are several, and applies the optimizer and the EMAs.

    mean_of_rows      the loss is a mean over rows, so its gradient is the mean of the gradients of microbatches
    otherwise         the loss compares all rows of the global batch, as a contrastive one does. ``forward`` runs on
                      every microbatch, the loss is differentiated by its outputs (their cotangents), and ``forward``
                      runs on each microbatch again with its share of them: a gradient cache [gradcache]
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jdiff import rng
from jdiff.training import metrics, spikes
from jdiff.training.ema import EmaConfig
from jdiff.training.grad_accumulation import Reduction
from jdiff.training.hyperparameters import TracedHyperparameters
from jdiff.training.masks import merge
from jdiff.training.state import Params, TrainState

Keys = Callable[[str], Array]  # the name of a stream -> (b,) keys, of (seed, step, index in the global batch)
Step = Callable[[TracedHyperparameters, TrainState, dict], tuple[TrainState, metrics.Metrics]]


class Objective(Protocol):
    """What is minimized, by which optimizer.

    mean_of_rows: whether the loss is a mean over independent rows.
    """

    mean_of_rows: ClassVar[bool]

    def optimizer(self, hparams: TracedHyperparameters) -> optax.GradientTransformation: ...

    def forward(self, params: Params, hparams: TracedHyperparameters, rows: dict, keys: Keys) -> Any:
        """Outputs of a microbatch; with ``mean_of_rows`` anything, else a tree of arrays (rows, ...)."""
        ...

    def reduce(self, params: Params, hparams: TracedHyperparameters, outputs: Any) -> tuple[Array, dict]:
        """The scalar loss of outputs, and a report: scalars, or pairs of a mean and its count."""
        ...

    def project(self, new: Params, old: Params, step: Array) -> Params:
        """Trained parameters after an update, brought back to where they may be."""
        ...


def images_of(batch: dict) -> Array:
    """The batch's images as the networks take them. u8 (b,h,w,3) -> float32 in [-1, 1]."""
    return batch["image"].astype(jnp.float32) / 127.5 - 1


def make_step(
    objectives: Sequence[Objective],
    reduction: Reduction,
    ema: Callable[[TracedHyperparameters], EmaConfig],
    constrain: Callable[[TrainState], TrainState],
) -> Step:
    """A training step, not compiled: (hparams, state, batch) -> (state, metrics).

    objectives: applied in order on one batch, each with an optimizer state of its own.
    constrain: keeps the new state sharded as the old one.
    """

    def step(hparams: TracedHyperparameters, state: TrainState, batch: dict) -> tuple[TrainState, metrics.Metrics]:
        params, opt_states, step_metrics = state.params, [], {}
        losses, grad_norms = [], []
        for objective, opt_state in zip(objectives, state.opt_state, strict=True):

            def loss_fn(trained: Params, rows: dict, objective: Objective = objective) -> tuple[Array, dict]:
                merged, keys = merge(state.frozen, trained), _keys(hparams, state.step, rows)
                return objective.reduce(merged, hparams, objective.forward(merged, hparams, rows, keys))

            if objective.mean_of_rows and reduction.count == 1:
                (loss, report), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, batch)
                report = metrics.from_values(report | {"loss": loss})
            elif objective.mean_of_rows:
                grads, report = _accumulate(loss_fn, reduction, params, batch)
            else:
                grads, report = _cache(objective, reduction, params, hparams, state, batch)
            updates, opt_state = objective.optimizer(hparams).update(grads, opt_state, params)
            params = objective.project(optax.apply_updates(params, updates), params, state.step)
            opt_states.append(opt_state)
            losses.append(report["loss"].compute())
            grad_norms.append(optax.tree.norm(grads))
            step_metrics |= report | metrics.from_values({"grad_norm": grad_norms[-1]})
        averages = ema(hparams).update(state.ema, params, state.step)
        new = {"params": params, "opt_state": tuple(opt_states), "ema": averages}
        health = state.health
        if health is not None:
            loss, grad_norm = sum(losses, start=jnp.float32(0)), jnp.linalg.norm(jnp.stack(grad_norms))
            is_accepted, health = spikes.judge(health, loss, grad_norm)
            new = spikes.where_accepted(is_accepted, new, {name: getattr(state, name) for name in new})
            step_metrics = spikes.where_accepted(is_accepted, step_metrics, jax.tree.map(jnp.zeros_like, step_metrics))
        state = dataclasses.replace(state, step=state.step + 1, health=health, **new)
        return constrain(state), step_metrics

    return step


def _keys(hparams: TracedHyperparameters, step: Array, rows: dict) -> Keys:
    return lambda name: rng.example_keys(rng.stream(hparams.seed, name), step, rows["index"])


def _accumulate(loss_fn: Callable, reduction: Reduction, params: Params, batch: dict) -> tuple[Params, metrics.Metrics]:
    """The mean of the gradients of microbatches, and the report."""

    def of_microbatch(rows: dict) -> tuple[Params, metrics.Metrics]:
        (loss, report), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, rows)
        return grads, metrics.from_values(report | {"loss": loss})

    grads, report = reduction.sum(of_microbatch, batch)
    return jax.tree.map(lambda g: g / reduction.count, grads), report


def _cache(
    objective: Objective,
    reduction: Reduction,
    params: Params,
    hparams: TracedHyperparameters,
    state: TrainState,
    batch: dict,
) -> tuple[Params, metrics.Metrics]:
    """The gradient of a loss over the global batch, through the outputs of each microbatch [gradcache]."""

    def forward(trained: Params, rows: dict) -> Any:
        return objective.forward(merge(state.frozen, trained), hparams, rows, _keys(hparams, state.step, rows))

    def loss_fn(trained: Params, outputs: Any) -> tuple[Array, dict]:
        loss, report = objective.reduce(merge(state.frozen, trained), hparams, outputs)
        return loss, report | {"loss": loss}

    def recompute_backward(part: tuple[dict, Any]) -> Params:
        rows, cotangents = part
        return jax.vjp(lambda trained: forward(trained, rows), params)[1](cotangents)[0]

    if reduction.count == 1:
        outputs, backward = jax.vjp(lambda trained: forward(trained, batch), params)
    else:
        outputs = reduction.map(partial(forward, params), batch)
    loss_grads = jax.grad(loss_fn, argnums=(0, 1), has_aux=True)
    (direct, cotangents), report = loss_grads(params, reduction.gather(outputs))
    if reduction.count == 1:
        (through_outputs,) = backward(cotangents)
    else:
        through_outputs = reduction.sum(recompute_backward, (batch, reduction.local(cotangents)))
    return jax.tree.map(jnp.add, direct, through_outputs), metrics.from_values(report)
