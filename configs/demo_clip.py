"""The dual encoder of `make demo`, trained on scenes of one object.

Aim     retrieval recall@1 in both directions >= 80 % among 128 unseen scenes.
Run     jdiff prepare --config=demo_clip && jdiff train --config=demo_clip --workdir=runs/shapes_clip
Takes   about 3 minutes on 2 CPU cores.
Expect  recall@1 of 95 % or more after 400 steps.
Seen    2026-11-25: recall@1 100 % text to image, 100 % image to text; 576 of 576 analogies right.
"""

from ml_collections import ConfigDict

from jdiff.config import bases


def get_config(variant: str = "") -> ConfigDict:
    config = bases.contrastive()
    config.data = dict(
        source="shapes", world=("one",), image_size=32, partial=0.25, train=20_000, test=1_000, compositions=500
    )
    config.tokenizer = dict(vocab_size=512, context_length=16)
    config.text = dict(width=128, layers=3, heads=2, embed_dim=512, activation="gelu", causal=False)
    config.vision = dict(patch_size=8, width=128, layers=4, heads=2, embed_dim=512, activation="gelu")
    config.optimizer = dict(learning_rate=1e-3, warmup_steps=50, weight_decay=0.05)
    config.train.update(batch_size=128, steps=400, sample_every=200)
    return bases.variant(config, variant, data=dict(train=64, test=32, compositions=16))
