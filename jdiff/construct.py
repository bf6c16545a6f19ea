"""A section of a config to a call: every key must be an argument of what it configures, and of its type."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any


class ConfigError(ValueError):
    """A config asks for something that does not exist; the sentence says which key to change."""


def nearest(name: str, known) -> str:
    """', did you mean ...?' for a misspelt name, or the known names."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean '{close[0]}'?" if close else f"known are {', '.join(map(str, known))}"


def choose(key: str, name: str, table) -> Any:
    """The entry of a table that a config names."""
    if name not in table:
        raise ConfigError(f"config.{key} is '{name}', which does not exist; {nearest(name, table)}")
    return table[name] if isinstance(table, Mapping) else name


def construct(section: str, constructor: Callable, keys: Mapping[str, Any], **more: Any) -> Any:
    """Call ``constructor`` with a section's keys; keys it does not take, or of a wrong type, are a ``ConfigError``."""
    accepted = {
        name: p for name, p in inspect.signature(constructor).parameters.items() if name not in (*more, "parent")
    }
    for name, value in keys.items():
        if name not in accepted:
            raise ConfigError(f"config.{section}.{name} is not a setting; {nearest(name, accepted)}")
        wanted_name = str(accepted[name].annotation)
        types = {"int": int, "float": (int, float), "bool": bool, "str": str}
        wanted = types.get(wanted_name.removesuffix(" | None"))
        if value is None and wanted_name.endswith(" | None"):
            continue
        if wanted and (not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool)):
            raise ConfigError(
                f"config.{section}.{name} is {value!r}, a {type(value).__name__}; it must be {wanted_name}"
            )
    missing = [n for n, p in accepted.items() if p.default is inspect.Parameter.empty and n not in keys and n != "name"]
    if missing:
        raise ConfigError(f"config.{section}.{missing[0]} is missing; it has no default")
    return constructor(**{name: _frozen(value) for name, value in keys.items()}, **more)


def _frozen(value: Any) -> Any:
    """Lists as tuples, so that a config from JSON builds what its Python file builds."""
    return tuple(_frozen(item) for item in value) if isinstance(value, list | tuple) else value
