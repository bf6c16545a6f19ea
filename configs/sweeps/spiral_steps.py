"""How many steps, and how much noise in each: DDIM's first table, on the spiral.

Aim     [ddim table 1]: with few steps the less noise the better, with many DDPM's is no worse.
Run     jdiff sweep spiral_steps --workdir=sweeps/spiral_steps --jobs=2
"""

from jdiff.sweep import grid, product, seeds

BASE = "spiral"
COMPARE = {"both": "lower"}  # the mean distance of samples to the data, and of the data to samples


def sweep():
    steps = (5, 10, 20, 50, 100, 200)
    return product(seeds(6), grid({"sample.eta": (0.0, 0.5, 1.0), "sample.steps": steps}))
