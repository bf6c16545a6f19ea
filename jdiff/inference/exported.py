"""A whole sampler as one exported JAX program, and as a folder that draws with JAX alone."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath
from jax import Array
from jax import export as jax_export
from safetensors.numpy import save

from jdiff import runtime, storage
from jdiff.inference import standalone
from jdiff.inference.program import CAPTIONS, draw
from jdiff.inference.sampler import Sampler
from jdiff.models.attention import dot_product
from jdiff.runtime import allocator, compilation_cache, xla_flags


def portable(sampler: Sampler) -> Sampler:
    """A sampler whose attention runs on every platform: kernels are of one."""
    networks = {name: getattr(sampler, name).clone(attend=dot_product) for name in ("text", "denoiser")}
    return dataclasses.replace(sampler, **networks)


def write_folder(folder: epath.Path, sampler: Sampler, max_rows: int, origin: dict[str, Any]) -> None:
    """Write a ``portable`` sampler as a folder: the program, its weights and settings, its tokenizer, and draw.py.

    max_rows: the most rows of any settings that may replace these later.   origin: where the model comes from.
    """
    inputs = sampler.inputs([sampler.settings], max_rows=max_rows)
    program = export_sampler(sampler, max_rows)
    folder.mkdir(parents=True, exist_ok=True)
    storage.write_bytes(folder / "sampler.jax", program.serialize())
    for name, tree in (("weights", sampler.params), ("settings", inputs)):
        arrays = {path: np.asarray(leaf) for path, leaf in named_leaves(tree).items()}
        storage.write_bytes(folder / f"{name}.safetensors", save(arrays))
    sampler.tokenizer.save(folder / "tokenizer.json")
    storage.write_json(folder / "captions.json", sampler.tokenizer.layout())
    origin = {**origin, **dataclasses.asdict(sampler.settings), "jax": jax.__version__}
    storage.write_json(folder / "about.json", origin)
    storage.write_text(folder / "draw.py", inspect.getsource(standalone))
    (folder / "runtime").mkdir()
    for module in (runtime, allocator, compilation_cache, xla_flags):
        storage.write_text(folder / "runtime" / Path(module.__file__).name, inspect.getsource(module))


def export_sampler(sampler: Sampler, max_rows: int) -> jax_export.Exported:
    """Tokens in, images out, as one function of any number b of images, for CPU, CUDA and TPU.

    Its three arguments are dicts of arrays: the parameters and the ``SamplerInputs``, by ``named_leaves``, and
    the captions: tokens, mask, negative_tokens, negative_mask (b, context_length) and seeds (b,).
    Returns images (b, h, w, 3) uint8.
    """
    spec, inputs_like = sampler.spec(), sampler.inputs([sampler.settings], max_rows=max_rows)
    b = jax_export.symbolic_shape("b")

    def call(params: dict[str, Array], inputs: dict[str, Array], captions: dict[str, Array]) -> Array:
        columns = [captions[name] for name in CAPTIONS]
        return draw(spec, _unflatten(params, sampler.params), _unflatten(inputs, inputs_like), columns, None)[0]

    def struct(leaf, shape: tuple) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, leaf.dtype)

    params = {name: struct(leaf, leaf.shape) for name, leaf in named_leaves(sampler.params).items()}
    inputs = {name: struct(leaf, leaf.shape[:-1] + b) for name, leaf in named_leaves(inputs_like).items()}
    columns = [*sampler.tokenizer.encode([""]) * 2, np.zeros(1, np.uint32)]
    captions = {name: struct(column, b + column.shape[1:]) for name, column in zip(CAPTIONS, columns, strict=True)}
    return jax_export.export(jax.jit(call), platforms=("cpu", "cuda", "tpu"))(params, inputs, captions)


def named_leaves(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by their paths, with slashes."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _unflatten(leaves: dict[str, Array], template: Any) -> Any:
    """The inverse of ``named_leaves``."""
    return jax.tree.unflatten(jax.tree.structure(template), [leaves[name] for name in named_leaves(template)])
