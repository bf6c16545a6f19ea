"""Fine-tune pretrained Stable Diffusion weights on your own captioned images; --config.data.path names their folder.

Aim     images in the style of the folder's that follow their captions.
Run     jdiff prepare --config=tune_t2i && jdiff train --config=tune_t2i --workdir=runs/tuned
Takes   a GPU of 40 GB or more in float32.
Expect  the folder's style within a few hundred steps; the text tower keeps its weights unless ``frozen=False``.
Seen
"""

from ml_collections import ConfigDict

from jdiff.config import bases


def get_config(variant: str = "") -> ConfigDict:
    config = bases.text_to_image()
    config.data = dict(source="folder", image_size=512, crop="center", max_rejected=0.05)
    config.text = dict(init_from="weights/stable-diffusion", frozen=True)
    # Not the base's: the network, its noise schedule and its solver are those of the weights.
    config.denoiser = dict(init_from="weights/stable-diffusion", frozen=False)
    config.diffusion = dict(weighting="min_snr", caption_dropout=0.1)
    config.optimizer = dict(learning_rate=1e-5, warmup_steps=100, weight_decay=0.01)
    config.ema.decays = (0.999,)
    config.train.update(batch_size=16, steps=5000)
    config.sample = dict(steps=50, guidance_scale=7.5)
    return bases.variant(config, variant, data=dict(image_size=64))
