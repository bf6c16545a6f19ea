"""jdiff figures: the pictures of the article."""

from __future__ import annotations

import numpy as np
from etils import epath
from jax import numpy as jnp

from jdiff import rng
from jdiff.data.decoding import decode, fit
from jdiff.data.shapes.render import render
from jdiff.data.shapes.world import Scene, Thing
from jdiff.diffusion import process, schedules
from jdiff.images import image_grid, write_image

STEPS = (0, 500, 1000)


def forward(out: str, *, schedule: str, image: str | None) -> epath.Path:
    """An image after 0, 500 and 1000 steps of the forward process.

    Step n of the article is timestep n - 1 of the schedule; step 0 is the clean image.
    """
    if image is None:
        scene = Scene((Thing("star", "red", "large"),), place="centre")
        clean = render(scene, np.random.default_rng(0), 128)
    else:
        clean = fit(decode(epath.Path(image).read_bytes()), 256)
    x0 = jnp.asarray(clean, jnp.float32)[None].repeat(len(STEPS), 0) / 127.5 - 1
    eps = rng.normal(rng.image_keys(jnp.zeros(1)), x0.shape[1:]).repeat(len(STEPS), 0)
    rates = schedules.make(schedule).rates(np.array(STEPS) - 1)
    level = type(rates)(jnp.asarray(rates.alpha, jnp.float32), jnp.asarray(rates.sigma, jnp.float32))
    noised = np.asarray(process.diffuse(x0, eps, level))
    pictures = np.round((noised.clip(-1, 1) + 1) * 127.5).astype(np.uint8)
    about = {"figure": "forward", "schedule": schedule, "steps": STEPS, "image": image or "a large red star"}
    path = write_image(epath.Path(out) / "forward.png", image_grid(pictures, columns=len(STEPS)), about)
    print(f"wrote {path}, the image after {', '.join(map(str, STEPS))} steps of the {schedule} schedule")
    return path
