"""A dual encoder trained on your own captioned images; --config.data.path names their folder.

Aim     captions retrieve their images; the recall depends on the number of images.
Run     jdiff prepare --config=folder_clip && jdiff train --config=folder_clip --workdir=runs/mine_clip
Takes   about an hour on 2 CPU cores, minutes on a GPU.
Expect  the loss falls below log(256), 5.5, within the first hundred steps.
Seen
"""

from ml_collections import ConfigDict

from jdiff.config import bases


def get_config(variant: str = "") -> ConfigDict:
    config = bases.contrastive()
    config.data = dict(source="folder", image_size=64, crop="center", max_rejected=0.05)
    config.tokenizer = dict(vocab_size=4096, context_length=48)
    config.text = dict(width=256, layers=4, heads=4, embed_dim=512, activation="gelu", causal=False)
    config.vision = dict(patch_size=8, width=256, layers=4, heads=4, embed_dim=512, activation="gelu")
    config.optimizer = dict(learning_rate=1e-3, warmup_steps=200, weight_decay=0.05)
    config.train.update(batch_size=256, steps=4000)
    return bases.variant(config, variant)
