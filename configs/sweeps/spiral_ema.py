"""How long the average of weights is, on the spiral, where the learning rate falls to zero and where it does not.

Aim     [edm2 fig. 5] in miniature: a best length in the middle; short averages are noisy, long ones late.
Run     jdiff sweep spiral_ema --workdir=sweeps/spiral_ema --jobs=2
Takes   about 6 minutes on 2 CPU cores.
Seen    2026-11-27, 6 seeds: 0.99 is best where the rate stays; where it falls to 0 none is better than no average.
        docs/ablations.md has all of it.
"""

from jdiff.sweep import grid, product, seeds

BASE = "spiral"
COMPARE = {"mean_distance": "lower"}  # the mean distance of samples to the data, and of the data to samples
BASELINE = {"measure.average": "none"}  # the last step's weights, of the same learning rate

DECAYS, WIDTHS = (0.9, 0.99, 0.999), (0.1, 0.2, 0.28)  # of averages that each run keeps


def sweep():
    kept = grid({"ema.decays": (DECAYS,), "ema.widths": (WIDTHS,), "optimizer.final_lr_fraction": (0.0, 1.0)})
    names = ("none", *map(str, DECAYS), *(f"width={width}" for width in WIDTHS))
    return product(seeds(6), kept, grid({"measure.average": names}))
