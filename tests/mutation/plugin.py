"""A pytest plugin, ``-p tests.mutation.plugin``: applies the mutant that JDIFF_MUTANT names, in the environment."""

import importlib
import os
from collections.abc import Mapping
from functools import partial, update_wrapper
from types import FunctionType

VARIABLE = "JDIFF_MUTANT"


def find_function(mutant):
    """The function that a mutant replaces."""
    value = importlib.import_module(mutant.module)
    for name in mutant.attribute.split("."):
        value = value[name] if isinstance(value, Mapping) else getattr(value, name)
    return value.fget if isinstance(value, property) else value


def apply(mutant):
    """Replace the code of the mutant's function, also for modules and tables that refer to the function."""
    function = find_function(mutant)
    right = FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__)
    right.__kwdefaults__ = function.__kwdefaults__
    function.__globals__["_replacement"] = partial(mutant.replacement, right)
    update_wrapper(function, right)  # keeps its signature
    function.__defaults__ = function.__kwdefaults__ = None
    function.__code__ = (lambda *args, **kwargs: _replacement(*args, **kwargs)).__code__  # noqa: F821


def pytest_sessionstart():
    """Apply the mutant before test modules are imported."""
    from tests.mutation.mutants import MUTANTS  # after conftest has configured JAX

    apply(next(mutant for mutant in MUTANTS if mutant.name == os.environ[VARIABLE]))
