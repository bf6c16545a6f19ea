"""Sharding rules: which mesh axis shards which dimension of a parameter, one table for all networks.

A parameter's path is compared with the patterns in order, and the first that matches all of it decides. Tensor parallel
layers come in pairs, sharded along the dimension between the two, so that each pair needs one sum over ``tensor``:
queries, keys, values and the first layer of a feed-forward by their outputs, the layer after them by its inputs
[megatron sec. 3]. The other dimension is sharded by ``fsdp`` and gathered where it is used [zero sec. 5]. A dimension
that its axis does not divide is not sharded. EMAs and the optimizer's moments are sharded as their parameters are.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
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
REPLICATED = ()  # the axes of a parameter without a rule


class MissingShardingRule(ValueError):
    """A parameter matches no pattern, on a mesh that shards parameters."""


class UnshardedParameter(UserWarning):
    """A parameter matches no pattern, and is replicated on a mesh that shards no parameters."""


def rule_index(path: str) -> int | None:
    """Index into ``RULES`` of the rule that decides for a parameter; None where no pattern matches."""
    return next((i for i, (pattern, _) in enumerate(RULES) if re.fullmatch(pattern, path)), None)


def placement(mesh: Mesh, tree: Any) -> Any:
    """The sharding of every leaf of a train state or of parameters; leaves that are no parameters are replicated.

    A parameter without a rule is an error (``MissingShardingRule``) where ``fsdp`` or ``tensor`` is above 1. On other
    meshes it is replicated as all parameters are, with a warning.
    """
    _check_rules(mesh, (_path(keys) for keys, _ in jax.tree_util.tree_leaves_with_path(tree)))
    return jax.tree_util.tree_map_with_path(
        lambda keys, leaf: NamedSharding(mesh, _spec(mesh, _path(keys), leaf.shape)), tree
    )


def placement_table(mesh: Mesh, params: Any) -> str:
    """A text table: each rule with the parameters that it decides for, then those that an axis does not divide."""
    leaves = [(_path(keys), leaf) for keys, leaf in jax.tree_util.tree_leaves_with_path(params)]
    _check_rules(mesh, (path for path, _ in leaves))
    lines = []
    for index, (pattern, axes) in [*enumerate(RULES), (None, ("no pattern matches", REPLICATED))]:
        sizes = [leaf.size for path, leaf in leaves if rule_index(path) == index]
        if sizes:
            layout = ", ".join(axis or "-" for axis in axes) or "replicated"
            lines.append(f"{len(sizes):5} tensors {sum(sizes) / 1e6:9.3f} M  {layout:14} {pattern}")
    for path, leaf in leaves:
        spec = _spec(mesh, path, leaf.shape)
        lines += [
            f"{path} {leaf.shape} is not sharded by {axis}, whose size {mesh.shape[axis]} does not divide its dimension"
            for axis in _axes(path)
            if axis and mesh.shape[axis] > 1 and axis not in spec
        ]
    return "\n".join(lines)


def _check_rules(mesh: Mesh, paths: Iterable[str]) -> None:
    names = sorted({path for path in paths if path and rule_index(path) is None})
    if not names:
        return
    sentence = f"no pattern of RULES in jdiff/sharding/rules.py matches {', '.join(names)}"
    if mesh.shape["fsdp"] > 1 or mesh.shape["tensor"] > 1:
        raise MissingShardingRule(f"{sentence}; add one, or set config.mesh.fsdp and config.mesh.tensor to 1")
    # At this very line, whoever calls, so that Python's filter prints each sentence once.
    warnings.warn(f"{sentence}; replicated, and a mesh with fsdp or tensor needs one", UnshardedParameter, stacklevel=1)


def _axes(path: str) -> tuple[str | None, ...]:
    index = rule_index(path)
    return REPLICATED if index is None else RULES[index][1]


def _spec(mesh: Mesh, path: str, shape: tuple[int, ...]) -> PartitionSpec:
    """The axes that shard a parameter's dimensions on a mesh, where they divide them."""
    axes = [
        axis if axis and mesh.shape[axis] > 1 and size % mesh.shape[axis] == 0 else None
        for axis, size in zip(_axes(path), shape)
    ]
    while axes and axes[-1] is None:
        axes.pop()
    return PartitionSpec(*axes)


def _path(keys: tuple) -> str:
    """A parameter's path inside its network, the same in parameters, EMAs and moments; "" for what is no parameter.

    In a train state parameters are the dictionaries below the last attribute: opt_state[1].mu["denoiser"]["conv_1"].
    Below the state's own ``ema`` the first key is the average's name.
    """
    depth = next((i for i in reversed(range(len(keys))) if not isinstance(keys[i], jax.tree_util.DictKey)), -1)
    names = [str(key.key) for key in keys[depth + 1 :]]
    in_ema = depth == 0 and getattr(keys[0], "name", None) == "ema"
    return "/".join(names[1:] if in_ema else names)
