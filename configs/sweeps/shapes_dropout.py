"""Caption dropout, which classifier-free guidance depends on; a short run of the sampler of `make demo`.

Aim     [cfg table 1]: a dropout of a tenth is enough, and a half is worse.
Run     jdiff sweep shapes_dropout --workdir=sweeps/shapes_dropout, after make demo
Takes   about 45 minutes on 2 CPU cores with --jobs=2.
Seen    2026-11-27, 5 seeds: prompt_accuracy .33 with no dropout, .22 with a tenth, .08 with a half.
        All results are in docs/evidence/ablations.md.
"""

from jdiff.sweep import grid, product, seeds

BASE = "demo_t2i"
COMPARE = {"prompt_accuracy": "higher", "shape_and_colour": "higher"}
BASELINE = {"diffusion.caption_dropout": 0.1}
MEASURE = dict(num=128)


def sweep():
    short = {"train.steps": (600,), "train.sample_every": (600,), "train.save_every": (600,)}
    return product(seeds(5), grid({"diffusion.caption_dropout": (0.0, 0.1, 0.5), **short}))
