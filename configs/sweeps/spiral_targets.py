"""What the network is asked for, under which schedule, and how losses are weighed, on the spiral.

Aim     [vdiff table 1] and [ddpm table 2]: the noise is a good target at many steps; weighed alike, targets are alike.
Run     jdiff sweep spiral_targets --workdir=sweeps/spiral_targets --jobs=2
"""

from jdiff.sweep import grid, product, seeds

BASE = "spiral"
COMPARE = {"both": "lower"}  # the mean distance of samples to the data, and of the data to samples
BASELINE = {"diffusion.prediction_type": "v", "diffusion.schedule": "cosine", "diffusion.weighting": "simple"}


def sweep():
    axes = {
        "diffusion.prediction_type": ("eps", "x0", "v"),
        "diffusion.schedule": ("linear", "cosine"),
        "diffusion.weighting": ("simple", "min_snr"),
        "train.steps": (4000,),
    }
    return product(seeds(5), grid(axes))
