"""Guidance scale against prompt accuracy and diversity, with the sampler of `make demo`.

Aim     [cfg fig. 4] in miniature: up to some scale prompt accuracy rises, and diversity falls.
Run     jdiff sweep shapes_guidance --workdir=sweeps/shapes_guidance, after make demo
Takes   5 to 9 minutes on 2 CPU cores.
Seen    2026-11-27, 16 seeds: prompt_accuracy .89 at 1, .97 at 3, .60 at 8; diversity falls to 2 and rises from 5 on.
        All results are in docs/evidence/ablations.md.
"""

from jdiff.sweep import grid, product, seeds

RUN = "runs/shapes"
COMPARE = {"prompt_accuracy": "higher", "diversity": "higher"}
BASELINE = {"sample.guidance_scale": 1.0}
MEASURE = dict(num=32)


def sweep():
    scales = (0.0, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0)
    return product(seeds(16, "measure.seed"), grid({"sample.guidance_scale": scales}))
