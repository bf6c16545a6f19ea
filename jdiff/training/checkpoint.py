"""Training state on disk, through Orbax: each part an item of its own, so sampling reads only what it needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Sharding

from jdiff import storage
from jdiff.training.ema import WIDTH
from jdiff.training.state import TrainState

STATE = ("step", "params", "opt_state", "ema", "frozen")
PARTS = (*STATE, "metrics")


class Snapshots:
    """Averages along a run, each kept for good, in ``directory``.

    begun_at: the step that a run writes on from, which makes anew what was kept after it; None only reads.
    """

    def __init__(self, directory: epath.PathLike, *, resume_step: int | None = None):
        reads = resume_step is None
        self._manager = ocp.CheckpointManager(
            storage.absolute(directory),
            options=ocp.CheckpointManagerOptions(read_only=reads, create=not reads, cleanup_tmp_directories=not reads),
            item_names=("ema",),
            item_handlers={"ema": ocp.PyTreeCheckpointHandler()},
        )
        later = [] if reads else [step for step in self.steps if step > resume_step]
        multihost_utils.sync_global_devices("snapshots are listed")  # by every process, before one is deleted
        for step in later:
            self._manager.delete(step)

    def __enter__(self) -> Snapshots:
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()

    @property
    def steps(self) -> list[int]:
        return sorted(self._manager.all_steps())

    def save(self, state: TrainState) -> None:
        """Begin to write the averages whose profile is a power function, if they are not there."""
        if int(state.step) in self.steps:
            return
        widths = {name: tree for name, tree in state.ema.items() if name.startswith(WIDTH)}
        self._manager.save(int(state.step), args=ocp.args.Composite(ema=ocp.args.PyTreeSave({"tree": widths})))

    def restore(self, step: int, sharding: Sharding) -> dict[str, Any]:
        """The averages of one step, by name."""
        like = _placed(self._manager.item_metadata(step)["ema"].tree, sharding)
        return self._manager.restore(step, args=ocp.args.Composite(ema=_reading(like)))["ema"]["tree"]

    def wait(self) -> None:
        """Until what was begun is on disk."""
        self._manager.wait_until_finished()


def _placed(shapes: Any, sharding: Sharding) -> Any:
    """What is on disk as something to read it into, each array placed by ``sharding``."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes)


def _reading(like: Any) -> ocp.args.PyTreeRestore:
    """Orbax's arguments to read what is on disk into arrays like these, and to leave alone what is there besides."""
    return ocp.args.PyTreeRestore(
        like, restore_args=ocp.checkpoint_utils.construct_restore_args(like), partial_restore=True
    )


class NoCheckpoint(FileNotFoundError):
    """A run has no checkpoint to go on from or to sample with."""


class Checkpoints:
    """The checkpoints of one run, in ``directory``.

    keep: how many of the newest stay; None only reads, and leaves alone what another process is writing.
    """

    def __init__(self, directory: epath.PathLike, *, keep: int | None = None):
        if keep is None:
            options = ocp.CheckpointManagerOptions(read_only=True, create=False)
        else:
            options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
        handlers = {part: ocp.PyTreeCheckpointHandler() for part in PARTS}
        self._manager = ocp.CheckpointManager(
            storage.absolute(directory), options=options, item_names=PARTS, item_handlers=handlers
        )

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()

    @property
    def latest(self) -> int | None:
        """The step of the newest checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, state: TrainState, metrics: Any = None) -> None:
        """Begin to write; training may go on meanwhile.

        metrics: means since the last log step, so that a resumed run logs what an uninterrupted one does.
        """
        step = int(state.step)
        if step == self.latest:
            return
        trees = {part: getattr(state, part) for part in STATE} | {"metrics": metrics}
        # Each in a dict, so that a lone array is a tree too; what is empty is not written.
        parts = {part: ocp.args.PyTreeSave({"tree": tree}) for part, tree in trees.items() if jax.tree.leaves(tree)}
        self._manager.save(step, args=ocp.args.Composite(**parts))

    def restore(self, like: TrainState) -> TrainState:
        """The newest checkpoint, as arrays placed like ``like``'s (which may be shapes with shardings)."""
        trees = {part: getattr(like, part) for part in STATE}
        found = self._restore({part: {"tree": tree} for part, tree in trees.items() if jax.tree.leaves(tree)})
        return like.replace(**{part: tree["tree"] for part, tree in found.items()})

    def restore_parts(self, sharding: Sharding, *parts: str, ema_names: Sequence[str] | None = None) -> dict[str, Any]:
        """Some parts of the newest checkpoint, each array placed by ``sharding``; a part not saved is None.

        ema_names: which EMAs to read, by name; default all.
        """
        shapes = self._manager.item_metadata(self._newest())
        trees = {part: shapes[part].tree for part in parts if part in shapes and shapes[part] is not None}
        if "ema" in trees and ema_names is not None:
            trees["ema"] = {"tree": {name: trees["ema"]["tree"][name] for name in ema_names}}
        found = self._restore(_placed(trees, sharding))
        return {part: found[part]["tree"] if part in found else None for part in parts}

    def _newest(self) -> int:
        if self.latest is None:
            raise NoCheckpoint(f"there is no checkpoint in {self._manager.directory}; train the run first")
        return self.latest

    def _restore(self, trees: dict[str, Any]) -> dict[str, Any]:
        if not trees:  # of which Orbax would make all there are
            return {}
        args = {part: _reading(tree) for part, tree in trees.items()}
        return dict(self._manager.restore(self._newest(), args=ocp.args.Composite(**args)))

    def wait(self) -> None:
        """Until what was begun is on disk."""
        self._manager.wait_until_finished()
