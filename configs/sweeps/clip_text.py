"""Text tower depth and batch size of the dual encoder of `make demo`, in short training runs.

Aim     [clip sec. 2.4] in miniature: the size of the text tower hardly matters, the batch size does.
Run     jdiff sweep clip_text --workdir=sweeps/clip_text
Takes   about 20 minutes on 2 CPU cores.
Seen    2026-11-27, 5 seeds: recall .94 at a batch of 128, .91 at 64, .74 at 32; one layer at 128 .73, with one seed
        at .32. docs/ablations.md has all results.
"""

from jdiff.sweep import grid, product, seeds

BASE = "demo_clip"
COMPARE = {"image_to_text@1": "higher", "text_to_image@1": "higher"}
BASELINE = {"text.layers": 3, "train.batch_size": 128}


def sweep():
    short = {"train.steps": (120,), "train.sample_every": (120,), "train.save_every": (120,)}
    return product(seeds(5), grid({"text.layers": (1, 3), "train.batch_size": (32, 64, 128), **short}))
