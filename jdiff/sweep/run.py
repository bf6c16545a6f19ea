"""Running a sweep: many variants of a config, trained and measured, and the report on them."""

from __future__ import annotations

import fcntl
import json
import math
import re
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from jdiff import storage
from jdiff.config.construct import ConfigError, nearest
from jdiff.exit_status import START_AGAIN
from jdiff.images import write_image
from jdiff.runs import directory
from jdiff.runs.prepare import prepare
from jdiff.runs.train import train
from jdiff.runtime.lock import hold_lock
from jdiff.sweep import pool, report, vectorize
from jdiff.sweep.cells import NOT_TRAINED, Cell, Sweep, read_sweep
from jdiff.sweep.pool import RunFailure
from jdiff.sweep.store import Store
from jdiff.sweep.vectorized import vectorized
from jdiff.tasks import AnyTask
from jdiff.training.loop import Divergence

VECTORIZE = ("auto", "always", "never")  # auto: where a short trial finds it faster
MAX_VECTORIZED = 32  # runs of one program


def run_sweep(
    file: str,
    workdir: str,
    *,
    config_file: Callable[[str], str],
    jobs: int = 1,
    gpus: Sequence[str] = (),
    vectorize_runs: str = "auto",
    indices: Sequence[int] = (),
    retry: bool = False,
    dry_run: bool = False,
) -> None:
    """Do what remains of a sweep, and report the results.

    config_file: from a config's name to its file.   jobs: runs at a time, each with its share of the cores; 0 for none.
    gpus: in place of this, one run at a time on each.
    vectorize_runs: whether runs that differ only in traced hyperparameters are one vmapped program, of VECTORIZE.
    indices: do only these runs, without a report.
    retry: try failed runs again.   dry_run: only print a command for each cell.
    Raises ``ConfigError`` before anything starts, ``RunFailure`` at the end.
    """
    sweep, store = read_sweep(file, config_file), Store(workdir)
    keys = list(sweep.runs)
    _check_trained_run(sweep)
    if dry_run:
        for cell in sweep.cells:
            print(_command(sweep, cell, store))
        return
    if indices:
        if not 0 <= min(indices) <= max(indices) < len(keys):
            raise ConfigError(
                f"--runs is {','.join(map(str, indices))}, but {sweep.name} has runs 0 to {len(keys) - 1}"
            )
        _measure_runs(sweep, [keys[i] for i in indices], store, vectorize_runs)
        return
    with hold_lock(workdir, "a sweep"):
        for key in keys if retry else ():
            store.clear_failure(key)
        _run_all(sweep, store, file, jobs, gpus, vectorize_runs)


def _run_all(sweep: Sweep, store: Store, file: str, jobs: int, gpus: Sequence[str], vectorize_runs: str) -> None:
    """Do the runs that remain, in a pool of processes, and report the results of all."""
    keys, workdir = list(sweep.runs), str(store.path)
    remaining = store.remaining_runs(sweep)
    logs = Path(workdir) / "logs" if store.on_disk else Path(tempfile.mkdtemp(prefix=f"{sweep.name}_"))
    print(f"{sweep.name}: {len(sweep.cells)} cells of {len(keys)} runs, {len(remaining)} runs to do; see {logs}")
    _prepare_data(sweep, remaining)
    groups = _divide_among_jobs(sweep, remaining, len(gpus) or jobs, vectorize_runs)
    command = [
        sys.executable,
        "-m",
        "jdiff.cli",
        "sweep",
        file,
        f"--workdir={workdir}",
        f"--vectorize={vectorize_runs}",
    ]
    commands = {
        group[0]: [*command, f"--runs={','.join(str(keys.index(key)) for key in group)}"] for group in groups if jobs
    }

    def on_end(name: str, status: int, seconds: float, output: str) -> None:
        (group,) = (group for group in groups if group[0] == name)
        for key in () if status in (0, START_AGAIN) else set(group) & set(store.remaining_runs(sweep)):
            store.save_failure(key, f"status {status}: {_error_line(output)}")
        outcome = {0: "done", START_AGAIN: "stopped"}.get(status, "failed")
        title = _run_label(sweep, group[0]) + (f" and {len(group) - 1} more" if group[1:] else "")
        print(f"run {keys.index(name)} of {sweep.name}, {title}: {outcome} after {seconds:.0f} s", flush=True)
        for line in re.findall(vectorize.LOG_PATTERN, output, re.MULTILINE):
            print(f"  {line}", flush=True)

    pool.run_commands(commands, pool.divide_devices(jobs, gpus), logs, on_end)
    failures = {key: reason for key in keys if (reason := store.failure(key))}
    print(f"wrote {', '.join(map(str, report.write(sweep, store)))}")
    if failures:
        for reason in dict.fromkeys(failures.values()):
            names = [f"run {keys.index(key)}, {_run_label(sweep, key)}" for key in failures if failures[key] == reason]
            print(f"failed, {reason}\n  " + "\n  ".join(names))
        raise RunFailure(f"{len(failures)} of {len(keys)} runs failed, as printed above; --retry tries them again")
    if jobs and (remaining := store.remaining_runs(sweep)):
        raise RunFailure(f"{len(remaining)} of {len(keys)} runs were stopped; run the same command to resume")


def _check_trained_run(sweep: Sweep) -> None:
    """Raise ``ConfigError`` where the run that cells sample with is not trained to its end, as results would change."""
    if sweep.trained_run is None:
        return
    step = directory.latest_step(sweep.trained_run)
    steps = directory.saved_task(sweep.trained_run).config.train.steps
    if step is None or 0 < step < steps:  # a converted run has 0
        raise ConfigError(
            f"RUN of {sweep.name} is {sweep.trained_run}, which is at step {step or 0} of {steps}; train it to its end"
        )


def _error_line(output: str) -> str:
    """The line of a program's output that tells why it ended."""
    lines = output.strip().splitlines()
    errors = [line for line in lines if re.match(r"(jdiff:|[\w.]*(Error|Exception)\b)", line)]
    return (errors or lines or ["it printed nothing"])[-1]


def _run_label(sweep: Sweep, key: str) -> str:
    """What distinguishes a run from others, to be read."""
    cell = sweep.runs[key][0]
    if sweep.trained_run:
        return sweep.label(dict(cell.variant))
    return sweep.label({name: value for name, value in cell.values.items() if name.split(".")[0] not in NOT_TRAINED})


def _command(sweep: Sweep, cell: Cell, store: Store) -> str:
    """The command that trains one cell's run, or with a trained run samples or measures with the cell's settings."""
    values = {key: value for key, value in cell.values.items() if not key.startswith("measure.")}
    if sweep.trained_run:
        settings = {key.partition(".")[2]: value for key, value in values.items()}
        settings |= {"ema": cell.measure.ema} if cell.measure.ema else {}
        options = [f"--{key}={value}" for key, value in settings.items()]
        command = ["sample", "PROMPT"] if cell.task.draws else ["evaluate"]
        return shlex.join(["jdiff", *command, f"--workdir={sweep.trained_run}", *options])
    options = [f"--config.{key}={value}" for key, value in values.items()]
    command = ["train"] if cell.task.has_run_dir else ["figures", "spiral"]
    workdir = [f"--workdir={store.run_dir(cell.run)}"] if cell.task.has_run_dir else []
    return shlex.join(["jdiff", *command, f"--config={sweep.base}", *options, *workdir])


def _prepare_data(sweep: Sweep, keys: Sequence[str]) -> None:
    """Write the data of these runs, each set once. Raises ``ConfigError`` where it lacks the split to be measured."""
    prepared_sets: list[tuple[dict, list[str]]] = []
    for key in keys:
        task = sweep.runs[key][0].task
        if not task.has_run_dir:
            continue
        data = task.config.section("data")
        splits = next((splits for other, splits in prepared_sets if other == data), None)
        if splits is None:
            prepare(task)
            splits = list(task.records().num_examples)
            prepared_sets.append((data, splits))
        for split in {cell.measure.split for cell in sweep.runs[key]} - set(splits):
            raise ConfigError(f"measure.split of {sweep.name} is {split}; {nearest(split, splits)}")


def _divide_among_jobs(sweep: Sweep, keys: Sequence[str], jobs: int, vectorize_runs: str) -> list[list[str]]:
    """The runs of each job: those that may be vmapped together, an even part for each job that runs at a time; with a
    trained run, an even part of what is drawn."""
    if sweep.trained_run:
        return _even_parts(keys, jobs)
    if vectorize_runs == "never":
        return [[key] for key in keys]
    groups = vectorize.groups({key: sweep.runs[key][0].task for key in keys})
    counts = [max(min(jobs, len(group) // 2), math.ceil(len(group) / MAX_VECTORIZED)) for group in groups]
    return [part for group, count in zip(groups, counts) for part in _even_parts(group, count)]


def _even_parts(keys: Sequence[str], count: int) -> list[list[str]]:
    """``count`` parts, or as many as there are keys; at least one, if there is any key."""
    return [list(map(str, part)) for part in np.array_split(keys, max(count, 1)) if len(part)]


def _measure_runs(sweep: Sweep, keys: Sequence[str], store: Store, vectorize_runs: str) -> None:
    """Train runs, unless their cells share a trained one, and measure those of their cells that were not."""
    with ExitStack() as stack:
        for key in sorted(set(keys)):
            stack.enter_context(_lock(store, key))
        remaining = {key: cells for key in keys if (cells := _cells_to_measure(sweep, key, store))}
        if not remaining:
            return
        groups = [list(remaining)] if sweep.trained_run else [[key] for key in remaining]  # each of one model
        cells_of = [[cell for key in group for cell in remaining[key]] for group in groups]
        tasks = [cells[0].task for cells in cells_of]
        paths = [sweep.trained_run or str(store.run_dir(group[0])) for group in groups]
        models: Sequence[Callable] = [partial(_train, sweep, task, path) for task, path in zip(tasks, paths)]
        if len(groups) > 1 and vectorize_runs != "never" and _can_vectorize(tasks, paths):
            models = train_vectorized(tasks, paths, models, skip_trial=vectorize_runs == "always")
        for group, cells, model in zip(groups, cells_of, models):
            with _saving_failures(store, group):
                trained = model()
                # Parameters are read once for each EMA that is measured; where one fails, others go on.
                for ema in dict.fromkeys(cell.measure.ema for cell in cells):
                    of_ema = [cell for cell in cells if cell.measure.ema == ema]
                    with _saving_failures(store, [key for key in group if any(c in of_ema for c in remaining[key])]):
                        _measure_cells(sweep, store, of_ema, trained, ema)


def _cells_to_measure(sweep: Sweep, key: str, store: Store) -> list[Cell]:
    return [cell for cell in sweep.runs[key] if store.results(cell) is None]


def _measure_cells(sweep: Sweep, store: Store, cells: Sequence[Cell], trained: Any, ema: str | None) -> None:
    """Measure and save cells of one run and EMA. trained: its directory, or its state where it has none."""
    first = cells[0].task
    model = directory.load(trained, ema=ema) if first.has_run_dir else first.model(trained, ema)
    loss = _final_loss(trained) if first.has_run_dir else {}
    for cell in cells:
        measure, task = cell.measure, cell.task
        results, picture = task.measure(model, split=measure.split, num=measure.num, seed=measure.seed)
        results = results | loss
        if picture is not None:
            write_image(report.picture_path(store, cell), picture, {"cell": cell.values, "config": cell.config})
        store.save(cell, results)
        print(f"{sweep.label(cell.values)}: {json.dumps(results)}", flush=True)


@contextmanager
def _saving_failures(store: Store, keys: Sequence[str]) -> Iterator[None]:
    """What fails inside is kept as the failure of these runs, and others go on."""
    try:
        yield
    except (ConfigError, Divergence) as error:
        for key in keys:
            store.save_failure(key, str(error))


def _can_vectorize(tasks: Sequence[AnyTask], paths: Sequence[str]) -> bool:
    """Whether runs can be vmapped: on one device, none started yet, with nothing over several steps or microbatches."""
    return all(
        not task.has_run_dir
        or (
            task.config.mesh.make().size == 1
            and directory.latest_step(path) is None
            and task.config.train.steps_per_dispatch == 1
            and not task.config.train.deterministic_reduction
            and not task.config.ema.snapshot_every
        )
        for task, path in zip(tasks, paths)
    )


def train_vectorized(
    tasks: Sequence[AnyTask], paths: Sequence[str], sequential: Sequence[Callable], *, skip_trial: bool
) -> Sequence[Callable]:
    """Train runs as one vmapped program, if that takes half the time: one is trained alone, then vmapping is tried.

    sequential: functions that train each alone, and give its model.   skip_trial: vmap without either.
    Returns for each a function that gives its model.
    """
    count, sequential_seconds = 0, None
    if not skip_trial:
        if vectorize.is_slow(tasks[0]):
            vectorize.log_choice(len(tasks), False, "on a CPU, vmapped convolutions are slow to train")
            return sequential
        count = 1
        try:
            model, seconds, compile_seconds = vectorize.time_without_compiling(sequential[0])
        except Divergence as error:
            return [partial(_raise, error), *sequential[1:]]
        first, sequential_seconds = vectorize.constant(model), seconds * (len(tasks) - 1)
        if vectorize.compile_cost_too_high(compile_seconds, sequential_seconds):
            reason = f"the others take {sequential_seconds:.0f} s, and compiling one took {compile_seconds:.0f} s"
            vectorize.log_choice(len(tasks) - 1, False, reason)
            return [first, *sequential[1:]]
    trial = vectorize.Trial(len(tasks) - count, tasks[0].config.train.steps, sequential_seconds)
    models = vectorized(tasks[count:], paths[count:]).train(trial)
    return [*([first] if count else []), *(sequential[count:] if models is None else models)]


def _raise(error: Exception) -> Any:
    raise error


@contextmanager
def _lock(store: Store, key: str) -> Iterator[None]:
    """Wait for another process that works on this run, such as one that outlived its sweep. Storage that cannot be
    locked is not waited for."""
    if not store.on_disk:
        yield
        return
    folder = Path(store.path) / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{key}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _train(sweep: Sweep, task: AnyTask, path: str) -> Any:
    """Train a run to its end. Returns its directory, or its state where it has none."""
    if not task.has_run_dir:
        return task.train()
    if sweep.trained_run is None:
        train(task, path)
    return path


def _final_loss(workdir: str) -> dict[str, float]:
    """What training logged last."""
    lines = storage.read_json_lines(epath.Path(workdir) / "metrics.jsonl")
    losses = [line["loss"] for line in lines if "loss" in line]
    return {"loss": losses[-1]} if losses else {}
