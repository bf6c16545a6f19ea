"""Sampling steps and eta (the noise added in each step), for the model of `make demo`.

Aim     [ddim table 1] in miniature: with few steps less noise is better, with many it hardly matters.
Run     jdiff sweep shapes_steps --workdir=sweeps/shapes_steps, after make demo
Takes   about 12 minutes on 2 CPU cores.
Seen    2026-11-27, 16 seeds: eta makes no significant difference at any number of steps; 2 steps .71, 3 .95, 50 .97.
        docs/ablations.md has all results.
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
