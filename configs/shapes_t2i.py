"""Text-to-image on all of the shapes world: two objects in a relation, counts and single objects.

Aim     both objects right >= 90 %, prompt accuracy for two objects >= 75 %, on unseen scenes.
Run     jdiff train --config=shapes_t2i --workdir=runs/shapes_t2i, after shapes_clip
Takes   82 minutes on 2 CPU cores (0.45 s a step; 0.505 s measured once).
Expect  relations and colours first, shapes last: prompt accuracy for pairs 66 % after 3,500 steps.
Seen    2026-11-26, 256 prompts, guidance scale 2: both objects 94 % (89 to 96 %), prompt accuracy for pairs 93 % (88 to
        96 %), places of single things 100 %, counts 77 %. benchmarks/RESULTS.md has ablations.
"""

from ml_collections import ConfigDict


def get_config(variant: str = "") -> ConfigDict:
    config = ConfigDict()
    config.data = dict(
        source="shapes",
        world=("one", "count", "relation"),
        image_size=32,
        partial=0.125,
        group=4,
        train=60_000,
        test=2_000,
        compositions=500,
    )
    config.text = dict(init_from="runs/shapes_clip_full", clip_skip=3)
    config.denoiser = dict(
        channels=(64, 96, 128),
        attention=(False, True, True),
        heads=(1, 4, 4),
        blocks=1,
        groups=16,
        patch_size=2,
        pooled=True,
        scale_shift_norm=True,
    )
    config.diffusion = dict(
        schedule="cosine",
        timesteps=1000,
        prediction_type="x0",
        weighting="root_snr",
        timestep_sampling="linear",
        caption_dropout=0.1,
    )
    config.optimizer = dict(learning_rate=1.2e-3, warmup_steps=200, weight_decay=0.01, clip_norm=0.1)
    config.ema = dict(decays=(0.998,), widths=(), snapshot_every=0)
    config.mesh = dict(data=-1)
    config.train = dict(
        task="text_to_image",
        batch_size=32,
        steps=11_000,
        seed=0,
        log_every=50,
        save_every=1000,
        sample_every=1000,
    )
    config.sample = dict(solver="ddim", steps=60, spacing="trailing", eta=1.0, guidance_scale=2.0)
    if variant == "tiny":
        config.data.update(train=64, test=32, compositions=16)
        config.text.clip_skip = 1
        config.denoiser.update(channels=(16, 32), attention=(False, True), heads=(1, 2), blocks=1, groups=8)
        config.train.update(batch_size=8, steps=2, log_every=1, save_every=1, sample_every=1)
        config.sample.update(steps=2)
    elif variant:
        raise ValueError(f"'{variant}' is no variant of this config; there is only 'tiny'")
    return config
