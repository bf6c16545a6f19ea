"""A dual encoder trained on your own captioned images; --config.data.path names their folder.

Aim     captions retrieve their images; the recall depends on the number of images.
Run     jdiff prepare --config=folder_clip && jdiff train --config=folder_clip --workdir=runs/mine_clip
Takes   about an hour on 2 CPU cores, minutes on a GPU.
Expect  the loss falls below log(256), 5.5, within the first hundred steps.
Seen
"""

from ml_collections import ConfigDict


def get_config(variant: str = "") -> ConfigDict:
    config = ConfigDict()
    config.data = dict(source="folder", image_size=64, crop="center", max_rejected=0.05)
    config.tokenizer = dict(vocab_size=4096, context_length=48)
    config.text = dict(width=256, layers=4, heads=4, embed_dim=512, activation="gelu", causal=False)
    config.vision = dict(patch_size=8, width=256, layers=4, heads=4, embed_dim=512, activation="gelu")
    config.encoder = dict(use_logit_bias=False)
    config.contrastive = dict(loss="softmax", form="dense", chunk=0)
    config.optimizer = dict(learning_rate=1e-3, warmup_steps=200, weight_decay=0.05)
    config.ema = dict(decays=(), widths=(), snapshot_every=0)
    config.mesh = dict(data=-1)
    config.train = dict(
        task="contrastive", batch_size=256, steps=4000, seed=0, log_every=20, save_every=200, sample_every=400
    )
    if variant == "tiny":
        config.text.update(width=32, layers=1, heads=2, embed_dim=32)
        config.vision.update(width=32, layers=1, heads=2, embed_dim=32)
        config.train.update(batch_size=8, steps=2, log_every=1, save_every=1, sample_every=1)
    elif variant:
        raise ValueError(f"'{variant}' is no variant of this config; there is only 'tiny'")
    return config
