"""Checkpoints of the train state through Orbax: one item per field, so that sampling restores only what it needs.

A checkpoint has what is trained. Frozen parameters do not change, so they are saved once for all checkpoints of a run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Sharding

from jdiff import storage
from jdiff.training.ema import WIDTH_PREFIX
from jdiff.training.state import TrainState

STATE_ITEMS = ("step", "params", "opt_state", "ema")
ITEMS = (*STATE_ITEMS, "train_metrics")  # "metrics" is an item of Orbax's own


class Snapshots:
    """Snapshots of EMAs along a run, never deleted, in ``directory``: what post-hoc EMAs are made of.

    resume_step: the step that a run resumes from; later snapshots are deleted, as it will write them again. None opens
        the directory read-only.
    """

    def __init__(self, directory: epath.PathLike, *, resume_step: int | None = None):
        read_only = resume_step is None
        self._manager = ocp.CheckpointManager(
            _orbax_path(directory, read_only=read_only),
            options=ocp.CheckpointManagerOptions(
                read_only=read_only, create=not read_only, cleanup_tmp_directories=not read_only
            ),
            item_names=("ema",),
            item_handlers={"ema": ocp.PyTreeCheckpointHandler()},
        )
        stale_steps = [] if resume_step is None else [step for step in self.steps if step > resume_step]
        multihost_utils.sync_global_devices("snapshots are listed")  # every process lists before one deletes
        for step in stale_steps:
            self._manager.delete(step)

    def __enter__(self) -> Snapshots:
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()

    @property
    def steps(self) -> list[int]:
        return sorted(self._manager.all_steps())

    def save(self, state: TrainState) -> None:
        """Start saving the EMAs with a width, if this step has no snapshot yet; asynchronous."""
        if int(state.step) in self.steps:
            return
        widths = {name: tree for name, tree in state.ema.items() if name.startswith(WIDTH_PREFIX)}
        self._manager.save(int(state.step), args=ocp.args.Composite(ema=ocp.args.PyTreeSave({"tree": widths})))

    def restore(self, step: int, sharding: Sharding) -> dict[str, Any]:
        """The EMAs of one step, by name."""
        template = _with_sharding(self._manager.item_metadata(step)["ema"].tree, sharding)
        return self._manager.restore(step, args=ocp.args.Composite(ema=_restore_args(template)))["ema"]["tree"]

    def wait(self) -> None:
        """Wait until asynchronous saves are on disk."""
        self._manager.wait_until_finished()


def _with_sharding(shapes: Any, sharding: Sharding) -> Any:
    """A template for restoring arrays of these shapes and dtypes, each with ``sharding``."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes)


def _restore_args(template: Any) -> ocp.args.PyTreeRestore:
    """Orbax's arguments to restore the leaves of a template, and no others that the item has."""
    return ocp.args.PyTreeRestore(
        template, restore_args=ocp.checkpoint_utils.construct_restore_args(template), partial_restore=True
    )


def _orbax_path(directory: epath.PathLike, *, read_only: bool) -> epath.Path:
    """The path of a directory for Orbax, which globs below it and so cannot read every path that it can write."""
    if not read_only and storage.on_disk(directory):
        epath.Path(directory).mkdir(parents=True, exist_ok=True)
    return storage.without_glob_characters(directory)


class NoCheckpoint(FileNotFoundError):
    """A run has no checkpoint to resume from or to sample with."""


class Checkpoints:
    """The checkpoints of one run, in ``directory``, and beside it their ``base``: the frozen parameters, saved once.

    keep: how many of the newest stay. None opens the directory read-only, while another process may be writing to it.
    """

    def __init__(self, directory: epath.PathLike, *, keep: int | None = None):
        if keep is None:
            options = ocp.CheckpointManagerOptions(read_only=True, create=False)
        else:
            options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
        path = _orbax_path(directory, read_only=keep is None)
        self._base_directory = path.parent / "base"
        handlers = {item: ocp.PyTreeCheckpointHandler() for item in ITEMS}
        self._manager = ocp.CheckpointManager(path, options=options, item_names=ITEMS, item_handlers=handlers)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()

    @property
    def latest(self) -> int | None:
        """The step of the newest checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, state: TrainState, metrics: Any = None) -> None:
        """Start saving; training may continue meanwhile.

        metrics: means since the last log step, so that a resumed run logs what an uninterrupted one does.
        """
        step = int(state.step)
        if step == self.latest:
            return
        if self.latest is None and jax.tree.leaves(state.frozen):
            self._save_base(state.frozen)
        trees = {item: getattr(state, item) for item in STATE_ITEMS} | {"train_metrics": metrics}
        # Each tree in a dict, because Orbax saves no bare array; empty trees are not saved.
        items = {item: ocp.args.PyTreeSave({"tree": tree}) for item, tree in trees.items() if jax.tree.leaves(tree)}
        self._manager.save(step, args=ocp.args.Composite(**items))

    def _save_base(self, frozen: Any) -> None:
        """Save the frozen parameters, once for all checkpoints, before the first; a base without any is replaced."""
        with self._open_base(read_only=False) as base:
            stale = base.latest_step() is not None
            multihost_utils.sync_global_devices("base is listed")  # by every process, before it is deleted
            if stale:
                base.delete(0)
            base.save(0, args=ocp.args.Composite(frozen=ocp.args.PyTreeSave({"tree": frozen})))

    def _open_base(self, *, read_only: bool) -> ocp.CheckpointManager:
        return ocp.CheckpointManager(
            self._base_directory,
            options=ocp.CheckpointManagerOptions(read_only=read_only, create=not read_only),
            item_names=("frozen",),
            item_handlers={"frozen": ocp.PyTreeCheckpointHandler()},
        )

    def restore(self, template: TrainState) -> TrainState:
        """The newest checkpoint, with the shardings of ``template``, whose leaves may be ShapeDtypeStructs."""
        trees = {item: getattr(template, item) for item in STATE_ITEMS}
        restored_items = self._restore({item: {"tree": tree} for item, tree in trees.items() if jax.tree.leaves(tree)})
        state = dataclasses.replace(template, **{item: tree["tree"] for item, tree in restored_items.items()})
        if not jax.tree.leaves(template.frozen):
            return state
        with self._open_base(read_only=True) as base:
            frozen = _restore_from(base, 0, {"frozen": {"tree": template.frozen}})["frozen"]["tree"]
            return dataclasses.replace(state, frozen=frozen)

    def restore_items(self, sharding: Sharding, *items: str, ema_names: Sequence[str] | None = None) -> dict[str, Any]:
        """Some items of the newest checkpoint, each array with ``sharding``; an item that was not saved is None.

        items: fields of ``TrainState``, and "train_metrics".   ema_names: which EMAs to read, by name; default all.
        """
        metadata = self._manager.item_metadata(self._newest())
        trees = {item: metadata[item].tree for item in items if item in metadata and metadata[item] is not None}
        if "ema" in trees and ema_names is not None:
            tree = trees.pop("ema")["tree"]
            if ema_names:
                trees["ema"] = {"tree": {name: tree[name] for name in ema_names}}
        restored_items = self._restore(_with_sharding(trees, sharding))
        if "frozen" in items and self._base_directory.exists():
            with self._open_base(read_only=True) as base:
                tree = {"frozen": base.item_metadata(0)["frozen"].tree}
                restored_items |= _restore_from(base, 0, _with_sharding(tree, sharding))
        return {item: restored_items[item]["tree"] if item in restored_items else None for item in items}

    def _newest(self) -> int:
        if self.latest is None:
            raise NoCheckpoint(f"there is no checkpoint in {self._manager.directory}; train the run first")
        return self.latest

    def _restore(self, trees: dict[str, Any]) -> dict[str, Any]:
        return _restore_from(self._manager, self._newest(), trees)

    def wait(self) -> None:
        """Wait until asynchronous saves are on disk."""
        self._manager.wait_until_finished()


def _restore_from(manager: ocp.CheckpointManager, step: int, trees: dict[str, Any]) -> dict[str, Any]:
    """Items of a checkpoint, by name, as arrays like those of ``trees``."""
    if not trees:  # without items Orbax would restore every one
        return {}
    args = {item: _restore_args(tree) for item, tree in trees.items()}
    return dict(manager.restore(step, args=ocp.args.Composite(**args)))
