"""Runs trained as one vmapped program, each as if alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax import Array
from rich.console import Console
from rich.progress import Progress

from jdiff.data.pipeline import Batches
from jdiff.runs import directory
from jdiff.runs.begin import initialize_run_dir, tokenizer_of
from jdiff.runs.init_from import load_params, resolve_init_from
from jdiff.sweep import vectorize
from jdiff.tasks import AnyTask
from jdiff.tasks.points import STEPS_PER_CALL, Points
from jdiff.tasks.task import ImageTextTask
from jdiff.training import metrics
from jdiff.training.loop import Divergence
from jdiff.training.state import TrainState


class VectorizedPoints:
    """Networks of points in the plane, trained side by side."""

    def __init__(self, tasks: Sequence[Points]):
        first, self._hparams = tasks[0], vectorize.stack_hparams(tasks)
        self._tasks, self._num_steps = tasks, first.config.train.steps
        self._steps = jax.jit(jax.vmap(first.steps(), in_axes=(0, 0, None)))
        self.states = jax.jit(jax.vmap(partial(first.first_state, None)))(self._hparams.seed)

    def advance(self, count: int) -> None:
        """Take some steps of all."""
        self.states = jax.block_until_ready(self._steps(self._hparams, self.states, count))

    def train(self, trial: vectorize.Trial) -> list[Callable[[], TrainState]] | None:
        """Train to the end; None where the trial aborts. Returns functions that give the state of each."""
        step = 0
        with _bar("training", self._num_steps) as show:
            while step < self._num_steps:
                count = min(max(step, 1), STEPS_PER_CALL, self._num_steps - step)  # few at first, for the trial
                self.advance(count)
                step += count
                show(step)
                if trial.should_abort(step):
                    return None
        return [vectorize.constant(_state_of(self._tasks, self.states, i)) for i in range(len(self._tasks))]


class VectorizedRuns:
    """Runs of captioned images, trained side by side on one device; saved at the end."""

    def __init__(self, tasks: Sequence[ImageTextTask], paths: Sequence[epath.PathLike]):
        self._paths = [epath.Path(path) for path in paths]
        tasks_and_models = [resolve_init_from(task, path) for task, path in zip(tasks, self._paths)]
        first, models = tasks_and_models[0]
        self._dataset = first.records()
        examples = self._dataset.split("train")
        tokenizer = tokenizer_of(first, self._paths[0], models, self._dataset)
        self._tasks = [task.with_tokenizer(tokenizer) for task, _ in tasks_and_models]
        first, mesh = self._tasks[0], first.config.mesh.make()
        pretrained_params = load_params(models, directory.first_device())
        self._hparams = vectorize.stack_hparams(self._tasks)

        def init(seed: Array) -> TrainState:
            return first.first_state(pretrained_params, seed)

        self.states = jax.jit(jax.vmap(init))(self._hparams.seed)
        statistics = first.statistics(examples, vectorize.unstack(self.states, 0), mesh)
        self._step = jax.jit(jax.vmap(first.step(mesh, statistics)), donate_argnums=1)
        train = first.config.train
        self._seeds = [task.config.train.seed for task in self._tasks]
        self._batches = {
            seed: Batches(examples, tokenizer, batch_size=train.batch_size, seed=seed, group=train.group)
            for seed in self._seeds
        }

    def _advance(self) -> metrics.Metrics:
        """Take a step of all."""
        rows = {seed: next(batches) for seed, batches in self._batches.items()}
        batch = jax.tree.map(lambda *of_runs: np.stack(of_runs), *(rows[seed] for seed in self._seeds))
        self.states, step_metrics = self._step(self._hparams, self.states, batch)
        return jax.block_until_ready(step_metrics)

    def train(self, trial: vectorize.Trial) -> list[Callable] | None:
        """Train to the end, and save each run; None, with nothing written, where the trial aborts.

        Returns for each a function that gives its directory, or raises ``Divergence`` where its loss is not finite.
        """
        train, pending = self._tasks[0].config.train, None
        logs: list[dict[int, dict[str, float]]] = [{} for _ in self._tasks]
        with ExitStack() as stack:
            for batches in self._batches.values():
                stack.callback(batches.close)
            show = stack.enter_context(_bar("training", train.steps))
            for step in range(1, train.steps + 1):
                step_metrics = self._advance()
                pending = step_metrics if pending is None else jax.tree.map(jnp.add, pending, step_metrics)
                if step % train.log_every == 0 or step == train.steps:
                    for i, log in enumerate(logs):
                        log[step] = metrics.values(vectorize.unstack(pending, i))
                    pending = None
                show(step)
                if trial.should_abort(step):
                    return None
        return [partial(self._save, i, log) for i, log in enumerate(logs)]

    def _save(self, i: int, log: dict[int, dict[str, float]]) -> str:
        """Write one run as a run of its own."""
        task, path = self._tasks[i], self._paths[i]
        for step, means in log.items():
            loss = means.get("loss", math.nan if step == max(log) else 0.0)  # none where all updates were skipped
            if not math.isfinite(loss):
                raise Divergence(f"the loss is {loss} at step {step}")
        initialize_run_dir(task, path, self._dataset)
        with closing(metrics.Writer(path, start_step=0)) as writer:
            for step, means in log.items():
                writer.write(step, means)
        with directory.open_checkpoints(path, task) as store:
            store.finish(_state_of(self._tasks, self.states, i))
        return str(path)


def vectorized(tasks: Sequence[AnyTask], paths: Sequence[epath.PathLike]) -> VectorizedPoints | VectorizedRuns:
    """Runs of one program, to be trained together. paths: their directories, where they have any."""
    return VectorizedRuns(tasks, paths) if tasks[0].has_run_dir else VectorizedPoints(tasks)


@contextmanager
def _bar(description: str, steps: int) -> Iterator[Callable[[int], None]]:
    """A progress bar, and a function that sets how many steps are done."""
    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task(description, total=steps)
        yield lambda step: bar.update(task, completed=step)


def _state_of(tasks: Sequence[AnyTask], states: TrainState, i: int) -> TrainState:
    """One run's state, its EMAs by its own names; in the stacked state they have those of the first run."""
    names, first_names = (task.config.ema.config().names for task in (tasks[i], tasks[0]))
    state = vectorize.unstack(states, i)
    averages = {name: state.ema[first] for name, first in zip(names, first_names, strict=True)}
    return state.replace(ema=averages, ema_name=names[0] if names else None)
