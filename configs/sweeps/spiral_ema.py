"""How long the average of weights is, on the spiral, whose learning rate falls to zero.

Aim     [edm2 fig. 5] in miniature: a best length in the middle; short averages are noisy, long ones late.
Run     jdiff sweep spiral_ema --workdir=sweeps/spiral_ema --jobs=2
"""

from jdiff.sweep import grid, product, seeds

BASE = "spiral"
COMPARE = {"both": "lower"}  # the mean distance of samples to the data, and of the data to samples
BASELINE = {"ema.decays": (0.999,)}


def sweep():
    return product(seeds(6), grid({"ema.decays": ((0.5,), (0.9,), (0.99,), (0.999,), (0.9999,))}))
