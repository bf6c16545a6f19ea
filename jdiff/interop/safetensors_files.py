"""Safetensors files: their headers, and tensors that are read one by one; nothing in them is executed."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from etils import epath
from safetensors import SafetensorError, safe_open

from jdiff import storage
from jdiff.text import read_text

DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": jnp.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
WRAPPERS = re.compile(r"(^|(?<=\.))(_orig_mod|module)\.")  # what torch.compile and DistributedDataParallel add to names
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
MAX_HEADER = 2**27
VARIANTS = ("", ".fp16", ".non_ema")  # of a file's name


# Executes nothing of the pickle: classes that PyTorch does not know become empty ones. {}: the file, and its stem.
CONVERSION = (
    "import torch; from torch import serialization as s; from safetensors.torch import save_file; f = '{}'; "
    "stub = type('Stub', (dict,), dict(__init__=lambda *a, **k: None)); "
    "s.add_safe_globals([(stub, n) for n in s.get_unsafe_globals_in_checkpoint(f)]); "
    "w = torch.load(f, map_location='cpu', weights_only=True); "
    "w = next((w[k] for k in ('state_dict', 'model') if k in w), w); "
    "t = dict((k, v.contiguous().clone()) for k, v in w.items() if isinstance(v, torch.Tensor)); "
    "assert t, 'no tensors; its keys are ' + str(list(w)); save_file(t, '{}.safetensors')"
)


class WrongWeights(ValueError):
    """Weights that cannot be read, or that do not fit the network; the message names the file."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a safetensors file. start: offset of its first byte in the file."""

    path: epath.Path
    name: str
    dtype: Any
    shape: tuple[int, ...]
    start: int

    def read(self, part: int | None = None) -> np.ndarray:
        """Read the values in their stored type and layout. part: 0, 1 or 2 for one third of the first axis."""
        shape = self.shape if part is None else (self.shape[0] // 3, *self.shape[1:])
        size = math.prod(shape) * np.dtype(self.dtype).itemsize
        with self.path.open("rb") as file:
            file.seek(self.start + (part or 0) * size)
            content = file.read(size) if size else b""
        if len(content) != size:
            raise WrongWeights(f"{self.path} ends within tensor {self.name}; copy the file again")
        return np.frombuffer(content, self.dtype).reshape(shape)


def scan(path: epath.PathLike) -> dict[str, StoredTensor]:
    """Read the header of a safetensors file: its tensors by name, without ``WRAPPERS``. Raises ``WrongWeights``.

    A file on disk is checked by the safetensors library. Of a file in a bucket only the header is read, and checked as
    that library does.
    """
    path = epath.Path(path)
    refuse_pickle(path)
    if not path.exists():
        raise FileNotFoundError(f"file {path} does not exist")
    with path.open("rb") as file:
        start = file.read(64)
        if start[8:9] != b"{":
            _refuse_other_files(path, start)
        length = int.from_bytes(start[:8], "little")
        head = (start[8:] + file.read(max(0, length - 56)))[:length] if length <= MAX_HEADER else b""
    try:
        header = json.loads(head)
        header.pop("__metadata__", None)
        entries = {WRAPPERS.sub("", name): (name, entry) for name, entry in header.items()}
        tensors = {plain: _parse_entry(path, name, entry, 8 + length) for plain, (name, entry) in entries.items()}
        _check_layout(tensors.values(), 8 + length, path.stat().length)
        if storage.on_disk(path):
            with safe_open(str(path), "np"):
                pass
    except UnsupportedType as error:
        raise WrongWeights(f"{path} cannot be read: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
        raise WrongWeights(
            f"{path} is no valid safetensors file ({error}); if it was copied or downloaded, do that again"
        ) from error
    return tensors


class UnsupportedType(ValueError):
    """A tensor's type that is not read here."""


def _parse_entry(path: epath.Path, name: str, entry: dict, data_start: int) -> StoredTensor:
    """One tensor of a header. data_start: offset of the first byte after the header."""
    shape, (start, end) = tuple(entry["shape"]), entry["data_offsets"]
    if entry["dtype"] not in DTYPES:
        raise UnsupportedType(f"tensor {name} is of type {entry['dtype']}; convert it to one of {', '.join(DTYPES)}")
    dtype = DTYPES[entry["dtype"]]
    if not all(isinstance(n, int) and n >= 0 for n in (*shape, start)):
        raise ValueError(f"tensor {name} has shape {shape} and offset {start}")
    if end - start != math.prod(shape) * np.dtype(dtype).itemsize:
        raise ValueError(f"tensor {name} of shape {shape} has {end - start} bytes")
    return StoredTensor(path, name, dtype, shape, data_start + start)


def _check_layout(tensors: Iterable[StoredTensor], start: int, end: int) -> None:
    """Raise ``ValueError`` unless the tensors cover the file's bytes from start to end, without overlap."""
    for tensor in sorted(tensors, key=lambda tensor: (tensor.start, math.prod(tensor.shape))):
        if tensor.start != start:
            raise ValueError(f"tensor {tensor.name} begins at byte {tensor.start}, expected {start}")
        start += math.prod(tensor.shape) * np.dtype(tensor.dtype).itemsize
    if start != end:
        state = "it is truncated" if end < start else "it goes on after its last tensor"
        raise ValueError(f"{state}: it has {end:,} bytes, and its tensors end at {start:,}")


def _refuse_other_files(path: epath.Path, start: bytes) -> None:
    """Raise ``WrongWeights`` for files that are often found in place of weights, by their first bytes."""
    kinds = {
        b"version https://git-lfs": "a pointer of Git LFS, in place of the weights; fetch them by `git lfs pull`",
        b"<": "a web page, in place of the weights; download them again",
        b"PK\x03\x04": "a zip archive, such as PyTorch saves pickles in; rename it to .ckpt to see how to convert it",
        b"\x80": "a pickle; rename it to .ckpt to see how to convert it",
    }
    for signature, kind in kinds.items():
        if start.lstrip().startswith(signature):
            raise WrongWeights(f"{path} is {kind}")


def refuse_pickle(path: epath.Path) -> None:
    """Raise ``WrongWeights`` for a pickle file, which can execute code when it is read."""
    if path.suffix in PICKLES:
        raise WrongWeights(
            f"{path} is a pickle, which can execute any code when it is read; expected safetensors. Where PyTorch "
            f'is installed, cd to its folder and convert it: python -c "{CONVERSION.format(path.name, path.stem)}"'
        )


def scan_folder(folder: epath.PathLike, stems: Iterable[str]) -> dict[str, StoredTensor]:
    """Read the headers of a folder's weights: one file whose name is one of ``stems``, or several with an index."""
    folder = epath.Path(folder)
    for stem, variant in itertools.product(stems, VARIANTS):
        index, file = (folder / f"{stem}.safetensors.index{variant}.json", folder / f"{stem}{variant}.safetensors")
        if index.exists():
            return {name: tensor for shard in _shards(index) for name, tensor in scan(folder / shard).items()}
        if file.exists():
            return scan(file)
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        refuse_pickle(path)
    raise WrongWeights(f"{folder} has no weights; expected {' or '.join(f'{stem}.safetensors' for stem in stems)}")


def _shards(index: epath.Path) -> list[str]:
    """The file names in an index. Raises ``WrongWeights``."""
    try:
        files = sorted(set(json.loads(read_text(index))["weight_map"].values()))
        if any("/" in file or "\\" in file for file in files):
            raise WrongWeights(f"{index} lists files outside its folder; expected file names without a directory")
    except WrongWeights:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WrongWeights(f"{index} is no list of files ({error}); copy it again") from error
    return files
