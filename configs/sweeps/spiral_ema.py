"""How long the average of weights is, on the spiral, whose learning rate falls to zero.

Aim     [edm2 fig. 5] in miniature: a best length in the middle; short averages are noisy, long ones late.
Run     jdiff sweep spiral_ema --workdir=sweeps/spiral_ema --jobs=2
"""

from jdiff.sweep import grid, product, seeds

BASE = "spiral"
DECAYS = (0.5, 0.9, 0.99, 0.999, 0.9999)  # all kept by each run
COMPARE = {"both": "lower"}  # the mean distance of samples to the data, and of the data to samples
BASELINE = {"measure.average": "0.999"}


def sweep():
    kept = grid({"ema.decays": (DECAYS,), "measure.average": (*map(str, DECAYS), "none")})
    return product(seeds(6), kept)
