"""A damaged checkpoint is found, named and set aside, and the one before it is used."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff.runs import directory
from jdiff.training.checkpoint import Checkpoints, NoCheckpoint
from jdiff.training.manifest import DamagedCheckpoint
from jdiff.training.state import TrainState
from tests.faults import damage


def state(step):
    keys = iter(jax.random.split(jax.random.key(step), 4))
    arrays = [{"network": {"kernel": jax.random.normal(next(keys), (40, 30))}} for _ in range(4)]
    return TrainState(jnp.int32(step), arrays[0], arrays[1], {"0.9": arrays[2]}, arrays[3])


@pytest.fixture(scope="module")
def saved_run(tmp_path_factory):
    """A run's directory with the checkpoints 4 and 8."""
    path = tmp_path_factory.mktemp("saved")
    with Checkpoints(path / "checkpoints", keep=2, origin=lambda: {"config": {}}) as store:
        for step in (4, 8):
            store.save(state(step))
            store.wait()
    return path


def restore(path, step):
    with Checkpoints(path / "checkpoints") as store:
        return store.restore(step, state(0))


def equal(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@pytest.mark.parametrize("kind", damage.DAMAGES)
@pytest.mark.parametrize("seed", range(6))
def test_damage_is_found_and_the_checkpoint_before_it_is_used(kind, seed, saved_run, tmp_path, capsys):
    path = damage.copy(saved_run, tmp_path / "run")
    is_changed = damage.damage(path / "checkpoints" / "8", kind, seed)
    step = 4 if is_changed else 8
    with Checkpoints(path / "checkpoints") as store:
        assert store.newest_intact() == step
        assert store.steps in ([4, 8], [4])  # readers leave it; without its manifest it is none
    with Checkpoints(path / "checkpoints", keep=2) as store:
        assert store.newest_intact() == step and store.latest == step
        store.save(state(9))
        store.wait()
        assert store.steps == [step, 9]
    assert equal(restore(path, step), state(step).replace(frozen=state(4).frozen))
    if is_changed and (path / "checkpoints" / "8.damaged").exists():
        assert "checkpoint 8 is damaged" in capsys.readouterr().err


def test_a_readers_damage_is_that_of_the_items_it_reads(saved_run, tmp_path):
    path = damage.copy(saved_run, tmp_path / "run")
    damage.damage(path / "checkpoints" / "8" / "opt_state", "flip", 0)
    with Checkpoints(path / "checkpoints") as store:
        assert store.newest_intact("ema") == 8 and store.newest_intact() == 4


def test_a_checkpoint_under_another_name_is_damaged(saved_run, tmp_path):
    path = damage.copy(saved_run, tmp_path / "run")
    (path / "checkpoints" / "8").rename(path / "checkpoints" / "12")
    with Checkpoints(path / "checkpoints") as store:
        assert store.newest_intact() == 4


def test_where_every_checkpoint_is_damaged_none_is_used_and_all_stay(saved_run, tmp_path):
    path = damage.copy(saved_run, tmp_path / "run")
    for step in ("4", "8"):
        damage.damage(path / "checkpoints" / step / "params", "flip", 0)
    with Checkpoints(path / "checkpoints", keep=2) as store:
        with pytest.raises(DamagedCheckpoint, match="every checkpoint is damaged"):
            store.newest_intact()
        assert store.steps == [4, 8]


@pytest.mark.parametrize("kind", ["flip", "delete", "truncate"])
def test_damaged_frozen_parameters_are_named(kind, saved_run, tmp_path):
    path = damage.copy(saved_run, tmp_path / "run")
    damage.damage(path / "base" / "0", kind, 1)
    with pytest.raises(DamagedCheckpoint, match=r"frozen parameters.*base"):
        restore(path, 8)


def test_leftovers_are_removed_by_a_writer_alone(saved_run, tmp_path):
    path = damage.copy(saved_run, tmp_path / "run")
    leftovers = [path / "checkpoints" / name for name in ("9.orbax-checkpoint-tmp", "3.deleted", "10")]
    for leftover in leftovers:
        leftover.mkdir()
    with Checkpoints(path / "checkpoints") as store:
        assert store.steps == [4, 8] and all(leftover.exists() for leftover in leftovers)
    with Checkpoints(path / "checkpoints", keep=2) as store:
        assert store.steps == [4, 8] and not any(leftover.exists() for leftover in leftovers)


def test_newest_and_every_kth_checkpoint_stay(tmp_path):
    with Checkpoints(tmp_path / "checkpoints", keep=1, keep_every=4) as store:
        for step in range(2, 12, 2):
            store.save(state(step))
            store.wait()
        assert store.steps == [4, 8, 10]


def test_a_disk_without_room_is_noticed_before_a_save(tmp_path, monkeypatch, capsys):
    with Checkpoints(tmp_path / "checkpoints", keep=2) as store:
        store.save(state(2))
        store.wait()
        monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
        store.save(state(4))
        store.wait()
        assert store.latest == 2 and "free space" in capsys.readouterr().err
        monkeypatch.undo()
        store.finish(state(6))
        assert store.latest == 6


def test_a_run_without_checkpoints_has_none_to_use(tmp_path):
    with Checkpoints(tmp_path / "checkpoints") as store, pytest.raises(NoCheckpoint):
        store.newest_intact()
    assert directory.latest_step(tmp_path) is None
