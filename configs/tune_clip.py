"""Fine-tune pretrained CLIP weights on your own captioned images; --config.data.path names their folder.

Aim     higher retrieval recall than the pretrained model; `jdiff evaluate --images=FOLDER` measures both.
Run     jdiff prepare --config=tune_clip && jdiff train --config=tune_clip --workdir=runs/tuned_clip
Takes   a GPU; ViT-B/32 takes seconds a step on CPU cores.
Expect  the loss falls from the first step; a tower with ``frozen=True`` keeps its pretrained weights.
Seen
"""

from ml_collections import ConfigDict


def get_config(variant: str = "") -> ConfigDict:
    config = ConfigDict()
    config.data = dict(source="folder", image_size=224, crop="clip", max_rejected=0.05)
    config.text = dict(init_from="weights/clip", frozen=False)
    config.vision = dict(init_from="weights/clip", frozen=False)
    config.contrastive = dict(loss="softmax", form="dense", chunk=0)
    config.optimizer = dict(learning_rate=1e-5, warmup_steps=100, weight_decay=0.1)
    config.ema = dict(decays=(), widths=(), snapshot_every=0)
    config.mesh = dict(data=-1)
    config.train = dict(
        task="contrastive", batch_size=256, steps=2000, seed=0, log_every=20, save_every=200, sample_every=400
    )
    if variant == "tiny":
        config.data.image_size = 64
        config.train.update(batch_size=8, steps=2, log_every=1, save_every=1, sample_every=1)
    elif variant:
        raise ValueError(f"'{variant}' is no variant of this config; there is only 'tiny'")
    return config
