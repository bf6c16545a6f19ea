"""Several runs at once, as lanes of one compiled program: what of `jdiff sweep` differs in numbers alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax import Array
from rich.console import Console
from rich.progress import track

from jdiff import runs
from jdiff.build import Experiment, Spiral
from jdiff.build.sections import Numbers
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
        first, self._numbers = setups[0], lanes.stacked(setups)
        self._mlp, self._steps = first.mlp(), first.train.steps
        batch = {"index": jnp.arange(first.train.batch_size)}

        def some(numbers: Numbers, state: TrainState, count: Array) -> TrainState:
            return jax.lax.fori_loop(0, count, lambda _, state: first.step(numbers)(state, batch)[0], state)

        self._some = jax.jit(jax.vmap(some, in_axes=(0, 0, None)))
        self.states = jax.jit(jax.vmap(first.initial_state))(self._numbers.seed)

    def advance(self, count: int) -> None:
        """Take so many steps of all."""
        self.states = jax.block_until_ready(self._some(self._numbers, self.states, count))

    def learnt(self) -> list[Callable]:
        """Train to the end, and return each network as (xt, timestep) -> output."""
        parts = [min(PART, self._steps - done) for done in range(0, self._steps, PART)]
        for count in track(parts, description=f"learning for {self._steps} steps", console=Console(stderr=True)):
            self.advance(count)
        weights = self.states.best["mlp"]
        count = len(self._numbers.seed)
        return [_network(self._mlp, lanes.lane(weights, i)) for i in range(count)]


def _network(mlp, params) -> Callable:
    return lambda xt, timestep: mlp.apply({"params": params}, xt, timestep)


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
        mesh = first.mesh()
        loaded = runs.starting_weights(starts, runs.first_device())
        self._numbers = lanes.stacked(self._setups)

        def begin(seed: Array) -> TrainState:
            return first.first_state(self._tokenizer, loaded, seed)

        self.states = jax.jit(jax.vmap(begin))(self._numbers.seed)
        told = spectrum(first, dataset, lanes.lane(self.states, 0))

        def step(numbers: Numbers, state: TrainState, batch: dict) -> tuple[TrainState, metrics.Averages]:
            return first.one_step(self._tokenizer, told, numbers)(state, batch)

        self._step = jax.jit(jax.vmap(step), donate_argnums=1)
        train = first.train
        self._batches = [
            Batches(dataset, self._tokenizer, batch_size=train.batch_size, seed=setup.train.seed, group=train.group)
            for setup in self._setups
        ]
        assert mesh.size == 1

    def _next(self) -> dict:
        return jax.tree.map(lambda *rows: np.stack(rows), *(next(batches) for batches in self._batches))

    def advance(self, count: int) -> metrics.Averages:
        """Take so many steps of all. Returns the last one's averages."""
        for _ in range(count):
            self.states, averages = self._step(self._numbers, self.states, self._next())
        return jax.block_until_ready(averages)

    def trained(self) -> list[Diverged | None]:
        """Train to the end, and save each run. Returns for each why it could not be, if it could not."""
        train = self._setups[0].train
        failed: list[Diverged | None] = [None] * len(self._setups)
        for setup, path in zip(self._setups, self._paths):
            claim(setup, path, self._builder, self._tokenizer)
        writers = [metrics.Writer(path, start_step=0) for path in self._paths]
        merged = None
        for step in track(range(1, train.steps + 1), description="training", console=Console(stderr=True)):
            averages = self.advance(1)
            merged = averages if merged is None else jax.tree.map(jnp.add, merged, averages)
            if step % train.log_every == 0 or step == train.steps:
                for i, writer in enumerate(writers):
                    values = metrics.values(lanes.lane(merged, i))
                    if not math.isfinite(values["loss"]):
                        failed[i] = failed[i] or Diverged(f"the loss of step {step} is not a number")
                    if failed[i] is None:
                        writer.write(step, values)
                merged = None
        for writer in writers:
            writer.close()
        for i, (setup, path) in enumerate(zip(self._setups, self._paths)):
            if failed[i] is None:
                names = setup.averages().names
                state = lanes.lane(self.states, i)
                state = state.replace(ema=dict(zip(names, state.ema.values())), used=names[0] if names else None)
                with runs.checkpoints(path, keep=train.keep) as store:
                    store.save(state)
                    store.wait()
        self.close()
        return failed

    def close(self) -> None:
        for batches in self._batches:
            batches.close()
