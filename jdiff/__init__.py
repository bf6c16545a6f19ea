"""jdiff learns to draw what a sentence says.

The way through, each arrow a package of its own:

    captioned images -> batches -> text tower -> diffusion loss -> train step -> checkpoint -> sampler -> image
        data/           data/      models/       diffusion/       training/     training/     diffusion/  sample.py

``build`` turns a config into these parts, ``cli`` has the verbs, and ``load`` brings a trained run back, or somebody
else's weights:

    jdiff.load("runs/shapes").sample(["a red circle"], guidance_scale=4, seed=0)
"""

from jdiff.runtime import setup as setup  # public: jdiff.setup(), to call before JAX starts

__version__ = "0.1.0"


def load(path, **hints):
    """A run or somebody's weights, ready to use: a ``Sampler`` of what draws, an ``Encoder`` of a dual encoder.

    hints: what somebody's files do not say, such as activation="quick_gelu"; see ``interop.pretrained.Hints``.
    """
    setup()
    from jdiff import runs
    from jdiff.interop.pretrained import Hints

    return runs.load(path, Hints(**hints))
