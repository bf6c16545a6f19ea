"""Training a run, from its first step or from its newest checkpoint."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from jdiff import storage
from jdiff.config.construct import ConfigError
from jdiff.data.pipeline import Batches, local_groups
from jdiff.data.records import Records
from jdiff.images import read_metadata, write_image
from jdiff.runs import directory
from jdiff.runs.activity import Activity
from jdiff.runs.begin import (
    changes_on_resume,
    initialize_run_dir,
    note_on_truncation,
    notes_on_data,
    open_records,
    record_changes,
    restore_files,
    tokenizer_of,
)
from jdiff.runs.broken_rows import BrokenRows
from jdiff.runs.init_from import load_params, resolve_init_from
from jdiff.runs.roll_back import data_offset, roll_back
from jdiff.runtime import distributed
from jdiff.runtime.lock import DirectoryInUse, hold_lock
from jdiff.runtime.watchdog import Watchdog
from jdiff.sharding import mesh as meshes
from jdiff.sharding import rules
from jdiff.tasks.task import ImageTextTask
from jdiff.training import loop
from jdiff.training.callbacks import Callback, Report
from jdiff.training.checkpoint import Snapshots
from jdiff.training.metrics import Writer, from_checkpoint
from jdiff.training.spikes import Guard
from jdiff.training.state import TrainState


def train(task: ImageTextTask, workdir: str) -> None:
    """Train to the config's last step, from the newest checkpoint if there is one.

    Every process of a run calls this; the primary one prints and writes for all.
    """
    path = epath.Path(workdir)
    with ExitStack() as stack:
        watchdog = stack.enter_context(_watchdog(task))
        if is_locked := path.exists():
            _lock(path, stack)
        to_lock = None if is_locked else stack
        while True:
            try:
                if not _train(task, path, watchdog, to_lock):
                    _print(f"{path} has all its {task.config.train.steps} steps already")
                    return
                break
            except loop.SkippedInARow as error:
                _print(f"jdiff: {roll_back(path, error, task.config.train.keep)}")
                to_lock = None
    distributed.assert_equal_across_processes(end="of the run")  # another process may still be writing previews
    _print(f"wrote {path / 'checkpoints'}, {path / 'metrics.jsonl'} and {path / 'samples'}")


def _watchdog(task: ImageTextTask) -> Watchdog:
    process, channel = jax.process_index(), {}
    if jax.process_count() > 1:
        channel = {"publish": distributed.publish, "read_all": distributed.published_values}
    return Watchdog(asdict(task.config.watchdog), process=process, **channel)


def _lock(path: epath.Path, stack: ExitStack) -> None:
    """Lock a run's directory until the end of ``stack``. Raises ``DirectoryInUse`` on all processes, or ``OSError``."""
    error: Exception | None = None
    if distributed.is_primary_process():
        try:
            stack.enter_context(hold_lock(path, "a run"))
        except (DirectoryInUse, OSError) as lock_error:
            error = lock_error
    problem = distributed.first_problem(None if error is None else str(error))
    if problem is not None:
        raise error or DirectoryInUse(problem)


def _train(task: ImageTextTask, path: epath.Path, watchdog: Watchdog, to_lock: ExitStack | None) -> bool:
    """Train a run. to_lock: where its lock goes once all processes agree, None where it has been locked.

    Returns whether there was something to do.
    """
    process_start = time.time()
    if distributed.is_primary_process():
        restore_files(path)
    multihost_utils.sync_global_devices("files of the run are restored")
    task, models = resolve_init_from(task, path)
    section = task.config.train
    task, dataset = open_records(task, path)
    examples = dataset.split("train")
    mesh = task.config.mesh.make()
    shards, local_shards = meshes.num_batch_shards(mesh), meshes.local_batch_shards(mesh)
    _check_batch(task, mesh)
    changes = changes_on_resume(task, path)
    task = task.with_tokenizer(tokenizer_of(task, path, models, dataset))
    is_new = directory.latest_step(path) is None
    common = {"data": f"{dataset.name}, {len(examples)}", "state of --workdir": f"{is_new}"}
    distributed.assert_equal_across_processes(
        config=json.dumps(task.config.raw), tokenizer=task.tokenizer.text, **common
    )
    pending = None
    if is_new:
        state = task.initial_state(mesh, load_params(models, meshes.replicated(mesh)))
        if distributed.is_primary_process() and (note := note_on_truncation(task.tokenizer, dataset.captions("train"))):
            _print(note)
    if to_lock is not None:
        _lock(path, to_lock)
    if distributed.is_primary_process():
        initialize_run_dir(task, path, dataset)
    broken_rows = BrokenRows(task)
    with directory.open_checkpoints(path, task, broken_rows.counters) as store:
        if not is_new:
            step = store.newest_intact()
            origin = store.origin(step)
            directory.check_run_files(path, step, origin)
            state = store.restore(step, task.state_like(mesh))
            item = store.restore_items(step, meshes.replicated(mesh), "train_metrics")["train_metrics"]
            pending = from_checkpoint(item)
            broken_rows.resume(origin)
        start = int(state.step)
        for key, (old_value, new_value) in sorted(changes.items()):
            _print(f"resuming at step {start} with config.{key} = {new_value!r}, which was {old_value!r}")
        if distributed.is_primary_process():
            record_changes(task, path, start, changes)
            for note in notes_on_data(task, dataset):
                _print(note)
        with ExitStack() as stack:
            callbacks = [previews(task, path, dataset, mesh)]
            if section.evaluate_every:
                callbacks.append(evaluation(task, path, dataset, mesh))
            if task.config.ema.snapshot_every:
                snapshots = stack.enter_context(directory.snapshots(path, resume_step=start))
                callbacks.insert(0, ema_snapshots(task, snapshots))
            if start >= section.steps and not any(callback.is_missing(start, section.steps) for callback in callbacks):
                return False
            _describe(task, mesh, state, len(examples), path)
            batches = Batches(
                examples,
                task.tokenizer,
                batch_size=section.batch_size,
                seed=section.seed,
                start_step=start + data_offset(path, start),
                group=section.group,
                local_shards=local_shards,
                num_shards=shards,
                on_broken=broken_rows.add,
            )
            stack.enter_context(closing(batches))
            if distributed.is_primary_process():
                stack.enter_context(Activity(path, watchdog, start, process_start))
            writer, stop = stack.enter_context(_writer(path, start)), stack.enter_context(distributed.StopSignals())
            compiled_step = task.compiled_step(mesh, task.statistics(examples, state, mesh))
            try:
                loop.run_loop(
                    state,
                    compiled_step,
                    _place(mesh, broken_rows.limit(batches, start), section.steps_per_dispatch),
                    steps=section.steps,
                    log_every=section.log_every,
                    save_every=section.save_every,
                    checkpoints=store,
                    writer=writer,
                    callbacks=callbacks,
                    stop=stop,
                    watchdog=watchdog,
                    steps_per_dispatch=section.steps_per_dispatch,
                    pending=pending,
                    guard=Guard(section.max_skipped, _print) if section.max_skipped else None,
                )
            except loop.SkippedInARow as error:
                skipped_batches = list(batches.recent_records)[error.first_step - error.step - 1 :]
                error.records = [[examples[i]["key"].decode() for i in rows] for rows in skipped_batches]
                raise
            if note := broken_rows.note():
                _print(note)
    return True


def previews(task: ImageTextTask, path: epath.Path, dataset: Records, mesh: Mesh) -> Callback:
    """Pictures of what the model can do, for captions of the test split, or of the train split of data without one."""
    split = "test" if "test" in dataset.num_examples else "train"
    examples = dataset.split(split)
    examples = [examples[i] for i in range(min(task.preview_num, len(examples)))]

    def file(step: int) -> epath.Path:
        return path / "samples" / f"step_{step}.png"

    def run(state: TrainState) -> Report:
        params = meshes.gather_to_local_device(mesh, state.inference_params)
        if not distributed.is_primary_process():
            return Report()
        step, picture = int(state.step), task.previews(params, examples)
        write_image(file(step), picture.image, {"workdir": str(path), "step": step, "split": split, **picture.request})
        return Report(pictures={"samples": picture.image})

    is_recorded = _as_primary_sees(lambda step: read_metadata(file(step)) is not None)
    return Callback(task.config.train.sample_every, run, is_recorded)


def evaluation(task: ImageTextTask, path: epath.Path, dataset: Records, mesh: Mesh) -> Callback:
    """What `jdiff evaluate` measures on the test split, as metrics "evaluation/NAME" of the step."""
    split = "test" if "test" in dataset.num_examples else "train"
    num = task.config.train.evaluate_num or None

    def run(state: TrainState) -> Report:
        model = task.model(meshes.gather_to_local_device(mesh, state.inference_params))
        scalars = task.evaluate(model, split=split, num=num).scalars  # on every process alike
        return Report({f"evaluation/{name}": float(value) for name, value in scalars.items()})

    def is_recorded(step: int) -> bool:
        lines = storage.read_json_lines(path / "metrics.jsonl")
        return any(line["step"] == step and any(name.startswith("evaluation/") for name in line) for line in lines)

    return Callback(task.config.train.evaluate_every, run, _as_primary_sees(is_recorded))


def ema_snapshots(task: ImageTextTask, snapshots: Snapshots) -> Callback:
    """EMAs that are kept for good, for post-hoc EMA."""

    def run(state: TrainState) -> Report:
        snapshots.save(state)
        return Report()

    return Callback(task.config.ema.snapshot_every, run, lambda step: step in snapshots.steps, at_end=False)


def _as_primary_sees(is_recorded: Callable[[int], bool]) -> Callable[[int], bool]:
    """What the primary process answers, on all: it writes the files, and another may see them late or half written."""

    return lambda step: bool(distributed.from_primary(distributed.is_primary_process() and is_recorded(step)))


def _check_batch(task: ImageTextTask, mesh: Mesh) -> None:
    """Raise ``ConfigError`` where the batch cannot be divided on this mesh, before anything is written."""
    train, shards = task.config.train, meshes.num_batch_shards(mesh)
    if train.batch_size % shards:
        raise ConfigError(f"config.train.batch_size is {train.batch_size}, which {shards} devices cannot share evenly")
    try:
        local_groups(train.batch_size, train.group, meshes.local_batch_shards(mesh), shards)
    except ValueError as error:
        raise ConfigError(
            f"config.train.group is {train.group}, but this process reads what its devices need: {error}"
        ) from error
    task.check_mesh(mesh)


def _describe(task: ImageTextTask, mesh: Mesh, state: TrainState, num_images: int, path: epath.Path) -> None:
    section, device = task.config.train, mesh.devices.flat[0].device_kind
    size = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    _print(f"task {task.name}: training {size / 1e6:.2f} M parameters on {mesh.size} x {device}")
    if mesh.size > 1:
        _print(f"mesh {dict(mesh.shape)}; parameters are sharded by jdiff/sharding/rules.py:")
        _print(rules.placement_table(mesh, state.inference_params))
    steps = f"steps {int(state.step)} to {section.steps}"
    _print(f"{steps} of batch size {section.batch_size} from {num_images} images; saving to {path}")


def _place(mesh: Mesh, batches: Iterable[dict], steps_per_dispatch: int) -> Iterator[dict]:
    """Batches on a mesh; where several steps are dispatched together, their batches stacked."""
    if steps_per_dispatch == 1:
        yield from (meshes.place_batch(mesh, batch) for batch in batches)
    else:
        for group in zip(*[iter(batches)] * steps_per_dispatch):
            yield meshes.place_batch(mesh, jax.tree.map(lambda *rows: np.stack(rows), *group), batch_axis=1)


def _print(text: str) -> None:
    if distributed.is_primary_process():
        print(text, flush=True)


@contextmanager
def _writer(path: epath.Path, start: int) -> Iterator[Writer | None]:
    """The run's writer, on the process that writes."""
    if not distributed.is_primary_process():
        yield None
        return
    with closing(Writer(path, start_step=start)) as writer:
        yield writer
