"""Numbered folders of arrays, one for each saved step, written and read through Orbax.

A folder N/ has items (N/params, N/ema, ...) and a manifest with the hash of every file. Orbax writes a folder under a
temporary name and renames it; then the manifest is written, and only with it the folder counts as saved.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Sharding

from jdiff import storage
from jdiff.runtime import distributed
from jdiff.training import manifest
from jdiff.training.manifest import DamagedCheckpoint

TEMPORARY = re.compile(r"\d+\.orbax-checkpoint-tmp.*|\d+\.deleted")
MIN_SAVE_SECONDS, BYTES_PER_SECOND = 60, 20e6  # a save that takes longer than this counts as failed
RETRY_SECONDS = (5, 10, 20, 40, 60)  # after a failed save, until the next attempt; the last one repeats
TIMEOUT_MESSAGE = "it was not finished"
FREE_SPACE_MARGIN = 1.05  # of the arrays' size, which must be free on the disk
FAILURE_KEY = "failed"
_SAVE_NUMBERS = itertools.count()  # of this process; the same on all, which save together


class SaveFailure(OSError):
    """A checkpoint could not be saved."""


class MissingCheckpoint(OSError):
    """A checkpoint was deleted by the run that writes it, while it was read."""


class StepFolders:
    """The saved steps of one directory.

    writable: whether to save here; otherwise another process may be writing meanwhile.
    keep: how many of the newest stay; None keeps all.   keep_every: steps divisible by it stay, too, 0 for none.
    """

    def __init__(
        self,
        directory: epath.PathLike,
        items: Sequence[str],
        *,
        writable: bool = False,
        keep: int | None = None,
        keep_every: int = 0,
    ):
        if writable and storage.on_disk(directory):
            epath.Path(directory).mkdir(parents=True, exist_ok=True)
        self.directory = storage.without_glob_characters(directory)  # Orbax globs below it
        self._items, self._writable, self._keep, self._keep_every = tuple(items), writable, keep, keep_every
        self._save: _Save | None = None
        self._num_failures, self._retry_time = 0, 0.0
        if writable:
            multihost_utils.sync_global_devices("leftovers are listed")
            if distributed.is_primary_process():
                self._remove_leftovers()
            multihost_utils.sync_global_devices("leftovers are removed")

    def __enter__(self) -> StepFolders:
        return self

    def __exit__(self, *_: object) -> None:
        if self._save is not None:
            self._save.join()

    @property
    def steps(self) -> list[int]:
        """The saved steps, in order."""
        names = [path.name for path in self.directory.iterdir()] if self.directory.exists() else []
        steps = sorted(int(name) for name in names if name.isdecimal())
        return [step for step in steps if (self.folder(step) / manifest.MANIFEST).exists()]

    @property
    def step_in_progress(self) -> int | None:
        """The step that is being saved, None for none."""
        return None if self._save is None else self._save.step

    def folder(self, step: int) -> epath.Path:
        return self.directory / str(step)

    def save(self, step: int, items: dict[str, Any], origin: dict[str, Any]) -> bool:
        """Start saving trees by item; training may continue meanwhile. All processes call it together.

        Waits for the save before. A failure, of that one or of this, is printed and counted; nothing is raised.
        origin: goes into the manifest.   Returns whether the save has started.
        """
        self.wait()
        trees = {item: tree for item, tree in items.items() if jax.tree.leaves(tree)}  # empty ones are not saved
        problem = self._no_room(trees)
        problem = distributed.first_problem(problem)
        if problem is None:
            # Each tree in a dict, because Orbax saves no bare array.
            args = {item: ocp.args.PyTreeSave({"tree": tree}) for item, tree in trees.items()}
            self._save = _Save(self, step, args, origin, _num_bytes(trees))
            problem = self._save.start_saving()
        if problem is not None:
            self._fail(step, problem)
        return problem is None

    def wait(self) -> bool:
        """Wait until the save in progress is on disk. Returns whether it is; all processes return the same.

        Raises ``SaveFailure`` where a save with other processes stays unfinished, which cannot be abandoned.
        """
        save, self._save = self._save, None
        if save is None:
            return True
        problem = distributed.first_problem(save.join())
        if problem is None:
            self._num_failures = 0
        else:
            self._fail(save.step, problem)
            if TIMEOUT_MESSAGE in problem and jax.process_count() > 1:
                raise SaveFailure(f"saving step {save.step} failed: {problem}")
        return problem is None

    def poll(self) -> bool:
        """Whether a save has failed and is to be tried again now. Call between steps; of several processes, no."""
        if jax.process_count() > 1:
            return False
        if self._save is not None and self._save.has_ended:
            self.wait()
        return self._save is None and self._num_failures > 0 and time.monotonic() >= self._retry_time

    def verify(self, step: int, items: Sequence[str] | None = None) -> None:
        """Compare a step's files, or those of some items, with its manifest; processes divide them.

        Raises ``MissingCheckpoint``, and ``DamagedCheckpoint``; on all processes the same.
        """
        problem = None
        try:
            part, num_parts = jax.process_index(), jax.process_count()
            manifest.verify(self.folder(step), items, part=part, num_parts=num_parts)
        except (DamagedCheckpoint, OSError) as error:
            problem = str(error)
        problem = distributed.first_problem(problem)
        if problem is not None:
            raise MissingCheckpoint(problem) if not self.folder(step).exists() else DamagedCheckpoint(problem)

    def origin(self, step: int) -> dict[str, Any]:
        """What the manifest of a step says besides its files. Raises ``DamagedCheckpoint``, ``MissingCheckpoint``."""
        with self._reading(step):
            return manifest.read_manifest(self.folder(step))["origin"]

    def shapes(self, step: int) -> dict[str, Any]:
        """The trees of a step's items, of shapes and dtypes, without items that were not saved."""
        with self._reading(step), self._checkpointer() as checkpointer:
            metadata = checkpointer.metadata(self.folder(step)).item_metadata
            return {item: metadata[item].tree["tree"] for item in self._items if metadata.get(item) is not None}

    def restore(self, step: int, templates: dict[str, Any]) -> dict[str, Any]:
        """Trees by item, with the shapes and shardings of ``templates``, whose leaves may be ShapeDtypeStructs."""
        args = {item: _restore_args({"tree": tree}) for item, tree in templates.items() if jax.tree.leaves(tree)}
        if not args:  # without items Orbax would restore every one
            return {}
        with self._reading(step), self._checkpointer() as checkpointer:
            restored_items = checkpointer.restore(self.folder(step), args=ocp.args.Composite(**args))
            return {item: restored_items[item]["tree"] for item in args}

    @contextlib.contextmanager
    def _reading(self, step: int) -> Iterator[None]:
        """Raise ``MissingCheckpoint`` where a step is gone after it was read, which need not have been an error."""
        try:
            yield
        finally:
            if not (self.folder(step) / manifest.MANIFEST).exists():
                raise MissingCheckpoint(f"{self.folder(step)} was deleted while it was read")

    def set_aside(self, step: int) -> None:
        """Rename a step's folder, so that it stays, but is a saved step no more. The primary calls it."""
        if not storage.on_disk(self.directory):  # where folders cannot be renamed
            (self.folder(step) / manifest.MANIFEST).unlink()
            return
        numbers = [path.name for path in self.directory.glob(f"{step}.damaged*")]
        self.folder(step).rename(self.directory / f"{step}.damaged{f'-{len(numbers) + 1}' * bool(numbers)}")

    def delete(self, step: int) -> None:
        """Delete a step: at once for readers, by a rename, and then its files. The primary calls it."""
        target = self.directory / f"{step}.deleted"
        if storage.on_disk(self.directory):
            self.folder(step).rename(target)
        else:
            target = self.folder(step)
            (target / manifest.MANIFEST).unlink(missing_ok=True)
        target.rmtree()

    def delete_after(self, last_step: int) -> None:
        """Delete the steps after one. All processes call it together."""
        steps = [step for step in self.steps if step > last_step]
        multihost_utils.sync_global_devices("steps are listed")  # every process lists before one deletes
        for step in steps if distributed.is_primary_process() else ():
            self.delete(step)
        multihost_utils.sync_global_devices("steps are deleted")

    def delete_old(self) -> None:
        """Delete the steps that are not kept."""
        if self._keep is not None:
            for step in self.steps[: -self._keep]:
                if not (self._keep_every and step % self._keep_every == 0):
                    self.delete(step)

    def remove_temporary(self, step: int) -> None:
        """Remove what a failed save of a step has written."""
        for path in self.directory.glob(f"{step}.orbax-checkpoint-tmp*"):
            shutil.rmtree(path, ignore_errors=True)

    def _remove_leftovers(self) -> None:
        """Remove what killed processes left: temporary folders, and folders without a manifest."""
        steps = {str(step) for step in self.steps}
        for path in list(self.directory.iterdir()) if self.directory.exists() else ():
            is_incomplete = path.name.isdecimal() and path.name not in steps
            if is_incomplete:
                print(f"jdiff: {path} was not written to its end (it has no manifest) and is removed", file=sys.stderr)
            if is_incomplete or TEMPORARY.fullmatch(path.name):
                path.rmtree()

    def _checkpointer(self) -> ocp.Checkpointer:
        return ocp.Checkpointer(_handler(self._items))

    def _no_room(self, trees: dict[str, Any]) -> str | None:
        """Why a save cannot succeed: the disk of this process has too little room. None where it can."""
        if not storage.on_disk(self.directory):
            return None
        num_bytes, free = _num_bytes(trees) * FREE_SPACE_MARGIN, shutil.disk_usage(self.directory).free
        if num_bytes <= free:
            return None
        return (
            f"{self.directory} has {free / 1e6:.1f} MB of free space, and the checkpoint needs {num_bytes / 1e6:.1f} MB"
        )

    def _fail(self, step: int, problem: str) -> None:
        """Count and print a failed save."""
        seconds = RETRY_SECONDS[min(self._num_failures, len(RETRY_SECONDS) - 1)]
        self._num_failures, self._retry_time = self._num_failures + 1, time.monotonic() + seconds
        if distributed.is_primary_process():
            print(f"jdiff: saving step {step} failed, retrying: {problem}", file=sys.stderr, flush=True)


class _Save:
    """One save in progress. Only a single process can abandon one that hangs; several end together."""

    def __init__(self, folders: StepFolders, step: int, args: dict[str, Any], origin: dict[str, Any], num_bytes: int):
        self.step, self._folders, self._args, self._origin = step, folders, args, origin
        self._problem: str | None = None
        self._key = f"save/{next(_SAVE_NUMBERS)}"
        self._seconds = MIN_SAVE_SECONDS + int(num_bytes / BYTES_PER_SECOND)
        self._deadline = time.monotonic() + self._seconds + 5
        self._checkpointer = ocp.AsyncCheckpointer(
            _handler(folders._items),
            async_options=ocp.options.AsyncOptions(
                timeout_secs=self._seconds,
                barrier_sync_fn=self._synchronize,
            ),
        )
        self._thread = threading.Thread(target=self._finish, daemon=True, name=f"save of step {step}")

    def start_saving(self) -> str | None:
        """Copy the arrays and start to write them. Returns the problem, None for none."""
        try:
            path = self._folders.folder(self.step)
            self._checkpointer.save(path, args=ocp.args.Composite(**self._args), force=True)
        except Exception as error:  # of Orbax, TensorStore and the file system, each of its own type
            self._problem = _describe(error)
        self._thread.start()
        return self._problem

    @property
    def has_ended(self) -> bool:
        return not self._thread.is_alive()

    def join(self) -> str | None:
        """Wait for the end, but not longer than the save may take. Returns the problem, None for none."""
        self._thread.join(max(0.0, self._deadline - time.monotonic()))
        if self._thread.is_alive():
            return f"{TIMEOUT_MESSAGE} after {self._seconds} s"
        return self._problem

    def _finish(self) -> None:
        try:
            if self._problem is None:
                self._checkpointer.wait_until_finished()
                if distributed.is_primary_process():
                    manifest.write_manifest(self._folders.folder(self.step), self._origin)
        except Exception as error:  # as above
            self._problem = _describe(error)
        finally:
            self._checkpointer.close()
        if self._problem is not None:
            distributed.publish(f"{self._key}/{FAILURE_KEY}", self._problem)
        if not distributed.is_primary_process():
            return
        try:
            if self._problem is None:
                self._folders.delete_old()
            else:
                self._folders.remove_temporary(self.step)
        except OSError as error:
            print(f"jdiff: {self._folders.directory}: {_describe(error)}", file=sys.stderr, flush=True)

    def _synchronize(self, *, key: str, timeout_ms: int) -> None:
        """Wait at a barrier of Orbax's until all processes have come, or one has failed, which ends the save on all.

        Orbax's own barrier would wait for the failed one until its timeout.
        """
        key, deadline = f"{self._key}/{key}", time.monotonic() + timeout_ms / 1000
        distributed.publish(key, "")
        while len(distributed.published_values(key)) < jax.process_count():
            if failures := distributed.published_values(f"{self._key}/{FAILURE_KEY}"):
                process, problem = next(iter(sorted(failures.items())))
                raise SaveFailure(f"process {process}: {problem}")
            if time.monotonic() > deadline:
                raise SaveFailure(f"{TIMEOUT_MESSAGE} by every process")
            time.sleep(0.05)


def with_sharding(shapes: Any, sharding: Sharding) -> Any:
    """A template for restoring arrays of these shapes and dtypes, each with ``sharding``."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes)


def _handler(items: Sequence[str]) -> ocp.CompositeCheckpointHandler:
    handlers: Any = {item: ocp.PyTreeCheckpointHandler() for item in items}
    return ocp.CompositeCheckpointHandler(**handlers)


def _restore_args(template: Any) -> ocp.args.PyTreeRestore:
    """Orbax's arguments to restore the leaves of a template, and no others that the item has."""
    return ocp.args.PyTreeRestore(
        template, restore_args=ocp.checkpoint_utils.construct_restore_args(template), partial_restore=True
    )


def _num_bytes(trees: Any) -> int:
    """Bytes of a tree's arrays that this process writes: of every shard the first copy."""
    shards = [
        shard
        for leaf in jax.tree.leaves(trees)
        if isinstance(leaf, jax.Array)
        for shard in leaf.addressable_shards
        if shard.replica_id == 0
    ]
    return sum(shard.data.nbytes for shard in shards)


def _describe(error: Exception) -> str:
    """The first line of an error's message, with its type where that says more."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    text = text if len(text) < 200 else text[:200] + "..."
    return text if isinstance(error, OSError) and text else f"{type(error).__name__}: {text}"
