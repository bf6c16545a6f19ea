"""EMA length on the spiral, with a learning rate that decays to zero and with a constant one.

Aim     [edm2 fig. 5] in miniature: the best length lies in the middle; short EMAs are noisy, long ones lag behind.
Run     jdiff sweep spiral_ema --workdir=sweeps/spiral_ema --jobs=2
Takes   about 6 minutes on 2 CPU cores.
Seen    2026-11-27, 6 seeds: 0.99 is best at a constant rate; with decay to 0 no EMA is better than the last weights.
        All results are in docs/evidence/ablations.md.
"""

from jdiff.sweep import grid, product, seeds

BASE = "spiral"
COMPARE = {"mean_distance": "lower"}  # the mean distance of samples to the data, and of the data to samples
BASELINE = {"measure.ema": "none"}  # the weights of the last step, at the same learning rate

DECAYS, WIDTHS = (0.9, 0.99, 0.999), (0.1, 0.2, 0.28)  # of the EMAs that each run keeps


def sweep():
    trained_runs = grid({"ema.decays": (DECAYS,), "ema.widths": (WIDTHS,), "optimizer.final_lr_fraction": (0.0, 1.0)})
    names = ("none", *map(str, DECAYS), *(f"width={width}" for width in WIDTHS))
    return product(seeds(6), trained_runs, grid({"measure.ema": names}))
