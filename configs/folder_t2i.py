"""A text-to-image model trained on your own captioned images; --config.data.path names their folder.

Aim     images in the style of the folder's that follow their captions.
Run     jdiff train --config=folder_t2i --workdir=runs/mine, after folder_clip
Takes   hours on 2 CPU cores, minutes on a GPU.
Expect  colours after 1,000 steps, shapes after several thousand.
Seen
"""

from ml_collections import ConfigDict

from jdiff.config import bases


def get_config(variant: str = "") -> ConfigDict:
    config = bases.text_to_image()
    config.data = dict(source="folder", image_size=64, crop="center", max_rejected=0.05)
    config.text = dict(init_from="runs/mine_clip")
    config.denoiser.update(channels=(64, 128, 256), attention=(False, True, True), heads=(1, 2, 4), blocks=2)
    config.optimizer = dict(learning_rate=5e-4, warmup_steps=100, weight_decay=0.01)
    config.train.steps = 20_000
    config.sample.update(steps=50, guidance_scale=4.0)
    return bases.variant(config, variant)
