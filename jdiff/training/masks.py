"""One tree of parameters, split by path into what is trained and what is frozen.

A frozen leaf has no gradient, no optimizer moments and no EMA: it is simply not in the tree that these are made of.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flax.traverse_util import flatten_dict, unflatten_dict

Params = Mapping[str, Any]


def split(params: Params, is_frozen: Callable[[str], bool]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(trained, frozen) parts of a tree of nested dicts. is_frozen: of a path such as "denoiser/conv_in/kernel"."""
    trained, frozen = {}, {}
    for path, leaf in flatten_dict(dict(params)).items():
        (frozen if is_frozen("/".join(path)) else trained)[path] = leaf
    return unflatten_dict(trained), unflatten_dict(frozen)


def merge(frozen: Params, trained: Params) -> dict[str, Any]:
    """The inverse of ``split``."""
    merged = dict(frozen)
    for name, tree in trained.items():
        subtree = merged.get(name)
        merged[name] = merge(subtree, tree) if isinstance(subtree, Mapping) and isinstance(tree, Mapping) else tree
    return merged


def matches(patterns: Sequence[str], path: str) -> bool:
    """Whether one of the patterns (regular expressions) matches a whole path."""
    return any(re.fullmatch(pattern, path) for pattern in patterns)
