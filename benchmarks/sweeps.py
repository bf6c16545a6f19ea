"""What is claimed of launchers and sweeps: mistakes caught, a run on SLURM, cells done once, lanes of one program."""

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
from jdiff import build, runs, sample
from jdiff.build.sections import plain
from jdiff.cli import shipped_configs
from jdiff.training.state import TrainState
from jdiff.verbs import spiral
from jdiff.verbs import train as trains
from jdiff.verbs.prepare import prepare
from jdiff.verbs.sweep import as_lanes

ROOT = Path(__file__).parent.parent
STEPS = {"spiral": (4000, 80_000), "demo_clip": (4000, 3000), "demo_t2i": (200, 2000)}  # on a CPU, and elsewhere
ALIKE, RATES = 200, (1e-4, 2e-4, 5e-4, 1e-3, 1.5e-3, 2e-3, 3e-3, 5e-3)
LEAST, WHERE_CHOSEN = 0.95, 2.0  # of the throughput one after another
CALM = 1e-3  # to this rate training does not magnify what is rounded
DRAWN = [(steps, scale) for steps in (5, 10, 20, 50) for scale in (1.0, 3.0)]  # steps of DDIM, guidance


def measure(*, quick: bool, runs: str) -> int:
    """Returns the exit status."""
    return report("sweeps", _claims(quick))


def _claims(quick: bool) -> Iterator[Claim]:
    launch = _pass("tests/launch/test_gke.py", "tests/launch/test_launchers.py")
    yield Claim("launchers: shellcheck, JobSets, machines that are made up; 25 mistakes caught", launch, 1.0)
    killed = _pass("tests/sweep/test_sweep.py", "-k", "killed_twice")
    yield Claim("a sweep killed twice: the results of one left alone, each cell done once", killed, 1.0)
    page = _pass("tests/sweep/test_ablations.py")
    yield Claim("docs/ablations.md: each table and verdict follows from the results beside it", page, 1.0)
    if not quick:
        yield Claim("SLURM: a run preempted and queued again, to the bit", _pass("tests/launch/test_slurm.py"), 1.0)
    yield from _lanes(quick)


def _pass(*arguments: str) -> float:
    """Whether tests pass, none of them skipped."""
    command = [sys.executable, "-m", "pytest", "-q", "-rs", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return float(done.returncode == 0 and "SKIPPED" not in done.stdout)


def _lanes(quick: bool) -> Iterator[Claim]:
    """Eight learning rates of a tiny run."""
    with tempfile.TemporaryDirectory() as folder:
        encoder = _setup("demo_clip", folder, 2, RATES[0])
        prepare(encoder)  # the data of the next, too
        _alone(encoder, f"{folder}/encoder")  # which that listens to
        for name, (here, elsewhere) in STEPS.items():
            yield from _sooner(name, folder, 20 if quick else here if _on_cpu() else elsewhere)
        for name in STEPS:
            yield from _alike(name, folder, 20 if quick else ALIKE)
        yield from _drawn(f"{folder}/demo_t2i_alone0")


def _on_cpu() -> bool:
    return jax.default_backend() == "cpu"


def _sooner(name: str, folder: str, steps: int) -> Iterator[Claim]:
    """One after another in this process, and as the planner has it; the first before and after the second, half each,
    as a machine grows faster and slower."""
    setups = [_setup(name, folder, steps, rate) for rate in RATES]
    own = setups if _on_cpu() else setups[:3]  # the others are as long as those but the first
    seconds = []

    def go(some: Iterable[build.Experiment | build.Spiral]) -> None:
        with _compiled_in(f"{folder}/{name}_compiled_apart"):
            for setup in some:
                began = time.perf_counter()
                _alone(setup, f"{folder}/{name}_apart{len(seconds)}")
                seconds.append(time.perf_counter() - began)

    half = (len(own) + 1) // 2
    go(own[:half])
    paths = [f"{folder}/{name}_planned{i}" for i in range(len(setups))]
    each = [partial(_alone, setup, path) for setup, path in zip(setups, paths)]
    with _compiled_in(f"{folder}/{name}_compiled"):
        began = time.perf_counter()
        planned = as_lanes(setups, paths, each, always=False)
        for model in planned:
            model()
        took = time.perf_counter() - began
    go(own[half:])
    apart = seconds[0] + float(np.mean(seconds[1:])) * (len(setups) - 1)
    lanes = planned[1] is not each[1]
    text = f"{name}, 8 learning rates, {steps} steps: throughput, of one after another"
    sides = f"{took:.1f} s of {seconds[0]:.1f} + 7 x {np.mean(seconds[1:]):.1f}"
    note = f"({'as lanes' if lanes else 'one after another'}; {sides})"
    yield Claim(text, apart / took, WHERE_CHOSEN if lanes or not _on_cpu() else LEAST, note=note)


def _alike(name: str, folder: str, steps: int) -> Iterator[Claim]:
    """Each lane beside its run alone."""
    setups = [_setup(name, folder, steps, rate) for rate in RATES]
    every = range(0, len(setups), 1 if _on_cpu() else 3)
    alone = {i: _alone(setups[i], f"{folder}/{name}_alone{i}") for i in every}
    lanes = as_lanes(setups, [f"{folder}/{name}_lane{i}" for i in range(len(setups))], [], always=True)
    off = {i: _apart(_weights(lanes[i]()), _weights(alone[i])) for i in every}
    text = f"{name}, {steps} steps, a lane beside its run alone: off, of its norm"
    calm = max(off[i] for i in every if RATES[i] <= CALM)
    yield Claim(f"{text}, learning rates to {CALM:g}", calm, 1e-5, at_most=True)
    worst = max(every, key=off.get)
    if off[worst] > 1e-5:
        rounded = _setup(name, folder, steps, float(np.nextafter(np.float32(RATES[worst]), np.float32(1))))
        moved = _apart(_weights(_alone(rounded, f"{folder}/{name}_rounded")), _weights(alone[worst]))
        note = f"({off[worst]:.1e} at {RATES[worst]:g}, by which one rounding of the rate moves it {moved:.1e})"
        yield Claim(f"{text}, to {RATES[-1]:g}: of what one rounding does", off[worst] / moved, note=note)
    else:
        yield Claim(f"{text}, to {RATES[-1]:g}", off[worst], 1e-5, at_most=True)


def _drawn(path: str) -> Iterator[Claim]:
    """A sweep's settings drawn by the one compiled program, and by a program for each, compiling counted."""
    model, b = runs.load(path), 8
    settings = [
        replace(model.settings, solver="ddim", eta=0.0, steps=steps, guidance_scale=scale) for steps, scale in DRAWN
    ]
    captions = one_program.captions_of(model, b)
    draw = partial(sample.draw, model.program(), model.weights)
    with _compiled_in(f"{path}_compiled_apart"):
        began = time.perf_counter()
        apart = [np.asarray(one_program.dedicated(model, one, b)()) for one in settings]
        ratio = time.perf_counter() - began
    with _compiled_in(f"{path}_compiled"):
        began = time.perf_counter()
        together = [np.asarray(draw(model.method([one] * b), captions, None)[0]) for one in settings]
        ratio /= time.perf_counter() - began
    text = f"sampling, {len(DRAWN)} settings of {b} images in one compiled program: throughput, of a program for each"
    yield Claim(text, ratio, WHERE_CHOSEN)
    off = np.abs(np.stack(apart).astype(int) - np.stack(together)).max()
    yield Claim("... and the largest difference of a pixel, of 255", float(off), 1, at_most=True)


@contextmanager
def _compiled_in(folder: str) -> Iterator[None]:
    """Have no compiled programs but those of a folder: in a new one, as in a sweep that was never run."""
    before = jax.config.jax_compilation_cache_dir
    jax.clear_caches()
    compilation_cache.reset_cache()
    jax.config.update("jax_compilation_cache_dir", folder)
    yield
    compilation_cache.reset_cache()
    jax.config.update("jax_compilation_cache_dir", before)


def _setup(name: str, folder: str, steps: int, rate: float) -> build.Experiment | build.Spiral:
    config = plain(runpy.run_path(str(shipped_configs()[name]))["get_config"]("" if name == "spiral" else "tiny"))
    config["optimizer"] |= {"learning_rate": rate, "warmup_steps": 5}
    config["train"] |= {"steps": steps}
    if name == "spiral":
        return build.spiral(config)
    config["train"] |= {"log_every": steps, "save_every": steps, "sample_every": steps}
    config["data"]["directory"], config["mesh"] = f"{folder}/data", {"data": 1}
    if name == "demo_t2i":
        config["text"] = {"init_from": f"{folder}/encoder"}
    return build.experiment(config)


def _alone(setup: build.Experiment | build.Spiral, path: str) -> str | TrainState:
    if isinstance(setup, build.Spiral):
        return spiral.learnt(setup)
    with patch.object(trains, "_shower", lambda *_: lambda *_: None):  # lanes draw no pictures as they are trained
        trains.train(setup, path)
    return path


def _weights(model: str | TrainState) -> dict:
    """What a run has learnt: its parameters."""
    if isinstance(model, TrainState):
        return model.params
    return runs.restore_weights(model, runs.first_device(), average="none")


def _apart(a: dict, b: dict) -> float:
    difference = jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), a, b)
    return float(optax.tree.norm(difference) / optax.tree.norm(b))
