"""Figures made of images: captioned grids, denoising strips, heat maps, PNG and GIF files.

All images are uint8 of shape (h, w, 3).
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence

import numpy as np
from etils import epath
from PIL import Image, ImageDraw, ImageFont

from jdiff import storage

BACKGROUND = 208  # light grey, so that images on white keep their edges
PNG_DIGEST = "png_sha256"  # the key of an image's JSON
MIN_FONT_SIZE = 11  # pixels: the smallest that reads well on a screen


def image_grid(
    images: np.ndarray, *, columns: int, scale: int = 1, gap: int = 2, captions: Sequence[str] | None = None
) -> np.ndarray:
    """Arrange images row by row on light grey.

    images: (n, h, w, 3).   scale: each pixel becomes a square of so many pixels.   gap: pixels between cells.
    captions: one for each image, printed beneath it and wrapped to its width. A row is as high as its longest
        caption needs. For wide images the font grows with them.
    Returns (height, width, 3); without captions, columns * (w * scale + gap) + gap pixels wide and as high
        accordingly.
    Raises ``ValueError`` where captions and images differ in number.
    """
    n, h, w, _ = images.shape
    if captions is not None and len(captions) != n:
        raise ValueError(f"captions has {len(captions)} entries for {n} images; expected one for each image")
    h, w = h * scale, w * scale
    font = ImageFont.load_default(max(MIN_FONT_SIZE, w // 24))
    line_height = sum(font.getmetrics())
    lines = [_wrap(caption, font, w) for caption in captions or [""] * n]
    num_lines = [max(map(len, lines[i : i + columns])) for i in range(0, n, columns)]
    row_heights = [h + gap + (count * line_height + gap if count else 0) for count in num_lines]
    tops = gap + np.cumsum([0, *row_heights])
    sheet = np.full((tops[-1], columns * (w + gap) + gap, 3), BACKGROUND, np.uint8)
    for i, image in enumerate(images):
        row, column = divmod(i, columns)
        y, x = tops[row], gap + column * (w + gap)
        sheet[y : y + h, x : x + w] = image.repeat(scale, 0).repeat(scale, 1)
    if not any(num_lines):
        return sheet
    canvas = Image.fromarray(sheet)
    draw = ImageDraw.Draw(canvas)
    for i, caption_lines in enumerate(lines):
        row, column = divmod(i, columns)
        y, x = int(tops[row]) + h + gap, gap + column * (w + gap) + w / 2
        for line in caption_lines:
            draw.text((x, y), line, fill="black", font=font, anchor="ma")  # horizontally centred, y at the ascender
            y += line_height
    return np.array(canvas)


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Split a text into lines of at most ``width`` pixels: between words, and within a word that alone is wider."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
            continue
        lines.append("")
        for letter in word:
            if lines[-1] and font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return lines


def denoising_strip(noisy: np.ndarray, predicted: np.ndarray, *, columns: int = 10, scale: int = 1) -> np.ndarray:
    """Show how one image is sampled: the noisy image x_t above the prediction of x0 that the same step makes from it.

    noisy, predicted: (steps, h, w, 3), in the order of sampling.
    columns: how many of the steps to show, evenly spaced, the first and the last included.
    Returns a grid of two rows.
    Raises ``ValueError`` where the shapes differ.
    """
    if noisy.shape != predicted.shape:
        raise ValueError(f"noisy is of shape {noisy.shape}, predicted of {predicted.shape}; expected the same steps")
    steps = np.linspace(0, len(noisy) - 1, min(columns, len(noisy))).round().astype(int)
    return image_grid(np.concatenate([noisy[steps], predicted[steps]]), columns=len(steps), scale=scale)


def display_scale(image_size: int, target: int = 96) -> int:
    """The factor that enlarges an image of ``image_size`` pixels to about ``target``; at least 1."""
    return max(1, round(target / image_size))


def heatmap(matrix: np.ndarray, *, cell: int = 4) -> np.ndarray:
    """A matrix (n, m) as an image in viridis: dark for its least entry, bright for its greatest."""
    from matplotlib import colormaps

    spread = max(float(matrix.max() - matrix.min()), 1e-9)
    colours = colormaps["viridis"]((matrix - matrix.min()) / spread)[..., :3]
    return (colours * 255).round().astype(np.uint8).repeat(cell, 0).repeat(cell, 1)


def write_image(path: epath.PathLike, image: np.ndarray, metadata: dict) -> epath.Path:
    """Write a PNG, and beside it a JSON file of the metadata that reproduces it, with the PNG's SHA-256."""
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    png = _encode([image], "PNG")
    storage.write_bytes(path, png)
    storage.write_json(path.with_suffix(".json"), {**metadata, PNG_DIGEST: hashlib.sha256(png).hexdigest()})
    return path


def read_metadata(path: epath.PathLike) -> dict | None:
    """The metadata of an image that ``write_image`` wrote; None where a file is missing, damaged or of another image.

    path: of the PNG.
    """
    path = epath.Path(path)
    try:
        metadata = storage.read_json(path.with_suffix(".json"), "", PNG_DIGEST)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except (OSError, storage.DamagedFile):
        return None
    return metadata if metadata.pop(PNG_DIGEST) == digest else None


def write_animation(path: epath.PathLike, frames: np.ndarray, *, milliseconds: int = 80) -> epath.Path:
    """Write frames (n, h, w, 3) as a GIF that rests on its last frame for 1.5 seconds."""
    path = epath.Path(path)
    durations = [milliseconds] * (len(frames) - 1) + [1500]
    storage.write_bytes(path, _encode(list(frames), "GIF", duration=durations, loop=0))
    return path


def _encode(frames: list[np.ndarray], image_format: str, **options) -> bytes:
    file = io.BytesIO()
    first, *rest = (Image.fromarray(frame) for frame in frames)
    animation = {"save_all": True, "append_images": rest} if rest else {}
    first.save(file, image_format, **animation, **options)
    return file.getvalue()
