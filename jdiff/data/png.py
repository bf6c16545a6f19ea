"""What a PNG holds beside its pixels: texts and profiles of any size, gamma and primaries."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image, PngImagePlugin

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_PROFILE = 2**22  # bytes of a colour profile; more is not decompressed
TEXT_CHUNKS = (b"tEXt", b"zTXt", b"iTXt")
# White, red, green and blue of sRGB as (x, y), in the order of cHRM.
SRGB_CHROMATICITIES = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)
# XYZ to the responses of the eye's cones, in which whites are adapted.
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
ROWS = 256  # whose colours are converted at a time, to bound memory
PngImagePlugin.MAX_TEXT_CHUNK = max(PngImagePlugin.MAX_TEXT_CHUNK, MAX_PROFILE)


def without_texts(data: bytes) -> bytes:
    """A PNG without its texts, and without a profile of more than ``MAX_PROFILE`` bytes; other data unchanged.

    Pillow refuses a PNG whose decompressed texts or profile have more than a megabyte, as those of some drawing
    programs have.
    """
    if not data.startswith(SIGNATURE):
        return data
    parts, end = [SIGNATURE], len(SIGNATURE)
    for kind, content, chunk in _chunks(data):
        end += len(chunk)
        if kind == b"iCCP":
            decompressor = zlib.decompressobj()
            try:
                decompressor.decompress(content.partition(b"\0")[2][1:], MAX_PROFILE)
            except zlib.error:
                continue
            if decompressor.unconsumed_tail:
                continue
        if kind not in TEXT_CHUNKS:
            parts.append(chunk)
    return b"".join([*parts, data[end:]])


def from_gamma(image: Image.Image, gamma: float | None, chromaticities: tuple[float, ...] | None) -> Image.Image:
    """An RGB image whose values are linear light to the power of ``gamma``, in sRGB.

    gamma: the exponent of gAMA, None for sRGB's curve; 1 / 2.2 within 5 % is taken for that curve, too, which it stands
        for [png gAMA].
    chromaticities: of white, red, green and blue, as cHRM has them; None for sRGB's.
    """
    if gamma is not None and (gamma <= 0 or abs(gamma * 2.2 - 1) < 0.05):
        gamma = None
    to_srgb = _primaries_to_srgb(chromaticities)
    if gamma is None and to_srgb is None:
        return image
    values = np.arange(256) / 255
    linear = (
        values ** (1 / gamma)
        if gamma
        else np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    )
    pixels = np.array(image)
    for start in range(0, len(pixels), ROWS):
        light = linear.astype(np.float32)[pixels[start : start + ROWS]]
        if to_srgb is not None:
            light = np.clip(light @ to_srgb.T, 0, 1)
        encoded = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
        pixels[start : start + ROWS] = np.rint(encoded * 255)
    return Image.fromarray(pixels)


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Kind, content and all bytes of a PNG's chunks, up to the first that is cut off."""
    start = len(SIGNATURE)
    while start + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, start)
        end = start + 12 + length
        if end > len(data):
            return
        yield kind, data[start + 8 : end - 4], data[start:end]
        start = end


def _primaries_to_srgb(chromaticities: tuple[float, ...] | None) -> np.ndarray | None:
    """The matrix (3, 3) from linear RGB of these primaries to that of sRGB, white to white; None: unchanged."""
    if chromaticities is None or np.allclose(chromaticities, SRGB_CHROMATICITIES, atol=2e-3):
        return None
    try:
        (to_xyz, white), (srgb_to_xyz, srgb_white) = map(_rgb_to_xyz, (chromaticities, SRGB_CHROMATICITIES))
        cones = (BRADFORD @ srgb_white) / (BRADFORD @ white)
        adaptation = np.linalg.solve(BRADFORD, cones[:, None] * BRADFORD)
        return (np.linalg.solve(srgb_to_xyz, adaptation @ to_xyz)).astype(np.float32)
    except (np.linalg.LinAlgError, ZeroDivisionError):
        return None  # primaries on one line: viewers ignore them, too


def _rgb_to_xyz(chromaticities: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The matrix (3, 3) from linear RGB to XYZ, and the XYZ of white [png cHRM]."""
    points = zip(chromaticities[::2], chromaticities[1::2])
    white, *primaries = (np.array([x / y, 1, (1 - x - y) / y]) for x, y in points)
    columns = np.stack(primaries, axis=1)
    return columns * np.linalg.solve(columns, white), white
