"""Every mutant replaces a function that exists, and is killed."""

import inspect
from types import FunctionType

import pytest

from tests.mutation import runner
from tests.mutation.mutants import MUTANTS
from tests.mutation.plugin import find_function


def test_names_of_mutants_are_unique():
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) == 57


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_mutant_takes_the_arguments_of_its_function(mutant):
    function = find_function(mutant)
    assert isinstance(function, FunctionType)
    assert not function.__closure__
    parameters = inspect.signature(function).parameters.values()
    mandatory = [parameter for parameter in parameters if parameter.default is parameter.empty]
    positional = [1 for parameter in mandatory if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]
    keywords = {parameter.name: 1 for parameter in mandatory if parameter.kind is parameter.KEYWORD_ONLY}
    inspect.signature(mutant.replacement).bind(function, *positional, **keywords)


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_mutant_is_killed_by_an_assertion_about_finite_values(mutant):
    outcome = runner.run(mutant)
    assert outcome.is_killed, outcome
