"""Fine-tune pretrained CLIP weights on your own captioned images; --config.data.path names their folder.

Aim     higher retrieval recall than the pretrained model; `jdiff evaluate --images=FOLDER` measures both.
Run     jdiff prepare --config=tune_clip && jdiff train --config=tune_clip --workdir=runs/tuned_clip
Takes   a GPU; ViT-B/32 takes seconds a step on CPU cores.
Expect  the loss falls from the first step; a tower with ``frozen=True`` keeps its pretrained weights.
Seen
"""

from ml_collections import ConfigDict

from jdiff.config import bases


def get_config(variant: str = "") -> ConfigDict:
    config = bases.contrastive()
    del config.encoder  # as that of the weights
    config.data = dict(source="folder", image_size=224, crop="clip", max_rejected=0.05)
    config.text = dict(init_from="weights/clip", frozen=False)
    config.vision = dict(init_from="weights/clip", frozen=False)
    config.optimizer = dict(learning_rate=1e-5, warmup_steps=100, weight_decay=0.1)
    config.train.update(batch_size=256, steps=2000)
    return bases.variant(config, variant, data=dict(image_size=64))
