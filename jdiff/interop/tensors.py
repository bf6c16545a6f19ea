"""Weights on disk under their authors' names to parameters under ours.

A safetensors file is a header that names every tensor's type, shape and place, and then their bytes; nothing in it
is executed. So every shape is compared with the network's before a tensor is read, each is read on its own, and
memory never holds more than the parameters and the tensors on their way.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Sharding

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
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
MAX_HEADER = 2**27
READERS = 4  # threads that read and transpose side by side


class WrongWeights(ValueError):
    """Weights cannot be read, or are not those of the network that was asked for."""


@dataclass(frozen=True)
class Stored:
    """A tensor on disk. start: its first byte in the file."""

    path: epath.Path
    name: str
    dtype: Any
    shape: tuple[int, ...]
    start: int

    def read(self, part: int | None = None) -> np.ndarray:
        """Its numbers, as they are stored, or of the thirds of its first axis one."""
        rows = self.shape if part is None else (self.shape[0] // 3, *self.shape[1:])
        size = math.prod(rows) * np.dtype(self.dtype).itemsize
        with self.path.open("rb") as file:
            file.seek(self.start + (part or 0) * size)
            content = file.read(size) if size else b""
        if len(content) != size:
            raise WrongWeights(f"{self.path} ends in the middle of {self.name}; copy it again")
        return np.frombuffer(content, self.dtype).reshape(rows)


def scan(path: epath.PathLike) -> dict[str, Stored]:
    """The tensors of a safetensors file by name, none of them read. Raises ``WrongWeights``."""
    path = epath.Path(path)
    refuse_pickle(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    with path.open("rb") as file:
        first = file.read(8)
        length = int.from_bytes(first, "little")
        head = file.read(length) if len(first) == 8 and length <= MAX_HEADER else b""
    try:
        header = json.loads(head)
        header.pop("__metadata__", None)
        found = {name: _stored(path, name, about, 8 + length) for name, about in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WrongWeights(f"{path} is no safetensors file, or its header is broken: {error}") from error
    end = max((t.start + math.prod(t.shape) * np.dtype(t.dtype).itemsize for t in found.values()), default=0)
    size = path.stat().length
    if size < end:
        raise WrongWeights(f"{path} is cut short: it has {size:,} of {end:,} bytes; copy it again")
    return found


def _stored(path: epath.Path, name: str, about: dict, data: int) -> Stored:
    shape, (start, end) = tuple(about["shape"]), about["data_offsets"]
    dtype = DTYPES[about["dtype"]]
    if not all(isinstance(n, int) and n >= 0 for n in (*shape, start)):
        raise ValueError(f"{name} has the shape {shape} at {start}")
    if end - start != math.prod(shape) * np.dtype(dtype).itemsize:
        raise ValueError(f"{name} of {shape} has {end - start} bytes")
    return Stored(path, name, dtype, shape, data + start)


def refuse_pickle(path: epath.Path) -> None:
    """Raises ``WrongWeights`` at a file of a kind that runs code when it is read."""
    if path.suffix in PICKLES:
        raise WrongWeights(
            f"{path} is a pickle, which can run any code when it is read, and expected is a safetensors file; where "
            f'you trust it, convert it: python -c "import torch; from safetensors.torch import save_file; '
            f"w = torch.load('{path.name}', map_location='cpu', weights_only=True); w = w.get('state_dict', w); "
            f"save_file({{k: v.clone() for k, v in w.items() if hasattr(v, 'clone')}}, '{path.stem}.safetensors')\""
        )


def scan_folder(folder: epath.PathLike, stems: Iterable[str]) -> dict[str, Stored]:
    """The tensors of a folder, in one file named by one of ``stems`` or in several with an index."""
    folder = epath.Path(folder)
    for stem in stems:
        index = folder / f"{stem}.safetensors.index.json"
        if index.exists():
            files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
            if any("/" in file or "\\" in file for file in files):
                raise WrongWeights(f"{index} names files outside its folder")
            return {name: tensor for file in files for name, tensor in scan(folder / file).items()}
        for suffix in ("", ".fp16", ".non_ema"):
            if (folder / f"{stem}{suffix}.safetensors").exists():
                return scan(folder / f"{stem}{suffix}.safetensors")
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        refuse_pickle(path)
    raise WrongWeights(f"{folder} has no weights; expected {' or '.join(f'{stem}.safetensors' for stem in stems)}")


@dataclass(frozen=True)
class Place:
    """Where a parameter of ours lies in their file.

    part: which third of a tensor that holds query, key and value, or None for all of it.
    as_is: a matrix stored as ours are, (in, out), and not (out, in).
    """

    name: str
    part: int | None = None
    as_is: bool = False


Rule = tuple[str, str | Callable[[re.Match], str]]
# PyTorch's words for what Flax calls otherwise.
LEAVES: tuple[Rule, ...] = ((r"([/.])(kernel|scale|embedding)$", r"\1weight"), (r"/", "."))


def place(path: str, rules: Iterable[Rule]) -> Place:
    """Their name for one of our parameters.

    path: ours, such as "text/transformer/layers_0/attention/q/kernel".
    rules: substitutions, one after another. In what comes out, ``#1`` at the end names the second third of a
        tensor and ``=`` a matrix stored as ours are.
    """
    for pattern, theirs in (*rules, *LEAVES):
        path = re.sub(pattern, theirs, path)
    name, _, part = path.removesuffix("=").partition("#")
    return Place(name, int(part) if part else None, path.endswith("="))


@dataclass(frozen=True)
class File:
    """Tensors, and how they name what of ours. The tensors may lie in several files of one folder.

    parts: which of our networks they hold: "text", "vision", "unet", ...
    rules: of ``place``, for paths that begin with a part.   prefix: what stands before every name.
    ignored: a pattern of names that may be left over.
    resized: for a parameter that may be of another length, what makes it so: (array, rows) -> array.
    """

    stored: Mapping[str, Stored]
    parts: tuple[str, ...]
    rules: tuple[Rule, ...]
    prefix: str = ""
    ignored: str = r"(?!)"
    resized: Mapping[str, Callable[[np.ndarray, int], np.ndarray]] = field(default_factory=dict)


def match(like: Any, files: Iterable[File]) -> tuple[dict[str, Callable[[], np.ndarray]], list[str]]:
    """Find every parameter among the tensors, and see that no tensor is left over.

    like: {part: tree of arrays or shapes}.
    Returns for each of our paths what reads it, and a line for each tensor that is missing, unexpected or misshapen.
    """
    readers, problems, used = {}, [], set()
    files = list(files)
    for file in files:
        for path, leaf in flat({part: like[part] for part in file.parts if part in like}).items():
            where = place(path, file.rules)
            name, wanted = file.prefix + where.name, _theirs(leaf.shape, path, where)
            used.add(name)
            tensor, resize = file.stored.get(name), file.resized.get(path)
            if tensor is None:
                problems.append(f"missing     {name}, of shape {wanted}")
            elif resize and _core(tensor.shape)[1:] == _core(wanted)[1:]:
                readers[path] = partial(_read, tensor, where, path, leaf.shape, resize)
            elif _core(tensor.shape) == _core(wanted):
                readers[path] = partial(_read, tensor, where, path, leaf.shape, None)
            else:
                problems.append(f"misshapen   {name}, {tensor.shape} in place of {wanted}")
    everything = {name: (tensor, file.ignored) for file in files for name, tensor in file.stored.items()}
    for name, (tensor, ignored) in everything.items():
        if name not in used and not re.search(ignored, name):
            problems.append(f"unexpected  {name}, of shape {tensor.shape}")
    return readers, list(dict.fromkeys(problems))


def _read(tensor: Stored, where: Place, path: str, shape: tuple[int, ...], resize: Callable | None) -> np.ndarray:
    """A tensor in our layout and in float32."""
    value = tensor.read(where.part)
    if resize is not None:
        value = resize(value.astype(np.float32), shape[0])
    if path.endswith("/kernel") and not where.as_is:
        value = _turned(value.reshape(_theirs(shape, path, Place(""))))
    return np.asarray(value.reshape(shape), np.float32, order="C")


def _turned(value: np.ndarray) -> np.ndarray:
    """(out, in) as (in, out), or (out, in, h, w) as (h, w, in, out), some outputs at a time: caches like it."""
    axes = (1, 0) if value.ndim == 2 else (2, 3, 1, 0)
    turned = np.empty([value.shape[axis] for axis in axes], np.float32)
    for first in range(0, len(value), 32):
        turned[..., first : first + 32] = value[first : first + 32].transpose(axes)
    return turned


def flat(tree: Any) -> dict[str, Any]:
    """A tree of dicts as one dict, of paths with slashes."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(str(key.key) for key in path): leaf for path, leaf in leaves}


def _core(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without its ones: a 1x1 convolution is a matrix, a number may be a vector of one."""
    return tuple(size for size in shape if size != 1)


def _theirs(shape: tuple[int, ...], path: str, where: Place) -> tuple[int, ...]:
    """The shape in which they store a parameter of ours."""
    if path.endswith("/kernel") and not where.as_is:
        shape = shape[::-1] if len(shape) == 2 else (shape[3], shape[2], *shape[:2])
    return shape if where.part is None else (3 * shape[0], *shape[1:])


def read(
    like: Any, files: Iterable[File], sharding: Sharding, *, source: epath.PathLike, only: Iterable[str] | None = None
) -> dict[str, Any]:
    """Parameters in float32, placed by ``sharding``.

    like: {part: tree of arrays or shapes}, of all parts.   only: which parts to read; all if not said.
    Raises ``WrongWeights`` with every tensor that is wrong, before anything is read.
    """
    readers, problems = match(like, files)
    if problems:
        listed = "".join(f"\n  {problem}" for problem in problems)
        raise WrongWeights(f"{len(problems)} tensors of {source} are not those of the network:{listed}")
    wanted = {part: like[part] for part in (like if only is None else only)}

    def parameter(path: str) -> jax.Array:
        return jax.block_until_ready(jax.device_put(readers[path](), sharding))

    with ThreadPoolExecutor(READERS) as pool:
        leaves = list(pool.map(parameter, flat(wanted)))
    return jax.tree.unflatten(jax.tree.structure(wanted), leaves)
