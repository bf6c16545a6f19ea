"""Ablation sweeps: which cells there are, which of them are done, and what they say."""

from jdiff.sweep.algebra import chain, grid, product, seeds, zipped

__all__ = ["chain", "grid", "product", "seeds", "zipped"]
