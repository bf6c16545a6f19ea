"""Stored tensors to Flax parameters: names, shapes and layouts.

Every shape is compared with the network's before any tensor is read, and at most
``READERS`` tensors are in memory besides the parameters.

"Source" stands for the library that wrote a file: the source name and the source layout of a tensor are PyTorch's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Sharding

from jdiff.interop.safetensors_files import StoredTensor, WrongWeights

READERS = 4  # threads that read and transpose in parallel


@dataclass(frozen=True)
class SourceTensor:
    """The source tensor that holds a parameter.

    part: which third of a tensor that fuses query, key and value, or None for all of it.
    flax_layout: whether a matrix is stored as (in, out), as Flax does, and not as (out, in).
    """

    name: str
    part: int | None = None
    flax_layout: bool = False


Rule = tuple[str, str | Callable[[re.Match], str]]
# The last part of a parameter's path: Flax's word to PyTorch's.
LEAVES: tuple[Rule, ...] = ((r"([/.])(kernel|scale|embedding)$", r"\1weight"), (r"/", "."))


def source_tensor(path: str, rules: Iterable[Rule]) -> SourceTensor:
    """Translate a parameter's path to the source name.

    path: such as "text/transformer/layers_0/attention/q/kernel".
    rules: substitutions (pattern, replacement), applied in order. In their output, ``#1`` at the end denotes the second
        third of a fused tensor and ``=`` a matrix in Flax's layout.
    """
    for pattern, replacement in (*rules, *LEAVES):
        path = re.sub(pattern, replacement, path)
    name, _, part = path.removesuffix("=").partition("#")
    return SourceTensor(name, int(part) if part else None, path.endswith("="))


@dataclass(frozen=True)
class WeightFile:
    """Tensors of one file, or of the shards in one folder, and which parameters they hold.

    parts: the networks whose parameters they are: "text", "vision", "denoiser", ...
    rules: of ``source_tensor``, for paths that begin with a part.   prefix: what precedes every source name.
    unused_pattern: matches the names of tensors that hold no parameter.
    resizers: by parameter path, how to convert a tensor of another length: (array, rows) -> array.
    """

    tensors: Mapping[str, StoredTensor]
    parts: tuple[str, ...]
    rules: tuple[Rule, ...]
    prefix: str = ""
    unused_pattern: str = r"(?!)"
    resizers: Mapping[str, Callable[[np.ndarray, int], np.ndarray]] = field(default_factory=dict)


def match(target: Any, files: Iterable[WeightFile]) -> tuple[dict[str, Callable[[], np.ndarray]], list[str]]:
    """Find the source tensor of every parameter, and check that every tensor is used.

    target: {part: tree of arrays or shapes}.
    Returns for each parameter path a function that reads it, and a line for each tensor that is missing, unexpected or
    of a wrong shape.
    """
    readers, problems, used_names = {}, [], set()
    files = list(files)
    for file in files:
        for path, leaf in flat({part: target[part] for part in file.parts if part in target}).items():
            source = source_tensor(path, file.rules)
            name, shape = file.prefix + source.name, _source_shape(leaf.shape, path, source)
            used_names.add(name)
            tensor, resize = file.tensors.get(name), file.resizers.get(path)
            if tensor is None:
                problems.append(f"missing     {name}, of shape {shape}")
            elif resize and _squeeze(tensor.shape)[1:] == _squeeze(shape)[1:]:
                readers[path] = partial(_read, tensor, source, path, leaf.shape, resize)
            elif _squeeze(tensor.shape) == _squeeze(shape):
                readers[path] = partial(_read, tensor, source, path, leaf.shape, None)
            else:
                problems.append(f"misshapen   {name}, {tensor.shape} in place of {shape}")
    patterns = {name: (tensor, file.unused_pattern) for file in files for name, tensor in file.tensors.items()}
    for name, (tensor, unused_pattern) in patterns.items():
        if name not in used_names and not re.search(unused_pattern, name):
            problems.append(f"unexpected  {name}, of shape {tensor.shape}")
    return readers, list(dict.fromkeys(problems))


def _read(
    tensor: StoredTensor, source: SourceTensor, path: str, shape: tuple[int, ...], resize: Callable | None
) -> np.ndarray:
    """Read a tensor in Flax's layout and in float32."""
    value = tensor.read(source.part)
    if resize is not None:
        value = resize(value.astype(np.float32), shape[0])
    if path.endswith("/kernel") and not source.flax_layout:
        value = _transpose(value.reshape(_source_shape(shape, path, SourceTensor(""))))
    return np.asarray(value.reshape(shape), np.float32, order="C")


def _transpose(value: np.ndarray) -> np.ndarray:
    """(out, in) to (in, out), or (out, in, h, w) to (h, w, in, out), in blocks of 32 outputs, which fit into caches."""
    axes = (1, 0) if value.ndim == 2 else (2, 3, 1, 0)
    transpose = np.empty([value.shape[axis] for axis in axes], np.float32)
    for start in range(0, len(value), 32):
        transpose[..., start : start + 32] = value[start : start + 32].transpose(axes)
    return transpose


def flat(tree: Any) -> dict[str, Any]:
    """Flatten a tree of dicts to one dict, whose keys are paths with slashes."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(str(key.key) for key in path): leaf for path, leaf in leaves}


def _squeeze(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Drop axes of length 1: a 1x1 convolution equals a matrix, and a scalar may be stored as a vector."""
    return tuple(size for size in shape if size != 1)


def _source_shape(shape: tuple[int, ...], path: str, source: SourceTensor) -> tuple[int, ...]:
    """The shape in which the source stores a parameter of ``shape``."""
    if path.endswith("/kernel") and not source.flax_layout:
        shape = shape[::-1] if len(shape) == 2 else (shape[3], shape[2], *shape[:2])
    return shape if source.part is None else (3 * shape[0], *shape[1:])


def read_params(
    target: Any,
    files: Iterable[WeightFile],
    sharding: Sharding,
    *,
    source: epath.PathLike,
    parts: Iterable[str] | None = None,
) -> dict[str, Any]:
    """Read parameters in float32, placed by ``sharding``.

    target: {part: tree of arrays or shapes}, of all parts.   source: the path for error messages.
    parts: which parts to read; default all.
    Raises ``WrongWeights``, which lists every problem of ``match``, before anything is read.
    """
    readers, problems = match(target, files)
    if problems:
        lines = "".join(f"\n  {problem}" for problem in problems)
        raise WrongWeights(f"{len(problems)} tensors of {source} do not match the network:{lines}")
    target = {part: target[part] for part in (target if parts is None else parts)}

    def read_parameter(path: str) -> jax.Array:
        return jax.block_until_ready(jax.device_put(readers[path](), sharding))

    with ThreadPoolExecutor(READERS) as pool:
        leaves = list(pool.map(read_parameter, flat(target)))
    return jax.tree.unflatten(jax.tree.structure(target), leaves)
