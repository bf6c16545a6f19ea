"""Caption dropout in training, which classifier-free guidance needs, in short runs of the model of `make demo`.

Aim     [cfg table 1]: dropping a tenth of the captions is enough, and half is worse.
Run     jdiff sweep shapes_dropout --workdir=sweeps/shapes_dropout, after make demo
Takes   about 45 minutes on 2 CPU cores with --jobs=2.
Seen    2026-11-27, 5 seeds: prompt_accuracy .33 without dropout, .22 with a tenth, .08 with half.
        docs/ablations.md has all results.
"""

from jdiff.sweep import grid, product, seeds

BASE = "demo_t2i"
COMPARE = {"prompt_accuracy": "higher", "shape_and_colour": "higher"}
BASELINE = {"diffusion.caption_dropout": 0.1}
MEASURE = dict(num=128)


def sweep():
    short = {"train.steps": (600,), "train.sample_every": (600,), "train.save_every": (600,)}
    return product(seeds(5), grid({"diffusion.caption_dropout": (0.0, 0.1, 0.5), **short}))
