"""jdiff export: a whole sampler in files that need JAX alone."""

from __future__ import annotations

import dataclasses
import inspect
import json
from typing import Any

import jax
import numpy as np
from jax import Array
from jax import export as jax_export
from safetensors.numpy import save

from jdiff import runs, standalone
from jdiff.interop.pretrained import Hints
from jdiff.models.attention import dot_product
from jdiff.sample import CAPTIONS, Sampler, draw


def export(
    source: str, destination: str, *, hints: Hints, changes: dict, max_rows: int, average: str | None = None
) -> None:
    """Write the model at ``source`` as a folder that draws by itself.

    changes: of the settings that it draws with; method.safetensors, which holds them, is data of the program.
    max_rows: the most rows that any method may take which is put in its place.
    average: which of a run's, as of ``runs.restore_weights``.
    Raises ``ConfigError`` where ``destination`` has something already.
    """
    folder = runs.new_folder(destination)
    sampler, step = runs.drawing(source, hints, average)
    sampler = dataclasses.replace(sampler, settings=dataclasses.replace(sampler.settings, **changes))
    plain = {name: getattr(sampler, name).clone(attend=dot_product) for name in ("text", "unet")}
    sampler = dataclasses.replace(sampler, **plain)  # kernels are of one platform
    method = sampler.method([sampler.settings], max_rows=max_rows)  # refuse impossible settings first
    print(f"writing a program of up to {method.tableau.rows} rows for any number of images, on CPU, CUDA and TPU")
    program = exported(sampler, max_rows)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sampler.jax").write_bytes(program.serialize())
    for name, tree in (("weights", sampler.weights), ("method", method)):
        arrays = {path: np.asarray(leaf) for path, leaf in named(tree).items()}
        (folder / f"{name}.safetensors").write_bytes(save(arrays))
    sampler.tokenizer.save(folder / "tokenizer.json")
    (folder / "captions.json").write_text(json.dumps(sampler.tokenizer.layout(), indent=2) + "\n")
    about = {"source": source, "step": step, "average": average, **dataclasses.asdict(sampler.settings)}
    about["jax"] = jax.__version__
    (folder / "about.json").write_text(json.dumps(about, indent=2) + "\n")
    (folder / "draw.py").write_text(inspect.getsource(standalone))
    print(f"wrote {folder}; `python {folder / 'draw.py'} 'a red circle'` draws, without jdiff")


def exported(sampler: Sampler, max_rows: int) -> jax_export.Exported:
    """All of it, tokens in and images out, as one function of any number b of images, for CPU, CUDA and TPU.

    Its three arguments are dicts of arrays: the weights and the ``method`` of the images, as ``named`` names them, and
    of the captions tokens, mask, negative_tokens, negative_mask (b, context_length) and seeds (b,).
    Returns images (b, h, w, 3) uint8.
    """
    program, like = sampler.program(), sampler.method([sampler.settings], max_rows=max_rows)
    b = jax_export.symbolic_shape("b")

    def call(weights: dict[str, Array], method: dict[str, Array], captions: dict[str, Array]) -> Array:
        columns = [captions[name] for name in CAPTIONS]
        return draw(program, _unnamed(weights, sampler.weights), _unnamed(method, like), columns, None)[0]

    def of(leaf, shape: tuple) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, leaf.dtype)

    weights = {name: of(leaf, leaf.shape) for name, leaf in named(sampler.weights).items()}
    method = {name: of(leaf, leaf.shape[:-1] + b) for name, leaf in named(like).items()}
    columns = [*sampler.tokenizer.encode([""]) * 2, np.zeros(1, np.uint32)]
    captions = {name: of(column, b + column.shape[1:]) for name, column in zip(CAPTIONS, columns, strict=True)}
    return jax_export.export(jax.jit(call), platforms=("cpu", "cuda", "tpu"))(weights, method, captions)


def named(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by their paths, with slashes."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _unnamed(leaves: dict[str, Array], like: Any) -> Any:
    """The inverse of ``named``."""
    return jax.tree.unflatten(jax.tree.structure(like), [leaves[name] for name in named(like)])
