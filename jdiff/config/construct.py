"""A section of a config to a call: every key must be an argument of what it configures, and of its type."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

TYPES = {"int": int, "float": (int, float), "bool": bool, "str": str}  # of annotations that are checked


class ConfigError(ValueError):
    """A config asks for something that does not exist; the sentence says which key to change."""


def nearest(name: str, names: Iterable) -> str:
    """', did you mean ...?' for a misspelt name, or all names."""
    names = list(map(str, names))
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean '{close[0]}'?" if close else f"known are {', '.join(names)}"


def choose(key: str, name: object, table: Any) -> Any:
    """The entry of a table that a config names."""
    if not isinstance(name, str) or name not in table:
        raise ConfigError(f"config.{key} is {name!r}, which does not exist; {nearest(str(name), table)}")
    return table[name] if isinstance(table, Mapping) else name


def choose_with_parameters(key: str, choice: str | Mapping[str, Any], table: Mapping[str, Callable]) -> Callable:
    """The function of a table that a config names, with the parameters it sets.

    choice: a name, or {"name": ..., **parameters}, whose parameters must be keyword arguments of the function.
    Returns the function, or a partial of it.
    """
    if isinstance(choice, str):
        return choose(key, choice, table)
    parameters = {name: value for name, value in choice.items() if name != "name"}
    if "name" not in choice:
        raise ConfigError(f"config.{key} has parameters, but no name; {nearest('', table)}")
    function = choose(f"{key}.name", choice["name"], table)
    check_keys(key, _keyword_only(function), parameters)
    return partial(function, **{name: _immutable(value) for name, value in parameters.items()})


def construct(section: str, constructor: Callable, keys: Mapping[str, Any], **fixed: Any) -> Any:
    """Call ``constructor`` with a section's keys; keys it does not take, or of a wrong type, are a ``ConfigError``."""
    parameters = {
        name: p for name, p in inspect.signature(constructor).parameters.items() if name not in (*fixed, "parent")
    }
    check_keys(section, parameters, keys)
    for name, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty and name not in (*keys, "name"):
            raise ConfigError(f"config.{section}.{name} is missing; it has no default")
    return constructor(**{name: _immutable(value) for name, value in keys.items()}, **fixed)


def check_keys(section: str, parameters: Mapping[str, inspect.Parameter], keys: Mapping[str, Any]) -> None:
    """Raise ``ConfigError`` at a key that is not a parameter, or whose value is not of its annotated type."""
    for name, value in keys.items():
        if name not in parameters:
            raise ConfigError(f"config.{section}.{name} is not a setting; {nearest(name, parameters)}")
        annotation = str(parameters[name].annotation)
        if annotation.startswith(("tuple", "Sequence")) and not isinstance(value, list | tuple):
            raise ConfigError(f"config.{section}.{name} is {value!r}; it must be a list, such as ({value!r},)")
        expected = TYPES.get(annotation.removesuffix(" | None"))
        if value is None and annotation.endswith(" | None"):
            continue
        if expected and (not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool)):
            kind = type(value).__name__
            raise ConfigError(f"config.{section}.{name} is {value!r}, a {kind}; it must be {annotation}")


def _keyword_only(function: Callable) -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(function).parameters
    return {name: p for name, p in parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}


def _immutable(value: Any) -> Any:
    """Lists as tuples, so that a config from JSON builds what its Python file builds."""
    return tuple(_immutable(item) for item in value) if isinstance(value, list | tuple) else value
