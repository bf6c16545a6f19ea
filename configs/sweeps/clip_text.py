"""The text tower's depth and the batch of the dual encoder of `make demo`, stopped early.

Aim     [clip sec. 2.4 and fig. 8] in miniature: the text tower hardly matters, the batch does.
Run     jdiff sweep clip_text --workdir=sweeps/clip_text
"""

from jdiff.sweep import grid, product, seeds

BASE = "demo_clip"
COMPARE = {"image_to_text@1": "higher", "text_to_image@1": "higher"}
BASELINE = {"text.layers": 3, "train.batch_size": 128}


def sweep():
    short = {"train.steps": (120,), "train.sample_every": (120,), "train.save_every": (120,)}
    return product(seeds(5), grid({"text.layers": (1, 3), "train.batch_size": (32, 64, 128), **short}))
