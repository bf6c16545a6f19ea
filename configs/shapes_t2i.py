"""Text-to-image on all of the shapes world: two objects in a relation, counts and single objects.

Aim     both objects right >= 90 %, prompt accuracy for two objects >= 75 %, on unseen scenes.
Run     jdiff train --config=shapes_t2i --workdir=runs/shapes_t2i, after shapes_clip
Takes   82 minutes on 2 CPU cores (0.45 s a step; 0.505 s measured once).
Expect  relations and colours first, shapes last: prompt accuracy for pairs 66 % after 3,500 steps.
Seen    2026-11-26, 256 prompts, guidance scale 2: both objects 94 % (89 to 96 %), prompt accuracy for pairs 93 % (88 to
        96 %), places of single things 100 %, counts 77 %. docs/evidence/recipes.md has ablations.
"""

from ml_collections import ConfigDict

from jdiff.config import bases


def get_config(variant: str = "") -> ConfigDict:
    config = bases.text_to_image()
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
    config.denoiser.update(channels=(64, 96, 128), attention=(False, True, True), heads=(1, 4, 4))
    config.diffusion.timestep_sampling = "linear"
    config.optimizer = dict(learning_rate=1.2e-3, warmup_steps=200, weight_decay=0.01, clip_norm=0.1)
    config.train.steps = 11_000
    config.sample.update(steps=60, eta=1.0, guidance_scale=2.0)
    return bases.variant(config, variant, data=dict(train=64, test=32, compositions=16), text=dict(clip_skip=1))
