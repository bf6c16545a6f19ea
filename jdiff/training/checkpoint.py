"""Checkpoints of the train state: an item for each large field, so that sampling restores only what it needs.

A checkpoint has what is trained. Frozen parameters do not change, so they are saved once for all checkpoints of a run.
Files are compared with the manifest before they are read; a damaged checkpoint gives way to the one before it.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Sharding

from jdiff.runtime import distributed
from jdiff.training.ema import WIDTH_PREFIX
from jdiff.training.manifest import DamagedCheckpoint
from jdiff.training.state import TrainState
from jdiff.training.step_folders import MissingCheckpoint, SaveFailure, StepFolders, with_sharding

STATE_ITEMS = {  # item -> fields of the state; every item costs Orbax some time
    "params": ("params",),
    "opt_state": ("opt_state",),
    "ema": ("ema",),
    "progress": ("step", "health"),
}
ITEMS = (*STATE_ITEMS, "train_metrics")


class NoCheckpoint(FileNotFoundError):
    """A run has no checkpoint to resume from or to sample with."""


class Snapshots:
    """Snapshots of EMAs along a run, never deleted, in ``directory``: what post-hoc EMAs are made of.

    resume_step: the step that a run resumes from; later snapshots are deleted, as it will write them again. None opens
        the directory read-only.
    """

    def __init__(self, directory: epath.PathLike, *, resume_step: int | None = None):
        self._folders = StepFolders(directory, ("ema",), writable=resume_step is not None)
        if resume_step is not None:
            self._folders.delete_after(resume_step)

    def __enter__(self) -> Snapshots:
        return self

    def __exit__(self, *exception: object) -> None:
        self._folders.__exit__(*exception)

    @property
    def steps(self) -> list[int]:
        return self._folders.steps

    def save(self, state: TrainState) -> None:
        """Start saving the EMAs with a width, if this step has no snapshot yet; asynchronous."""
        if int(state.step) not in self.steps:
            widths = {name: tree for name, tree in state.ema.items() if name.startswith(WIDTH_PREFIX)}
            self._folders.save(int(state.step), {"ema": widths}, {})

    def restore(self, step: int, sharding: Sharding) -> dict[str, Any]:
        """The EMAs of one step, by name. Raises ``DamagedCheckpoint``."""
        self._folders.verify(step)
        return self._folders.restore(step, with_sharding(self._folders.shapes(step), sharding))["ema"]

    def wait(self) -> None:
        """Wait until asynchronous saves are on disk."""
        self._folders.wait()


class Checkpoints:
    """The checkpoints of one run, in ``directory``, and beside it their ``base``: the frozen parameters, saved once.

    keep: how many of the newest stay. None opens the directory read-only, while another process may be writing to it.
    keep_every: checkpoints of steps divisible by it stay, too; 0 for none.
    origin: gives what a manifest says of the run, such as its config, JSON; all processes call it together.
    """

    def __init__(
        self,
        directory: epath.PathLike,
        *,
        keep: int | None = None,
        keep_every: int = 0,
        origin: Callable[[], dict[str, Any]] = dict,
    ):
        self._is_writable, self._origin = keep is not None, origin
        self._folders = StepFolders(directory, ITEMS, writable=self._is_writable, keep=keep, keep_every=keep_every)
        self._base_directory, self._base_is_saved = self._folders.directory.parent / "base", False

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *exception: object) -> None:
        self._folders.__exit__(*exception)

    @property
    def steps(self) -> list[int]:
        """The steps of the checkpoints, in order."""
        return self._folders.steps

    @property
    def latest(self) -> int | None:
        """The step of the newest checkpoint, or None."""
        return max(self.steps, default=None)

    def newest_intact(self, *items: str) -> int:
        """The newest step whose files are those that were written; damaged newer ones are printed and, where
        checkpoints are written, set aside as N.damaged.

        items: which to read, all by default.
        Raises ``NoCheckpoint``, and ``DamagedCheckpoint`` where every checkpoint is damaged.
        """
        problems: dict[int, str] = {}
        while True:
            step = distributed.from_primary(max((step for step in self.steps if step not in problems), default=-1))
            if step < 0 and problems:
                raise DamagedCheckpoint(f"every checkpoint is damaged: {'; '.join(problems.values())}")
            if step < 0:
                raise NoCheckpoint(f"there is no checkpoint in {self._folders.directory}; train the run first")
            try:
                self._folders.verify(step, items or None)
                break
            except DamagedCheckpoint as error:
                problems[step] = str(error)
            except MissingCheckpoint:
                continue
        for damaged_step, problem in problems.items() if distributed.is_primary_process() else ():
            fate = "it is set aside" if self._is_writable else "it is not used"
            message = f"checkpoint {damaged_step} is damaged and {fate}; the one of step {step} is used: {problem}"
            print(f"jdiff: {message}", file=sys.stderr, flush=True)
            if self._is_writable:
                self._folders.set_aside(damaged_step)
        multihost_utils.sync_global_devices("damaged checkpoints are set aside")
        return step

    def origin(self, step: int) -> dict[str, Any]:
        """What the manifest of a checkpoint says of its run."""
        return self._folders.origin(step)

    def save(self, state: TrainState, metrics: Any = None) -> None:
        """Start saving; training may continue meanwhile. A failure is printed.

        metrics: means since the last log step, so that a resumed run logs what an uninterrupted one does.
        """
        step = int(state.step)
        if step in (self.latest, self._folders.step_in_progress):
            return
        if jax.tree.leaves(state.frozen) and not self._base_is_saved:
            self._base_is_saved = self._save_base(state.frozen)
            if not self._base_is_saved:
                return
        self._folders.save(step, _items_of(state) | {"train_metrics": metrics}, self._origin())

    def delete_after(self, step: int) -> None:
        """Delete the checkpoints after a step. All processes call it together."""
        self._folders.delete_after(step)

    def poll(self) -> bool:
        """Whether a save has failed, and is to be tried again now with the current state."""
        return self._folders.poll()

    def finish(self, state: TrainState, metrics: Any = None, *, seconds: float = 10.0) -> None:
        """Save and wait until it is on disk. seconds: how long failures are tried again. Raises ``SaveFailure``."""
        deadline, pause = time.monotonic() + seconds, 0.5
        while True:
            self.save(state, metrics)
            self.wait()
            if self.latest == int(state.step):
                return
            if time.monotonic() + pause > deadline:
                raise SaveFailure(
                    f"step {int(state.step)} could not be saved; run the same command again to resume from step "
                    f"{self.latest or 0}"
                )
            time.sleep(pause)
            pause *= 2

    def _save_base(self, frozen: Any) -> bool:
        """Save the frozen parameters, once for all checkpoints. Returns whether they are on disk.

        What another start of the run has left, before its first checkpoint, is replaced.
        """
        with StepFolders(self._base_directory, ("frozen",), writable=True) as base:
            if base.steps and self.latest is not None:
                return True
            base.save(0, {"frozen": frozen}, {})
            return base.wait()

    def restore(self, step: int, template: TrainState) -> TrainState:
        """A checkpoint, with the shardings of ``template``, whose leaves may be ShapeDtypeStructs."""
        fields: dict[str, Any] = {}
        for item, tree in self._folders.restore(step, _items_of(template)).items():
            fields |= {STATE_ITEMS[item][0]: tree} if len(STATE_ITEMS[item]) == 1 else tree
        state = dataclasses.replace(template, **fields)
        if jax.tree.leaves(template.frozen):
            base = self._open_base()
            state = dataclasses.replace(state, **base.restore(0, {"frozen": template.frozen}))
        return state

    def restore_items(
        self, step: int, sharding: Sharding, *items: str, ema_names: Sequence[str] | None = None
    ) -> dict[str, Any]:
        """Some items of a checkpoint, each array with ``sharding``; an item that was not saved is None.

        items: of ``ITEMS``, and "frozen".   ema_names: which EMAs to read, by name; default all.
        """
        shapes = self._folders.shapes(step)
        trees = {item: shapes[item] for item in items if item in shapes}
        if "ema" in trees and ema_names is not None:
            trees["ema"] = {name: trees["ema"][name] for name in ema_names}
        restored_items = self._folders.restore(step, with_sharding(trees, sharding))
        if "frozen" in items and self._base_directory.exists():
            base = self._open_base()
            restored_items |= base.restore(0, with_sharding(base.shapes(0), sharding))
        return {item: restored_items.get(item) for item in items}

    def _open_base(self) -> StepFolders:
        """The frozen parameters, verified. Raises ``DamagedCheckpoint``."""
        base = StepFolders(self._base_directory, ("frozen",))
        try:
            base.verify(0)
        except (DamagedCheckpoint, MissingCheckpoint) as error:
            raise DamagedCheckpoint(
                f"the frozen parameters of the run are damaged ({error}); copy {self._base_directory} from a backup, "
                "or start the run again in another --workdir"
            ) from error
        return base

    def wait(self) -> None:
        """Wait until an asynchronous save is on disk, or has failed, which is printed."""
        self._folders.wait()


def _items_of(state: TrainState) -> dict[str, Any]:
    """A state's trees, by item."""
    return {
        item: getattr(state, fields[0]) if len(fields) == 1 else {field: getattr(state, field) for field in fields}
        for item, fields in STATE_ITEMS.items()
    }
