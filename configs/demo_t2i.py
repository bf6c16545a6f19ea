"""The text-to-image model of `make demo`: a small U-Net for prompts of one object and its place.

Aim     prompt accuracy >= 90 % on unseen scenes, shape and colour >= 95 %, by the exact reader.
Run     jdiff train --config=demo_t2i --workdir=runs/shapes, after demo_clip
Takes   about 10 minutes on 2 CPU cores (0.22 s a step).
Expect  right places and colours after 400 steps, large shapes after 1,000, small ones last.
Seen    2026-11-25, 256 prompts of 136 unseen scenes, guidance scale 2: prompt accuracy 96 %, shape and
        colour 96 %. benchmarks/RESULTS.md has ablations.
"""

from ml_collections import ConfigDict


def get_config(variant: str = "") -> ConfigDict:
    config = ConfigDict()
    config.data = dict(
        source="shapes", world=("one",), image_size=32, partial=0.25, train=20_000, test=1_000, compositions=500
    )
    config.text = dict(init_from="runs/shapes_clip")
    config.denoiser = dict(
        channels=(48, 48, 64),
        attention=(False, False, False),
        heads=(1, 1, 1),
        blocks=1,
        groups=16,
        patch_size=2,
        pooled=True,
        scale_shift_norm=True,
    )
    config.diffusion = dict(
        schedule="cosine", timesteps=1000, prediction_type="x0", weighting="root_snr", caption_dropout=0.1
    )
    config.optimizer = dict(learning_rate=2.5e-3, warmup_steps=200, weight_decay=0.01)
    config.ema = dict(decays=(0.998,), widths=(), snapshot_every=0)
    config.mesh = dict(data=-1)
    config.train = dict(
        task="text_to_image",
        batch_size=32,
        steps=2600,
        seed=0,
        log_every=50,
        save_every=1000,
        sample_every=1000,
    )
    config.sample = dict(solver="ddim", steps=30, spacing="trailing", eta=0.0, guidance_scale=2.0)
    if variant == "tiny":
        config.data.update(train=64, test=32, compositions=16)
        config.denoiser.update(channels=(16, 32), attention=(False, True), heads=(1, 1), groups=8)
        config.train.update(batch_size=8, steps=2, log_every=1, save_every=1, sample_every=1)
        config.sample.update(steps=2)
    elif variant:
        raise ValueError(f"'{variant}' is no variant of this config; there is only 'tiny'")
    return config
