"""``python -m benchmarks sweeps``: throughput of vmapped runs, and of a sweep's sampling in one program."""

from __future__ import annotations

import runpy
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from unittest.mock import patch

import jax
import numpy as np
from jax.experimental.compilation_cache import compilation_cache
from scipy.stats import sem, t

from benchmarks import one_program
from benchmarks.claims import Claim, cpu_seconds, report
from jdiff.commands.flags import shipped_configs
from jdiff.config.keys import plain
from jdiff.inference import program
from jdiff.runs import directory
from jdiff.runs import train as training_runs
from jdiff.runs.prepare import prepare
from jdiff.sweep.run import train_vectorized
from jdiff.tasks import AnyTask, make_task
from jdiff.training.callbacks import Callback, Report
from jdiff.training.state import TrainState

STEPS = {"spiral": (4000, 80_000), "demo_clip": (4000, 3000), "demo_t2i": (200, 2000)}  # on a CPU, and elsewhere
RATES = (1e-4, 2e-4, 5e-4, 1e-3, 1.5e-3, 2e-3, 3e-3, 5e-3)
MIN_THROUGHPUT, MIN_VMAPPED = 0.95, 2.0  # over one run after another: in any case, and where runs are vmapped
SAMPLE_SETTINGS = [(steps, scale) for steps in (5, 10, 20, 50) for scale in (1.0, 3.0)]  # steps of DDIM, guidance


def measure(*, quick: bool, runs: str) -> int:
    """Measure every claim. Returns the exit status."""
    return report("sweeps", _vmapped_runs(quick), quick=quick)


def _vmapped_runs(quick: bool) -> Iterator[Claim]:
    """Eight learning rates of tiny runs; quickly, three of the spiral."""
    with tempfile.TemporaryDirectory() as folder:
        if quick:
            yield from _throughput("spiral", folder, 200, RATES[:3])
            return
        encoder = _task("demo_clip", folder, 2, RATES[0])
        prepare(encoder)  # also the data of demo_t2i
        _train(encoder, f"{folder}/encoder")  # whose text tower demo_t2i is initialized from
        for name, (cpu_steps, gpu_steps) in STEPS.items():
            yield from _throughput(name, folder, cpu_steps if _on_cpu() else gpu_steps, RATES)
        yield from _sampling(f"{folder}/demo_t2i_sequential0")


def _on_cpu() -> bool:
    return jax.default_backend() == "cpu"


def _throughput(name: str, folder: str, steps: int, rates: Sequence[float]) -> Iterator[Claim]:
    """One run after another in this process, against ``train_vectorized``; half of the former before the latter and
    half after it, as the speed of a machine changes with time."""
    tasks = [_task(name, folder, steps, rate) for rate in rates]
    timed_tasks = tasks if _on_cpu() else tasks[:3]  # the others take as long as all but the first
    seconds = []

    def train_sequentially(some_tasks: Iterable[AnyTask]) -> None:
        with _compilation_cache(f"{folder}/{name}_sequential_cache"):
            for task in some_tasks:
                seconds.append(cpu_seconds(partial(_train, task, f"{folder}/{name}_sequential{len(seconds)}")))

    half = (len(timed_tasks) + 1) // 2
    train_sequentially(timed_tasks[:half])
    paths = [f"{folder}/{name}_vectorized{i}" for i in range(len(tasks))]
    sequential = [partial(_train, task, path) for task, path in zip(tasks, paths)]
    models = []

    def train_together() -> None:
        models.extend(train_vectorized(tasks, paths, sequential, skip_trial=False))
        for model in models:
            model()

    with _compilation_cache(f"{folder}/{name}_vectorized_cache"):
        vectorized_seconds = cpu_seconds(train_together)
    train_sequentially(timed_tasks[half:])
    others = len(tasks) - 1  # than the first, which compiles
    mean, error = float(np.mean(seconds[1:])), float(sem(seconds[1:]))
    low, high = t.interval(0.95, len(seconds) - 2, mean, error)
    ratio, *interval = ((seconds[0] + value * others) / vectorized_seconds for value in (mean, low, high))
    is_vmapped = models[1] is not sequential[1]
    text = f"{name}, {len(tasks)} learning rates, {steps} steps: throughput, of one after another"
    kind = "vmapped" if is_vmapped else "one after another, after a trial"
    note = f"({kind}, {vectorized_seconds:.1f} s; one after another, {seconds[0]:.1f} s + {others} x {mean:.1f} s)"
    bound = MIN_VMAPPED if is_vmapped or not _on_cpu() else MIN_THROUGHPUT
    yield Claim(text, ratio, bound, interval=tuple(interval), note=note)


def _sampling(path: str) -> Iterator[Claim]:
    """A sweep's sampling settings in the program for all, and in a program for each, including compilation."""
    model, b = directory.load(path), 8
    settings = [
        replace(model.settings, solver="ddim", eta=0.0, steps=steps, guidance_scale=scale)
        for steps, scale in SAMPLE_SETTINGS
    ]
    captions = one_program.captions_of(model, b)
    draw = partial(program.draw, model.spec(), model.params)
    images: dict[str, list[np.ndarray]] = {"dedicated": [], "general": []}

    def draw_dedicated() -> None:
        images["dedicated"] += [np.asarray(one_program.dedicated_sampler(model, s, b)()) for s in settings]

    def draw_general() -> None:
        images["general"] += [np.asarray(draw(model.inputs([s] * b), captions, None)[0]) for s in settings]

    with _compilation_cache(f"{path}_dedicated_cache"):
        ratio = cpu_seconds(draw_dedicated)
    with _compilation_cache(f"{path}_general_cache"):
        ratio /= cpu_seconds(draw_general)
    count = len(SAMPLE_SETTINGS)
    text = f"sampling, {count} settings of {b} images in one compiled program: throughput, of a program for each"
    yield Claim(text, ratio, MIN_VMAPPED)
    difference = np.abs(np.stack(images["dedicated"]).astype(int) - np.stack(images["general"])).max()
    yield Claim("... and the largest difference of a pixel, of 255", float(difference), 1, at_most=True)


@contextmanager
def _compilation_cache(folder: str) -> Iterator[None]:
    """Use only the compiled programs of a folder: a new one is like a sweep that never ran."""
    previous_folder = jax.config.jax_compilation_cache_dir
    jax.clear_caches()
    compilation_cache.reset_cache()
    jax.config.update("jax_compilation_cache_dir", folder)
    yield
    compilation_cache.reset_cache()
    jax.config.update("jax_compilation_cache_dir", previous_folder)


def _task(name: str, folder: str, steps: int, rate: float) -> AnyTask:
    config = plain(runpy.run_path(str(shipped_configs()[name]))["get_config"]("" if name == "spiral" else "tiny"))
    config["optimizer"] |= {"learning_rate": rate, "warmup_steps": 5}
    config["train"] |= {"steps": steps}
    if name == "spiral":
        return make_task(config)
    config["train"] |= {"log_every": steps, "save_every": steps, "sample_every": steps}
    config["data"]["directory"], config["mesh"] = f"{folder}/data", {"data": 1}
    if name == "demo_t2i":
        config["text"] = {"init_from": f"{folder}/encoder"}
    return make_task(config)


def _train(task: AnyTask, path: str) -> str | TrainState:
    """Train a run. Returns its directory, or the state of points, which have none."""
    if not task.has_run_dir:
        return task.train()
    no_previews = Callback(0, lambda state: Report(), lambda step: True)  # vmapped runs make none
    with patch.object(training_runs, "previews", lambda *_: no_previews):
        training_runs.train(task, path)
    return path
