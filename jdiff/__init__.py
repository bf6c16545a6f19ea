"""jdiff trains text-to-image diffusion models and CLIP-style encoders in JAX.

The way through, each arrow a package of its own:

    captioned images -> batches -> text tower -> diffusion loss -> update -> checkpoint -> sampler -> image
        data/           data/      models/       diffusion/       training/  training/    inference/

``config`` parses a config, ``tasks`` has what it trains, ``cli`` the commands, and ``load`` opens a trained run, or
pretrained weights:

    jdiff.load("runs/shapes").sample(["a red circle"], guidance_scale=4, seed=0)
"""

from jdiff.runtime import compilation_cache
from jdiff.runtime import setup as setup  # public: jdiff.setup(), to call before JAX starts

__version__ = "0.1.0"


def load(path, *, ema=None, **hints):
    """A run or pretrained weights, ready to use: a ``Sampler`` that draws images, or a ``DualEncoderModel``.

    ema: which EMA of a run's parameters to use: one of config.ema, "width=W" (post-hoc), or "none".
    hints: what the files of pretrained weights lack, such as activation="quick_gelu"; see ``interop.pretrained.Hints``.
    """
    compilation_cache.enable()
    from jdiff.interop.pretrained import Hints
    from jdiff.runs import directory

    return directory.load(path, Hints(**hints), ema)
