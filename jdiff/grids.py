"""Pictures of many pictures: grids, strips, animations and heat maps. All images are uint8, (h, w, 3)."""

from __future__ import annotations

import io
import json

import numpy as np
from etils import epath
from PIL import Image


def grid(images: np.ndarray, *, columns: int, scale: int = 1, gap: int = 2) -> np.ndarray:
    """Images row by row on light grey, each pixel ``scale`` pixels wide. images: (n, h, w, 3)."""
    n, h, w, _ = images.shape
    rows = -(-n // columns)
    h, w = h * scale, w * scale
    sheet = np.full((rows * (h + gap) + gap, columns * (w + gap) + gap, 3), 208, np.uint8)
    for i, image in enumerate(images):
        top, left = gap + i // columns * (h + gap), gap + i % columns * (w + gap)
        sheet[top : top + h, left : left + w] = image.repeat(scale, 0).repeat(scale, 1)
    return sheet


def scale_for(image_size: int, target: int = 96) -> int:
    """By how much to enlarge small images so that a person sees them."""
    return max(1, round(target / image_size))


def heat(matrix: np.ndarray, *, cell: int = 4) -> np.ndarray:
    """A matrix as a picture, dark for its least and bright for its greatest entry. matrix: (n, m)."""
    from matplotlib import colormaps

    spread = max(float(matrix.max() - matrix.min()), 1e-9)
    colours = colormaps["viridis"]((matrix - matrix.min()) / spread)[..., :3]
    return (colours * 255).round().astype(np.uint8).repeat(cell, 0).repeat(cell, 1)


def write(path: epath.PathLike, image: np.ndarray, about: dict) -> epath.Path:
    """Write a PNG, and beside it a JSON of what alone reproduces it."""
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_encoded([image], "PNG"))
    path.with_suffix(".json").write_text(json.dumps(about, indent=2, ensure_ascii=False) + "\n")
    return path


def write_animation(path: epath.PathLike, frames: np.ndarray, *, milliseconds: int = 80) -> epath.Path:
    """Write frames (n, h, w, 3) as a GIF that rests on its last frame."""
    path = epath.Path(path)
    durations = [milliseconds] * (len(frames) - 1) + [1500]
    path.write_bytes(_encoded(list(frames), "GIF", duration=durations, loop=0))
    return path


def _encoded(frames: list[np.ndarray], kind: str, **options) -> bytes:
    file = io.BytesIO()
    first, *rest = (Image.fromarray(frame) for frame in frames)
    more = {"save_all": True, "append_images": rest} if rest else {}
    first.save(file, kind, **more, **options)
    return file.getvalue()
