"""Oracles: the papers' formulas, other libraries' models and published tables. Nothing here imports jdiff."""
