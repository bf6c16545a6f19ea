"""A text-to-image model trained on your own captioned images; --config.data.path names their folder.

Aim     images in the style of the folder's that follow their captions.
Run     jdiff train --config=folder_t2i --workdir=runs/mine, after folder_clip
Takes   hours on 2 CPU cores, minutes on a GPU.
Expect  colours after 1,000 steps, shapes after several thousand.
Seen
"""

from ml_collections import ConfigDict


def get_config(variant: str = "") -> ConfigDict:
    config = ConfigDict()
    config.data = dict(source="folder", image_size=64, crop="center", max_rejected=0.05)
    config.text = dict(init_from="runs/mine_clip")
    config.denoiser = dict(
        channels=(64, 128, 256),
        attention=(False, True, True),
        heads=(1, 2, 4),
        blocks=2,
        groups=16,
        patch_size=2,
        pooled=True,
        scale_shift_norm=True,
    )
    config.diffusion = dict(
        schedule="cosine", timesteps=1000, prediction_type="x0", weighting="root_snr", caption_dropout=0.1
    )
    config.optimizer = dict(learning_rate=5e-4, warmup_steps=100, weight_decay=0.01)
    config.ema = dict(decays=(0.998,), widths=(), snapshot_every=0)
    config.mesh = dict(data=-1)
    config.train = dict(
        task="text_to_image",
        batch_size=32,
        steps=20000,
        seed=0,
        log_every=50,
        save_every=1000,
        sample_every=1000,
    )
    config.sample = dict(solver="ddim", steps=50, spacing="trailing", eta=0.0, guidance_scale=4.0)
    if variant == "tiny":
        config.denoiser.update(channels=(16, 32), attention=(False, True), heads=(1, 2), blocks=1, groups=8)
        config.train.update(batch_size=8, steps=2, log_every=1, save_every=1, sample_every=1)
        config.sample.update(steps=2)
    elif variant:
        raise ValueError(f"'{variant}' is no variant of this config; there is only 'tiny'")
    return config
