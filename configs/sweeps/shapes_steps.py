"""Sampling steps and the noise of each step (eta), with the sampler of `make demo`.

Aim     [ddim table 1] in miniature: with few steps less noise is better, with many it hardly matters.
Run     jdiff sweep shapes_steps --workdir=sweeps/shapes_steps, after make demo
Takes   about 12 minutes on 2 CPU cores.
Seen    2026-11-27, 16 seeds: no effect of noise is distinguishable at any number of steps; 2 steps .71, 3 .95, 50 .97.
        All results are in docs/evidence/ablations.md.
"""

from jdiff.sweep import grid, product, seeds

RUN = "runs/shapes"
COMPARE = {"prompt_accuracy": "higher"}
BASELINE = {"sample.eta": 0.0}  # at the same number of steps
MEASURE = dict(num=32)


def sweep():
    return product(
        seeds(16, "measure.seed"), grid({"sample.eta": (0.0, 0.5, 1.0), "sample.steps": (2, 3, 5, 10, 20, 50)})
    )
