"""Sampling steps and the noise of each step: DDIM's first table, on the spiral.

Aim     [ddim table 1]: with few steps less noise is better, with all of them DDPM's larger variance is best.
Run     jdiff sweep spiral_steps --workdir=sweeps/spiral_steps --jobs=2
Takes   about 6 minutes on 2 CPU cores.
Seen    2026-11-27, 8 seeds: at 20 steps noise is worse, at 100 eta 1 is better; the larger variance is worse from 20 to
        100, and not distinguishable at 1,000.
        All results are in docs/evidence/ablations.md.
"""

from jdiff.sweep import chain, grid, product, seeds

BASE = "spiral"
COMPARE = {"mean_distance": "lower"}  # the mean distance of samples to the data, and of the data to samples
BASELINE = {"sample.eta": 0.0}  # at the same number of steps


def sweep():
    ddpm = {"sample.solver": ("ddpm",), "sample.variance": ("large",)}
    methods = chain(grid({"sample.eta": (0.0, 0.5, 1.0)}), grid(ddpm))
    return product(seeds(8), methods, grid({"sample.steps": (10, 20, 50, 100, 1000)}))
