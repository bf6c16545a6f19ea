"""Mutation tests: known wrong formulas, each of which the tests of the mathematics must detect."""
