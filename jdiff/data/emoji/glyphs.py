"""The Noto Color Emoji font: find its file, check that it can be used, and draw one glyph as an image.

The font is free (SIL Open Font License) and is not shipped with jdiff. It holds one bitmap per
glyph, 136 x 128 pixels, in one size only.
"""

from __future__ import annotations

import io
import subprocess

import numpy as np
from etils import epath
from PIL import Image, ImageDraw, ImageFont, features

FAMILY = "Noto Color Emoji"
POINTS = 109  # the one size of its bitmaps
CELL = (136, 128)  # their width and height in pixels
SAMPLE = "\U0001f600"  # grinning face, in every version of the font
UNKNOWN_FLAG = (
    "\U0001f1ff\U0001f1ff"  # letters ZZ, never a country; drawn as a question mark, as are flags newer than the font
)
DEBIAN_PATH = "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"  # for machines without fontconfig
GET_FONT = (
    "install it (Debian, Ubuntu: apt-get install fonts-noto-color-emoji) or set config.data.font to NotoColorEmoji.ttf"
)


def find_font(path: epath.PathLike | None = None) -> epath.Path:
    """The font's file: ``path`` if given, else the one that fontconfig or Debian's default path has.

    Raises FileNotFoundError with instructions to install it.
    """
    if path is not None:
        if not epath.Path(path).is_file():
            raise FileNotFoundError(f"config.data.font is {path}, where there is no file: {GET_FONT}.")
        return epath.Path(path)
    try:
        font_files = subprocess.run(
            ["fc-list", "--format", "%{file}\n", FAMILY], capture_output=True, text=True, timeout=60, check=True
        ).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        font_files = []
    candidates = [file for file in [*sorted(font_files), DEBIAN_PATH] if file and epath.Path(file).is_file()]
    if not candidates:
        raise FileNotFoundError(f"The font {FAMILY} was not found on this machine: {GET_FONT}.")
    return epath.Path(candidates[0])


def load_font(data: bytes, *, sequences: bool) -> ImageFont.FreeTypeFont:
    """Open the font for drawing, and check that it draws in colour.

    sequences: whether to join code points into one glyph (flags, families, skin tones), which needs the libraries
        raqm and fribidi.
    Raises ValueError.
    """
    if sequences and not features.check("raqm"):
        raise ValueError(
            "Pillow cannot join emoji sequences here, because libraqm or fribidi is missing: "
            "install fribidi (Debian, Ubuntu: apt-get install libfribidi0) or set config.data.sequences to False."
        )
    layout = ImageFont.Layout.RAQM if sequences else ImageFont.Layout.BASIC
    try:
        font = ImageFont.truetype(io.BytesIO(data), POINTS, layout_engine=layout)
    except OSError as error:
        raise ValueError(f"The font has no bitmaps of size {POINTS} ({error}): {GET_FONT}.") from error
    sample = draw_glyph(font, SAMPLE)
    if sample is None or np.ptp(sample.astype(np.int16), axis=2).max() < 64:
        raise ValueError(f"The font draws no colours, as {FAMILY} with its bitmaps does: {GET_FONT}.")
    return font


def draw_glyph(font: ImageFont.FreeTypeFont, characters: str) -> np.ndarray | None:
    """Draw an emoji on white, or return None if the font has no single glyph for it.

    Characters that the font cannot join are drawn side by side, wider than one cell; a missing character has no height.

    Returns (128, 136, 3) uint8.
    """
    if font.getbbox(characters) != (0, 0, *CELL):
        return None
    picture = Image.new("RGB", CELL, "white")
    ImageDraw.Draw(picture).text((0, 0), characters, font=font, embedded_color=True)
    return np.array(picture)
