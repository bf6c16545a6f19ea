"""Text tower depth and batch size of the dual encoder of `make demo`, stopped early.

Aim     [clip sec. 2.4] in miniature: the size of the text tower matters little, the batch size much.
Run     jdiff sweep clip_text --workdir=sweeps/clip_text
Takes   about 20 minutes on 2 CPU cores.
Seen    2026-11-27, 5 seeds, text_to_image@1: batch size 128 .94, 64 .91, 32 .74; one layer at 128 .73, one of its
        seeds .32.
        All results are in docs/evidence/ablations.md.
"""

from jdiff.sweep import grid, product, seeds

BASE = "demo_clip"
COMPARE = {"image_to_text@1": "higher", "text_to_image@1": "higher"}
BASELINE = {"text.layers": 3, "train.batch_size": 128}


def sweep():
    short = {"train.steps": (120,), "train.sample_every": (120,), "train.save_every": (120,)}
    return product(seeds(5), grid({"text.layers": (1, 3), "train.batch_size": (32, 64, 128), **short}))
