"""Several runs at once, as lanes of one compiled program: what of `jdiff sweep` differs in numbers alone."""

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

from jdiff import runs
from jdiff.build import Experiment, Spiral
from jdiff.data import records
from jdiff.data.pipeline import Batches
from jdiff.sweep import lanes
from jdiff.training import metrics
from jdiff.training.loop import Diverged
from jdiff.training.state import TrainState
from jdiff.verbs.spiral import PART
from jdiff.verbs.train import claim, spectrum, tokenizer_of


class Points:
    """Networks of points in the plane, learnt side by side."""

    def __init__(self, setups: Sequence[Spiral]):
        first, self._numbers = setups[0], lanes.stack_hyperparameters(setups)
        self._setups, self._steps = setups, first.train.steps
        self._several = jax.jit(jax.vmap(first.several(), in_axes=(0, 0, None)))
        self.states = jax.jit(jax.vmap(first.initial_state))(self._numbers.seed)

    def advance(self, count: int) -> None:
        """Take so many steps of all."""
        self.states = jax.block_until_ready(self._several(self._numbers, self.states, count))

    def trained(self, trial: lanes.Trial) -> list[Callable[[], TrainState]] | None:
        """Train to the end; None where the trial is lost. Returns for each what gives its state."""
        done = 0
        with _bar("learning", self._steps) as show:
            while done < self._steps:
                count = min(max(done, 1), PART, self._steps - done)  # few at first, while they are tried
                self.advance(count)
                done += count
                show(done)
                if trial.lost(done):
                    return None
        return [lanes.given(_own(self._setups, self.states, i)) for i in range(len(self._setups))]


@contextmanager
def _bar(what: str, steps: int) -> Iterator[Callable[[int], None]]:
    """A bar, and what tells it how many steps are done."""
    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=steps)
        yield lambda done: bar.update(task, completed=done)


class Runs:
    """Runs of text and images, trained side by side on one device, each as if alone; saved at the end."""

    def __init__(self, setups: Sequence[Experiment], paths: Sequence[epath.PathLike]):
        paths = [epath.Path(path) for path in paths]
        setups = [runs.with_starts(setup, path) for setup, path in zip(setups, paths)]
        first, starts = setups[0]
        self._setups, self._paths = [setup for setup, _ in setups], paths
        self._builder = first.dataset()
        dataset = records.records(self._builder, "train")
        self._tokenizer = tokenizer_of(first, paths[0], starts, dataset)
        loaded = runs.starting_weights(starts, runs.first_device())
        self._numbers = lanes.stack_hyperparameters(self._setups)

        def begin(seed: Array) -> TrainState:
            return first.first_state(self._tokenizer, loaded, seed)

        self.states = jax.jit(jax.vmap(begin))(self._numbers.seed)
        told = spectrum(first, dataset, lanes.lane(self.states, 0))
        self._step = jax.jit(jax.vmap(first.one_step(self._tokenizer, told)), donate_argnums=1)
        train = first.train
        self._seeds = [setup.train.seed for setup in self._setups]
        self._batches = {
            seed: Batches(dataset, self._tokenizer, batch_size=train.batch_size, seed=seed, group=train.group)
            for seed in self._seeds
        }

    def _advance(self) -> metrics.Metrics:
        """Take a step of all."""
        rows = {seed: next(batches) for seed, batches in self._batches.items()}
        batch = jax.tree.map(lambda *lanes: np.stack(lanes), *(rows[seed] for seed in self._seeds))
        self.states, averages = self._step(self._numbers, self.states, batch)
        return jax.block_until_ready(averages)

    def trained(self, trial: lanes.Trial) -> list[Callable] | None:
        """Train to the end, and save each run; None, and nothing written, where the trial is lost.

        Returns for each what gives its directory, or raises ``Diverged`` where its loss is no number.
        """
        train, merged = self._setups[0].train, None
        reports: list[dict[int, dict[str, float]]] = [{} for _ in self._setups]
        with ExitStack() as stack:
            for batches in self._batches.values():
                stack.callback(batches.close)
            show = stack.enter_context(_bar("training", train.steps))
            for step in range(1, train.steps + 1):
                averages = self._advance()
                merged = averages if merged is None else jax.tree.map(jnp.add, merged, averages)
                if step % train.log_every == 0 or step == train.steps:
                    for i, own in enumerate(reports):
                        own[step] = metrics.values(lanes.lane(merged, i))
                    merged = None
                show(step)
                if trial.lost(step):
                    return None
        return [partial(self._saved, i, own) for i, own in enumerate(reports)]

    def _saved(self, i: int, reports: dict[int, dict[str, float]]) -> str:
        """One lane as a run of its own."""
        setup, path = self._setups[i], self._paths[i]
        for step, values in reports.items():
            if not math.isfinite(values["loss"]):
                raise Diverged(f"the loss of step {step} is not a number")
        claim(setup, path, self._builder, self._tokenizer)
        with closing(metrics.Writer(path, start_step=0)) as writer:
            for step, values in reports.items():
                writer.write(step, values)
        with runs.checkpoints(path, keep=setup.train.keep) as store:
            store.save(_own(self._setups, self.states, i))
            store.wait()
        return str(path)


def _own(setups: Sequence[Experiment | Spiral], states: TrainState, i: int) -> TrainState:
    """One lane's state, its averages by its own names; those of all are by the names of the first."""
    names, called, state = setups[i].ema_config().names, setups[0].ema_config().names, lanes.lane(states, i)
    averages = {name: state.ema[first] for name, first in zip(names, called, strict=True)}
    return state.replace(ema=averages, ema_name=names[0] if names else None)
