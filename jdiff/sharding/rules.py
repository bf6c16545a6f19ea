"""Where parameters lie on a mesh: one table for all networks.

A parameter's path is looked up in order, and the first pattern that is all of it decides which mesh axis cuts which
dimension. Layers in pairs are cut along what lies between them, so that ``tensor`` is summed over once a pair: queries,
keys, values and the first layer of a feed-forward by their outputs, what follows them by its inputs [megatron sec. 3].
The other dimension is cut by ``fsdp``, and brought together where it is used [zero sec. 5]. A dimension that its axis
does not divide stays whole. Averages and an optimizer's moments lie where their parameters do.
"""

from __future__ import annotations

import re
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

RULES = (
    (r"(.*/)?(bias|scale|mean|variance|positions|class_token|query|logit_scale|logit_bias)", ()),
    (r".*/tokens/embedding", (None, "fsdp")),
    (r".*/(q|k|v|mlp_1|ff1|time1)/kernel", ("fsdp", "tensor")),
    (r".*/(out|mlp_2|ff2|time2)/kernel", ("tensor", "fsdp")),
    (r".*/(projection|pooled|time|proj_in|proj_out)/kernel", ("fsdp", None)),
    (r".*/(conv\w*|\w+_sample|shortcut|patches|quant|post_quant)/kernel", (None, None, None, "fsdp")),
)


class NoRule(ValueError):
    """A parameter that no pattern matches."""


def rule_of(path: str) -> int:
    """The number of the rule that decides for a parameter. Raises ``NoRule``."""
    for number, (pattern, _) in enumerate(RULES):
        if re.fullmatch(pattern, path):
            return number
    raise NoRule(f"no pattern of jdiff/sharding/rules.py matches the parameter {path}; add one")


def placement(mesh: Mesh, tree: Any) -> Any:
    """The sharding of every leaf of a state, or of parameters; what is no parameter lies on every device."""

    def place(keys: tuple, leaf: Any) -> NamedSharding:
        path = _path(keys)
        return NamedSharding(mesh, _spec(mesh, path, leaf.shape) if path else PartitionSpec())

    return jax.tree_util.tree_map_with_path(place, tree)


def table(mesh: Mesh, params: Any) -> str:
    """What each rule decides for some parameters, as text."""
    leaves = [(_path(keys), leaf) for keys, leaf in jax.tree_util.tree_leaves_with_path(params)]
    numbers = [rule_of(path) for path, _ in leaves]
    lines, whole = [], []
    for number, (pattern, axes) in enumerate(RULES):
        those = [leaf for (path, leaf), n in zip(leaves, numbers) if n == number]
        if those:
            millions = sum(leaf.size for leaf in those) / 1e6
            cut = ", ".join(axis or "-" for axis in axes) or "everywhere"
            lines.append(f"{len(those):5} tensors {millions:9.3f} M  {cut:14} {pattern}")
    for path, leaf in leaves:
        axes = [axis for axis in RULES[rule_of(path)][1] if axis and mesh.shape[axis] > 1]
        cut = [axis for axis in _spec(mesh, path, leaf.shape) if axis]
        whole += [f"{path} {leaf.shape} is not cut by {axis}, {mesh.shape[axis]}" for axis in axes if axis not in cut]
    return "\n".join(lines + whole)


def _spec(mesh: Mesh, path: str, shape: tuple[int, ...]) -> PartitionSpec:
    """The axes that cut a parameter's dimensions on a mesh, where they divide them."""
    axes = RULES[rule_of(path)][1]
    cut = [
        axis if axis and mesh.shape[axis] > 1 and n % mesh.shape[axis] == 0 else None for axis, n in zip(axes, shape)
    ]
    while cut and cut[-1] is None:
        cut.pop()
    return PartitionSpec(*cut)


def _path(keys: tuple) -> str:
    """The names on the way to a leaf, which are those of its network, whatever tree holds it; "" for no parameter."""
    return "/".join(str(key.key) for key in keys if isinstance(key, jax.tree_util.DictKey))
