"""Prediction type, noise schedule and loss weighting, on the spiral.

Aim     [distillation table 1] and [ddpm sec. 3.2]: eps and v are good prediction types, x0 is not;
        [minsnr] trains faster.
Run     jdiff sweep spiral_targets --workdir=sweeps/spiral_targets --jobs=2
Takes   about 16 minutes on 2 CPU cores.
Seen    2026-11-27, 5 seeds: eps not distinguishable from v, x0 worse, linear worse, min-SNR much worse.
        All results are in docs/evidence/ablations.md.
"""

from jdiff.sweep import grid, product, seeds

BASE = "spiral"
COMPARE = {"mean_distance": "lower"}  # the mean distance of samples to the data, and of the data to samples
BASELINE = {"diffusion.prediction_type": "v", "diffusion.schedule": "cosine", "diffusion.weighting": "simple"}


def sweep():
    axes = {
        "diffusion.prediction_type": ("eps", "x0", "v"),
        "diffusion.schedule": ("linear", "cosine"),
        "diffusion.weighting": ("simple", "min_snr"),
        "train.steps": (4000,),
    }
    return product(seeds(5), grid(axes))
