"""``python -m benchmarks reliability``: random damage to checkpoints and run files, and what all protection costs."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import jax
import numpy as np
from etils import epath

from benchmarks.claims import Claim, median_interval, paired_ratios, report
from jdiff.commands.flags import shipped_configs
from jdiff.runs import directory
from jdiff.runs.prepare import prepare
from jdiff.runs.train import train
from jdiff.runtime.distributed import StopSignals
from jdiff.runtime.watchdog import Watchdog
from jdiff.sharding import mesh as meshes
from jdiff.tasks import make_task
from jdiff.training import loop, metrics
from jdiff.training.checkpoint import Checkpoints
from jdiff.training.manifest import DamagedCheckpoint
from jdiff.training.spikes import Guard

NUM_CHECKPOINTS, NUM_FILES = 1000, 200  # damages
RUN_FILES = ("config.json", "tokenizer.json", "data.json")
PAIRS, STEPS = 10, 100


def measure(*, quick: bool, runs: str) -> int:
    """Measure every claim; quickly, with few damages and pairs. Returns the exit status."""
    share = 50 if quick else 1
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        _train(path)
        claims = itertools.chain(
            _damaged_checkpoints(path, NUM_CHECKPOINTS // share),
            _damaged_files(path, NUM_FILES // share),
            _cost(path, 2 if quick else PAIRS),
        )
        return report("reliability", claims, quick=quick)


def _config(name: str, folder: Path) -> Any:
    namespace: dict[str, Any] = {}
    exec(compile(shipped_configs()[name].read_text(), name, "exec"), namespace)
    config = namespace["get_config"]("tiny")
    config.data.directory = str(folder / "data")
    config.mesh.data = 1
    return config


def _train(folder: Path) -> None:
    """A run with two checkpoints."""
    config = _config("demo_clip", folder)
    config.train.update(steps=8, save_every=4, sample_every=8, log_every=2)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        prepare(make_task(config))
        train(make_task(config), str(folder / "run"))


def _damaged_checkpoints(folder: Path, num: int) -> Iterator[Claim]:
    """Damage the newest of two checkpoints, and read the run as `jdiff train` and as `jdiff sample` do."""
    task = directory.saved_task(folder / "run")
    template = task.state_like(task.config.mesh.make())
    source = folder / "run" / "checkpoints"
    with Checkpoints(source) as store:
        truth = {step: store.restore(step, template) for step in store.steps}
    counts: Counter[str] = Counter()
    for seed in range(num):
        path = folder / "damaged" / "checkpoints"
        shutil.rmtree(path.parent, ignore_errors=True)
        shutil.copytree(source, path)
        is_changed = _damage(path / "8", np.random.default_rng(seed))
        with Checkpoints(path) as store, contextlib.redirect_stderr(io.StringIO()):
            try:
                step = store.newest_intact()
                is_equal = _equal(store.restore(step, template), truth[step])
            except DamagedCheckpoint:
                step, is_equal = None, True
        counts["harmless" if not is_changed else "fell back" if step == 4 and is_equal else "not found"] += 1
    total = counts["fell back"] + counts["not found"]
    note = f"of {total}, and {counts['harmless']} that changed no byte"
    yield Claim(
        "random damages of a checkpoint that are found, and the one before is used",
        counts["fell back"],
        total,
        note=note,
    )


def _damaged_files(folder: Path, num: int) -> Iterator[Claim]:
    """Damage config, tokenizer or data file of a run, and load it: the same model, or a sentence."""
    source = folder / "run"
    truth = directory.load(source)
    vocabulary = directory.saved_task(source).tokenizer.text
    counts: Counter[str] = Counter()
    for seed in range(num):
        random = np.random.default_rng(seed)
        path = folder / "damaged"
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(source, path)
        name = RUN_FILES[seed % len(RUN_FILES)]
        is_changed = _damage_file(path / name, random)
        try:
            model, task = directory.load(path), directory.saved_task(path)
            is_equal = _equal(model.params, truth.params) and task.tokenizer.text == vocabulary
            outcome = "the same" if is_equal else "silent"
        except (ValueError, OSError):
            outcome = "refused"
        counts[outcome if is_changed else "harmless"] += 1
    note = ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items()))
    yield Claim(
        "random damages of a run's config, tokenizer and data files that load as another model",
        counts["silent"],
        0,
        True,
        note=note,
    )


def _cost(folder: Path, pairs: int) -> Iterator[Claim]:
    """CPU time of training with everything on, over that of the bare compiled step with the same logs and saves."""
    config = _config("demo_t2i", folder)
    config.text.init_from = str(folder / "run")
    config.denoiser.update(channels=(32, 64))
    config.train.update(batch_size=32)
    from jdiff.runs.init_from import load_params, resolve_init_from

    runs = {}
    for name, max_skipped in (("on", 8), ("off", 0)):
        config.train.max_skipped = max_skipped
        task, models = resolve_init_from(make_task(config), folder / "nowhere")
        task = task.with_tokenizer(models["text"].task.tokenizer)
        mesh = task.config.mesh.make()
        examples = task.split("train")
        state = task.initial_state(mesh, load_params(models, meshes.replicated(mesh)))
        step = task.compiled_step(mesh, task.statistics(examples, state, mesh))
        rows = _batch(task, examples)
        batch = meshes.place_batch(mesh, rows)
        state, _ = step(state, batch)
        runs[name] = [state, step, batch]
    counter = itertools.count()

    def train_with_all() -> None:
        state, step, batch = runs["on"]
        workdir = epath.Path(folder / f"on_{next(counter)}")
        workdir.mkdir()
        first = int(state.step)
        writer = metrics.Writer(workdir, start_step=0)
        with (
            Checkpoints(workdir / "checkpoints", keep=2) as store,
            StopSignals() as stop,
            Watchdog({"step": 600}) as watchdog,
            contextlib.redirect_stderr(io.StringIO()),
        ):
            runs["on"][0] = loop.run_loop(
                state,
                step,
                itertools.repeat(batch),
                steps=first + STEPS,
                log_every=10,
                save_every=10**9,
                checkpoints=store,
                writer=writer,
                callbacks=(),
                stop=stop,
                watchdog=watchdog,
                guard=Guard(8, print),
            )
        writer.close()

    def bare() -> None:
        state, step, batch = runs["off"]
        workdir = epath.Path(folder / f"off_{next(counter)}")
        pending, first = None, int(state.step)
        lines = []
        with Checkpoints(workdir / "checkpoints", keep=2) as store:
            for i in range(STEPS):
                state, step_metrics = step(state, batch)
                pending = step_metrics if pending is None else metrics.merge(pending, step_metrics)
                if (i + 1) % 10 == 0:
                    lines.append(json.dumps({"step": first + i, **metrics.values(pending)}))
                    pending = None
            store.finish(state)
        runs["off"][0] = state

    train_with_all(), bare()
    ratios = 1 / paired_ratios(train_with_all, bare, pairs)
    text = "steps a second of training with everything on, over those of the bare step"
    yield Claim(text, median(ratios), 0.98, interval=median_interval(ratios), note=f"{pairs} pairs of {STEPS} steps")
    yield from _blocking(folder, runs["on"])


def _blocking(folder: Path, run: list) -> Iterator[Claim]:
    """How long a save keeps training waiting."""
    state, step, batch = run
    seconds, step_seconds = [], []
    with Checkpoints(folder / "blocking", keep=2) as store:
        for _ in range(8):
            start = time.perf_counter()
            state, step_metrics = step(state, batch)
            jax.block_until_ready((state, step_metrics))
            step_seconds.append(time.perf_counter() - start)
            start = time.perf_counter()
            store.save(state)
            seconds.append(time.perf_counter() - start)
            store.wait()
    bound = max(0.2, 2 * median(step_seconds))
    yield Claim("seconds that a save of a small U-Net blocks training", median(seconds[1:]), bound, at_most=True)


def _batch(task: Any, examples: Any) -> dict:
    from jdiff.data.pipeline import Batches

    batches = Batches(examples, task.tokenizer, batch_size=task.config.train.batch_size, seed=0)
    with contextlib.closing(batches):
        return next(batches)


def _damage(folder: Path, random: np.random.Generator) -> bool:
    """Damage a random file of a folder, or add one. Returns whether that has changed anything."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
    path = paths[random.integers(len(paths))]
    if random.integers(7) == 0:
        (path.parent / f"extra_{random.integers(1000)}").write_bytes(random.bytes(50))
        return True
    if random.integers(6) == 0:
        other = paths[random.integers(len(paths))]
        data = path.read_bytes()
        is_changed = data != other.read_bytes()
        path.write_bytes(other.read_bytes())
        other.write_bytes(data)
        return is_changed
    return _damage_file(path, random)


def _damage_file(path: Path, random: np.random.Generator) -> bool:
    """Flip a bit of a file, cut it, zero a part, or delete it. Returns whether that has changed anything."""
    data = path.read_bytes()
    place = int(random.integers(len(data)))
    kinds: tuple[Callable[[], bytes | None], ...] = (
        lambda: data[:place] + bytes([data[place] ^ 1 << int(random.integers(8))]) + data[place + 1 :],
        lambda: data[:place],
        lambda: data[:place] + bytes(len(data[place : place + 32])) + data[place + 32 :],
        lambda: None,
    )
    content = kinds[random.integers(len(kinds))]()
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    return content != data


def _equal(a: Any, b: Any) -> bool:
    """Whether two trees are equal to the bit."""
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in leaves)
