"""A spiral of points in the plane, small enough to see every step: why sampling adds noise again.

Aim     samples of DDPM and DDIM lie on all of the curve: 0.01 or less from them to it and from it to them, on the mean.
Run     jdiff figures spiral --config=spiral
Takes   about a minute on 2 CPU cores.
Expect  0.01 both ways after 8,000 steps; without its noise DDPM ends in one place, 0.7 from most of the curve.
Seen    2026-11-26, 49 s: to the data and back, DDPM 0.005 and 0.005, without its noise 0.006 and 0.725, DDIM 0.006
        and 0.005.
"""

from ml_collections import ConfigDict


def get_config(variant: str = "") -> ConfigDict:
    config = ConfigDict()
    config.data = dict(count=2000, turns=2.0)
    config.mlp = dict(width=128, layers=3)
    config.diffusion = dict(schedule="cosine", timesteps=1000, prediction_type="v", weighting="simple")
    config.optimizer = dict(learning_rate=3e-3, warmup_steps=200, weight_decay=0.0)
    config.train = dict(task="points", batch_size=512, steps=8_000, seed=0)
    config.ema = dict(decays=(0.999,))
    config.sample = dict(steps=200, guidance_scale=1.0, clip=False)
    if variant == "tiny":
        config.train.update(steps=2)
        config.sample.update(steps=2)
    elif variant:
        raise ValueError(f"'{variant}' is no variant of this config; there is only 'tiny'")
    return config
