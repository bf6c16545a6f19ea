"""The claims of launchers and sweeps: rejected mistakes, a run on SLURM, resumed sweeps, vmapped runs."""

from __future__ import annotations

import runpy
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import patch

import jax
import numpy as np
import optax
from jax.experimental.compilation_cache import compilation_cache

from benchmarks import one_program
from benchmarks.claims import Claim, report
from jdiff.commands.flags import shipped_configs
from jdiff.config.sections import plain
from jdiff.inference import program
from jdiff.runs import directory
from jdiff.runs import train as training_runs
from jdiff.runs.prepare import prepare
from jdiff.sweep.run import train_vectorized
from jdiff.tasks import AnyTask, make_task
from jdiff.training.callbacks import Callback, Report
from jdiff.training.state import TrainState

ROOT = Path(__file__).parent.parent
STEPS = {"spiral": (4000, 80_000), "demo_clip": (4000, 3000), "demo_t2i": (200, 2000)}  # on a CPU, and elsewhere
AGREEMENT_STEPS, RATES = 200, (1e-4, 2e-4, 5e-4, 1e-3, 1.5e-3, 2e-3, 3e-3, 5e-3)
MIN_THROUGHPUT, MIN_VMAPPED = 0.95, 2.0  # over one run after another: in any case, and where runs are vmapped
STABLE_RATE = 1e-3  # up to this learning rate training does not amplify rounding
SAMPLE_SETTINGS = [(steps, scale) for steps in (5, 10, 20, 50) for scale in (1.0, 3.0)]  # steps of DDIM, guidance


def measure(*, quick: bool, runs: str) -> int:
    """Measure every claim. Returns the exit status."""
    return report("sweeps", _claims(quick))


def _claims(quick: bool) -> Iterator[Claim]:
    launchers = _tests_pass("tests/launch/test_gke.py", "tests/launch/test_launchers.py")
    yield Claim("launchers: shellcheck, JobSets, simulated hosts; 25 mistakes rejected", launchers, 1.0)
    resume = _tests_pass("tests/sweep/test_sweep.py", "-k", "killed_twice")
    yield Claim("a sweep killed twice: the results of an uninterrupted one, no cell repeated", resume, 1.0)
    tables = _tests_pass("tests/sweep/test_ablations.py")
    yield Claim("docs/ablations.md: each table and verdict follows from the results beside it", tables, 1.0)
    if not quick:
        slurm = _tests_pass("tests/launch/test_slurm.py")
        yield Claim("SLURM: a run preempted and requeued is bit-identical to an uninterrupted one", slurm, 1.0)
    yield from _vmapped_runs(quick)


def _tests_pass(*arguments: str) -> float:
    """Whether tests pass, none of them skipped."""
    command = [sys.executable, "-m", "pytest", "-q", "-rs", *arguments]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return float(process.returncode == 0 and "SKIPPED" not in process.stdout)


def _vmapped_runs(quick: bool) -> Iterator[Claim]:
    """Eight learning rates of a tiny run."""
    with tempfile.TemporaryDirectory() as folder:
        encoder = _task("demo_clip", folder, 2, RATES[0])
        prepare(encoder)  # also the data of demo_t2i
        _train(encoder, f"{folder}/encoder")  # whose text tower demo_t2i is initialized from
        for name, (cpu_steps, gpu_steps) in STEPS.items():
            yield from _throughput(name, folder, 20 if quick else cpu_steps if _on_cpu() else gpu_steps)
        for name in STEPS:
            yield from _agreement(name, folder, 20 if quick else AGREEMENT_STEPS)
        yield from _sampling(f"{folder}/demo_t2i_single0")


def _on_cpu() -> bool:
    return jax.default_backend() == "cpu"


def _throughput(name: str, folder: str, steps: int) -> Iterator[Claim]:
    """One run after another in this process, against ``train_vectorized``; half of the former before the latter and
    half after it, as the speed of a machine changes with time."""
    tasks = [_task(name, folder, steps, rate) for rate in RATES]
    timed_tasks = tasks if _on_cpu() else tasks[:3]  # the others take as long as all but the first
    seconds = []

    def train_sequentially(some_tasks: Iterable[AnyTask]) -> None:
        with _compilation_cache(f"{folder}/{name}_sequential_cache"):
            for task in some_tasks:
                start = time.perf_counter()
                _train(task, f"{folder}/{name}_sequential{len(seconds)}")
                seconds.append(time.perf_counter() - start)

    half = (len(timed_tasks) + 1) // 2
    train_sequentially(timed_tasks[:half])
    paths = [f"{folder}/{name}_vectorized{i}" for i in range(len(tasks))]
    sequential = [partial(_train, task, path) for task, path in zip(tasks, paths)]
    with _compilation_cache(f"{folder}/{name}_vectorized_cache"):
        start = time.perf_counter()
        models = train_vectorized(tasks, paths, sequential, skip_trial=False)
        for model in models:
            model()
        vectorized_seconds = time.perf_counter() - start
    train_sequentially(timed_tasks[half:])
    sequential_seconds = seconds[0] + float(np.mean(seconds[1:])) * (len(tasks) - 1)
    is_vmapped = models[1] is not sequential[1]
    text = f"{name}, 8 learning rates, {steps} steps: throughput, of one after another"
    times = f"{vectorized_seconds:.1f} s of {seconds[0]:.1f} + 7 x {np.mean(seconds[1:]):.1f}"
    note = f"({'vmapped' if is_vmapped else 'one after another'}; {times})"
    bound = MIN_VMAPPED if is_vmapped or not _on_cpu() else MIN_THROUGHPUT
    yield Claim(text, sequential_seconds / vectorized_seconds, bound, note=note)


def _agreement(name: str, folder: str, steps: int) -> Iterator[Claim]:
    """Each vmapped run against the same run by itself."""
    tasks = [_task(name, folder, steps, rate) for rate in RATES]
    indices = range(0, len(tasks), 1 if _on_cpu() else 3)
    singles = {i: _train(tasks[i], f"{folder}/{name}_single{i}") for i in indices}
    paths = [f"{folder}/{name}_vmapped{i}" for i in range(len(tasks))]
    models = train_vectorized(tasks, paths, [], skip_trial=True)
    differences = {i: _relative_difference(_params(models[i]()), _params(singles[i])) for i in indices}
    text = f"{name}, {steps} steps, a vmapped run against the run by itself: relative difference of the parameters"
    stable = max(differences[i] for i in indices if RATES[i] <= STABLE_RATE)
    yield Claim(f"{text}, learning rates to {STABLE_RATE:g}", stable, 1e-5, at_most=True)
    worst = max(indices, key=differences.get)
    if differences[worst] > 1e-5:
        rounded_up = _task(name, folder, steps, float(np.nextafter(np.float32(RATES[worst]), np.float32(1))))
        rounding = _relative_difference(
            _params(_train(rounded_up, f"{folder}/{name}_rounded")), _params(singles[worst])
        )
        note = f"({differences[worst]:.1e} at {RATES[worst]:g}; rounding the rate up changes it by {rounding:.1e})"
        yield Claim(f"{text}, to {RATES[-1]:g}: over that of one rounding", differences[worst] / rounding, note=note)
    else:
        yield Claim(f"{text}, to {RATES[-1]:g}", differences[worst], 1e-5, at_most=True)


def _sampling(path: str) -> Iterator[Claim]:
    """A sweep's sampling settings in the program for all, and in a program for each, including compilation."""
    model, b = directory.load(path), 8
    settings = [
        replace(model.settings, solver="ddim", eta=0.0, steps=steps, guidance_scale=scale)
        for steps, scale in SAMPLE_SETTINGS
    ]
    captions = one_program.captions_of(model, b)
    draw = partial(program.draw, model.spec(), model.params)
    with _compilation_cache(f"{path}_dedicated_cache"):
        start = time.perf_counter()
        dedicated_images = [np.asarray(one_program.dedicated_sampler(model, setting, b)()) for setting in settings]
        ratio = time.perf_counter() - start
    with _compilation_cache(f"{path}_general_cache"):
        start = time.perf_counter()
        images = [np.asarray(draw(model.inputs([setting] * b), captions, None)[0]) for setting in settings]
        ratio /= time.perf_counter() - start
    count = len(SAMPLE_SETTINGS)
    text = f"sampling, {count} settings of {b} images in one compiled program: throughput, of a program for each"
    yield Claim(text, ratio, MIN_VMAPPED)
    difference = np.abs(np.stack(dedicated_images).astype(int) - np.stack(images)).max()
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


def _params(model: str | TrainState) -> dict:
    """The parameters of a run, not an EMA of them."""
    if isinstance(model, TrainState):
        return model.params
    return directory.restore_params(model, directory.first_device(), ema="none")


def _relative_difference(a: dict, b: dict) -> float:
    difference = jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), a, b)
    return float(optax.tree.norm(difference) / optax.tree.norm(b))
