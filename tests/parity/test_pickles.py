"""The command that a refused pickle is answered with converts whatever PyTorch users save, and runs none of it."""

import subprocess
import sys
import types

import pytest
import torch

from jdiff.interop.safetensors_files import WrongWeights, scan

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.bfloat16)}


def save_lightning(path):
    """As the original checkpoints of Stable Diffusion: a class of a package that is not installed is a key."""
    names = "pytorch_lightning", "pytorch_lightning.callbacks", "pytorch_lightning.callbacks.model_checkpoint"
    modules = {name: types.ModuleType(name) for name in names}
    kind = type("ModelCheckpoint", (), {"__module__": names[2]})
    modules[names[2]].ModelCheckpoint = kind
    instance = kind()
    instance.best = 1.0
    sys.modules.update(modules)
    try:
        torch.save({"callbacks": {kind: {"monitor": "loss"}}, "hparams": instance, "state_dict": TENSORS}, path)
    finally:
        for name in names:
            del sys.modules[name]


def save_transpose(path):
    torch.save({"a": torch.arange(6.0).reshape(3, 2).T.contiguous().T.T, "b": TENSORS["b"]}, path)


def save_channels_last(path):
    images = torch.arange(96.0).reshape(2, 3, 4, 4).to(memory_format=torch.channels_last)
    torch.save({"a": images, "b": TENSORS["b"]}, path)


KINDS = {
    "bare": lambda path: torch.save(TENSORS, path),
    "state_dict": lambda path: torch.save({"state_dict": TENSORS, "epoch": 3}, path),
    "model": lambda path: torch.save({"model": TENSORS, "optimizer": {"step": 3}}, path),
    "tied": lambda path: torch.save({"a": TENSORS["a"], "a_again": TENSORS["a"], "b": TENSORS["b"]}, path),
    "transposed": save_transpose,
    "channels_last": save_channels_last,
    "lightning": save_lightning,
}


def run_printed_command(path):
    with pytest.raises(WrongWeights, match="convert it: ") as refusal:
        scan(path)
    command = str(refusal.value).split("convert it: ", 1)[1].replace("python", sys.executable, 1)
    return subprocess.run(command, shell=True, cwd=path.parent, capture_output=True, text=True)


@pytest.mark.parametrize("kind", KINDS)
def test_the_printed_command_converts_a_pickle(kind, tmp_path):
    KINDS[kind](tmp_path / "model.ckpt")
    process = run_printed_command(tmp_path / "model.ckpt")
    assert process.returncode == 0, process.stderr
    weights = scan(tmp_path / "model.safetensors")
    assert {"a", "b"} <= set(weights) and weights["b"].read().tolist() == [1, 1]
    if kind != "channels_last":
        assert weights["a"].read().shape in ((2, 3), (3, 2))


def test_a_pickle_without_tensors_is_no_success(tmp_path):
    torch.save({"optimizer": {"step": 3}}, tmp_path / "model.ckpt")
    process = run_printed_command(tmp_path / "model.ckpt")
    assert process.returncode != 0 and "its keys are ['optimizer']" in process.stderr
    assert not (tmp_path / "model.safetensors").exists()


class Harmful:
    def __reduce__(self):
        return exec, ("open('harm', 'w')",)


def test_code_in_a_pickle_is_not_run(tmp_path):
    torch.save({"state_dict": TENSORS, "callbacks": Harmful()}, tmp_path / "model.ckpt")
    run_printed_command(tmp_path / "model.ckpt")
    assert not (tmp_path / "harm").exists()
