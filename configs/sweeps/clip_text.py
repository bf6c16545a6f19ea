"""The text tower's depth and the batch of the dual encoder of `make demo`, stopped early.

Aim     [clip sec. 2.4] in miniature: the text tower hardly matters, the batch does.
Run     jdiff sweep clip_text --workdir=sweeps/clip_text
Takes   about 20 minutes on 2 CPU cores.
Seen    2026-11-27, 5 seeds: a batch of 128 finds .94, of 64 .91, of 32 .74; one layer at 128 .73, of one seed .32.
        docs/ablations.md has all of it.
"""

from jdiff.sweep import grid, product, seeds

BASE = "demo_clip"
COMPARE = {"image_to_text@1": "higher", "text_to_image@1": "higher"}
BASELINE = {"text.layers": 3, "train.batch_size": 128}


def sweep():
    short = {"train.steps": (120,), "train.sample_every": (120,), "train.save_every": (120,)}
    return product(seeds(5), grid({"text.layers": (1, 3), "train.batch_size": (32, 64, 128), **short}))
