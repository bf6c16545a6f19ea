"""jdiff learns to draw what a sentence says.

The way through, each arrow a package of its own:

    captioned images -> batches -> text tower -> diffusion loss -> train step -> checkpoint -> sampler -> image
        data/           data/      models/       diffusion/       training/     training/     diffusion/  sample.py

``build`` turns a config into these parts, ``cli`` has the verbs, and ``load`` brings a trained run back:

    jdiff.load("runs/shapes").sample(["a red circle"], guidance_scale=4, seed=0)
"""

__version__ = "0.1.0"


def load(workdir):
    """A trained run, ready to use: a ``Sampler`` of a text-to-image run, an ``Encoder`` of a contrastive one."""
    from jdiff import build

    return build.load(workdir)
