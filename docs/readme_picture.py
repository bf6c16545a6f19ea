"""Draws README's picture: samples with their prompts, and one sample from noise to image.

``python -m docs.readme_picture [RUN]``, where RUN (default runs/shapes) is a run of `make demo`. The emoji are those of
pictures/emoji_unseen.png, whose run takes an hour.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image

import jdiff
from jdiff.images import BACKGROUND, denoising_strip, image_grid, write_image
from jdiff.runs import directory

PICTURES = Path(__file__).parent / "pictures"
COLUMNS, SIDE = 8, 32  # of a row; pixels of a sample
STRIP_PROMPT = "a large red star in the centre"
EMOJI = (  # the names of the first glyphs held out of training, in the order of emoji_unseen.png
    "woman firefighter, medium-dark skin tone",
    "woman health worker, light skin tone",
    "woman judge, medium-light skin tone",
    "woman cook, medium-dark skin tone",
    "man cook, medium-dark skin tone",
    "man detective, dark skin tone",
    "firefighter, medium-dark skin tone",
    "man teacher, medium-light skin tone",
)


def emoji_samples() -> np.ndarray:
    """The samples in the second row of emoji_unseen.png, below their glyphs. Returns (COLUMNS, SIDE, SIDE, 3)."""
    scale, gap = 2, 2
    picture = np.array(Image.open(PICTURES / "emoji_unseen.png"))
    cell = SIDE * scale + gap
    row = picture[gap + cell : cell + cell : scale]
    return np.stack([row[:, gap + i * cell : (i + 1) * cell : scale] for i in range(COLUMNS)])


def main(run: str) -> None:
    """Write pictures/readme.png, and a JSON file of what reproduces it."""
    jdiff.setup()
    model, examples = jdiff.load(run), directory.saved_task(run).split("test")
    prompts = [examples[i]["captions"][0].decode() for i in range(COLUMNS)]
    shapes = image_grid(model.sample(prompts, seed=0), columns=COLUMNS, scale=3, captions=prompts)
    emoji = image_grid(emoji_samples(), columns=COLUMNS, scale=3, captions=EMOJI)
    _, (noisy, predicted) = model.sample([STRIP_PROMPT], seed=0, trajectory=True)
    strip = denoising_strip(noisy[:, 0], predicted[:, 0], columns=COLUMNS, scale=3)
    sheet = np.concatenate([shapes, emoji, np.full((6, shapes.shape[1], 3), BACKGROUND, np.uint8), strip])
    request = {
        "run": run,
        "prompts": prompts,
        "seed": 0,
        "strip": STRIP_PROMPT,
        "emoji": {"picture": "emoji_unseen.png", "prompts": EMOJI},
    }
    print(f"wrote {write_image(PICTURES / 'readme.png', sheet, request)}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "runs/shapes")
