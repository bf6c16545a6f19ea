"""Bytes to pixels: the picture a person sees when the file is opened, as sRGB on white.

A file stores more than its pixels: which way the camera was held, a colour profile, see-through
parts, inverted inks, sixteen bits. A viewer applies them all, and so does ``decode``, in this order:

1. one frame, turned the way up that EXIF says, at 8 bits a channel (16 bits are scaled, not clipped);
2. the profile's colours to sRGB, because white below means sRGB's white; of a PNG without a profile, those of its
   gamma and primaries (gAMA, cHRM);
3. see-through parts over white, with straight alpha: c = alpha * colour + (1 - alpha) * white.

What is stored beside the pixels never refuses an image: a PNG's texts are not read, and a broken or huge profile is
ignored.

Whatever cannot be read becomes ``Undecodable`` with one sentence, so that one bad file in a million
is a line in a report and not the end of a night's work.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import re

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageOps

from jdiff.data import png

MAX_PIXELS = 2**26  # 8192 x 8192: above a camera's 50 megapixels, below Pillow's own limit

# What people keep photographs and drawings in. Pillow opens more, among them formats that start
# other programs (EPS) or that have no signature, so that noise would pass for an image (TGA).
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", "AVIF", "PPM", "ICO", "QOI")

# Formats that a package of the extra `formats` reads, by the brand or signature at the start of a file.
EXTRA_FORMATS = {
    "HEIF": (rb".{4}ftyp(heic|heix|hevc|hevx|heim|heis|mif1|msf1)(?!.*avif)", "pillow_heif"),
    "JXL": (rb"\xff\x0a|\x00\x00\x00\x0cJXL ", "pillow_jxl"),
}


# Orientations of EXIF by where they put the last column and row, and whether they exchange the axes.
LAST_COLUMN_LEFT, LAST_ROW_TOP, TURNED_BY_90 = (2, 3, 6, 7), (3, 4, 7, 8), (5, 6, 7, 8)
Box = tuple[float, float, float, float]  # left, top, right and bottom, in pixels


class Undecodable(ValueError):
    """Bytes that are no usable image; the message is one sentence that says why."""


def decode(data: bytes, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Read an image file's bytes as the picture a person sees.

    max_pixels: a larger picture is refused from its header, before memory is spent on it. At most
        Pillow's own limit (89 million) is of use, which is checked as well.
    Returns (h, w, 3) uint8, sRGB.
    Raises Undecodable.
    """
    try:
        return np.array(_decode(data, max_pixels)[0])
    except MemoryError as error:
        raise Undecodable("The image needs more memory than there is.") from error


def decode_square(data: bytes, size: int, *, crop: str = "center", max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Read an image file's bytes as a square of ``size`` pixels: ``decode``, then ``fit``, whose crops these are.

    For the crops that scale down roughly first, large JPEGs are decoded at 1/2, 1/4 or 1/8, but twice the square's edge
    at least: much faster, and a pixel differs by a few of 255.   Returns (size, size, 3) uint8, sRGB.
    Raises Undecodable.
    """
    try:
        image, box = _decode(data, max_pixels, 2 * size if crop in ROUGH_CROPS else None)
        return np.array(image if box == (0, 0, size, size) else CROPS[crop](image, size, box))
    except MemoryError as error:
        raise Undecodable("The image needs more memory than there is.") from error


def _decode(data: bytes, max_pixels: int, min_side: int | None = None) -> tuple[Image.Image, Box]:
    """The picture a person sees, and which part of its pixels is image.

    min_side: no edge of a JPEG that is decoded at a fraction becomes shorter. Its last column and row may then be image
        in part.
    """
    if not data:
        raise Undecodable("The file is empty.")
    image = _open(png.without_texts(data))
    width, height = image.size
    if width < 1 or height < 1:
        raise Undecodable(f"The image is {width} x {height} pixels: it has nothing to show.")
    if width * height > max_pixels:
        raise Undecodable(
            f"The header claims {width} x {height} pixels, above the {max_pixels} of config.data.max_pixels."
        )
    try:
        if min_side is not None and min_side < min(width, height):
            image.draft(None, tuple(-(-edge * min_side // min(width, height)) for edge in (width, height)))
        fraction = round(width / image.width)
        image.load()
        orientation = _turn_upright(image)
        box: Box = (0, 0, *image.size)
        if fraction > 1:
            sides = (width / fraction, height / fraction)
            sides = sides[::-1] if orientation in TURNED_BY_90 else sides
            x = image.width - sides[0] if orientation in LAST_COLUMN_LEFT else 0
            y = image.height - sides[1] if orientation in LAST_ROW_TOP else 0
            box = (x, y, x + sides[0], y + sides[1])
        return _on_white(image), box
    except (Undecodable, MemoryError):
        raise
    except Exception as error:  # a plugin raises whatever its parser trips over in bytes from anywhere
        raise Undecodable(f"The {image.format} data is truncated or broken: {_sentence(error)}") from error


def _open(data: bytes) -> Image.Image:
    try:
        for name, (signature, module) in EXTRA_FORMATS.items():
            if re.match(signature, data[:64], re.DOTALL):
                return _open_with(name, module, data)
        return Image.open(io.BytesIO(data), formats=AVAILABLE)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise Undecodable(f"The header claims too many pixels: {_sentence(error)}") from error
    except Image.UnidentifiedImageError as error:
        raise Undecodable(
            f"The {len(data)} bytes are not an image (of {', '.join(AVAILABLE)}), or its header is cut off."
        ) from error
    except Exception as error:
        raise Undecodable(f"The image's header is truncated or broken: {_sentence(error)}") from error


def _open_with(name: str, module: str, data: bytes) -> Image.Image:
    """Open a format that a package adds to Pillow."""
    try:
        plugin = importlib.import_module(module)
    except ImportError as error:
        raise Undecodable(f"The format {name} needs more packages: pip install 'jdiff[formats]'.") from error
    if hasattr(plugin, "register_heif_opener"):
        plugin.register_heif_opener()
    return Image.open(io.BytesIO(data), formats=(name,))


def _on_white(image: Image.Image) -> Image.Image:
    """The rest of step 1, 2 and 3: an RGB image of 8 bits, in sRGB, on white."""
    profile = image.info.get("icc_profile")
    colour, alpha = _eight_bits(image)
    if profile:
        colour = _to_srgb(colour, profile)
    elif image.format == "PNG" and "srgb" not in image.info:
        colour = png.from_gamma(colour.convert("RGB"), image.info.get("gamma"), image.info.get("chromaticity"))
    else:
        colour = colour.convert("RGB")
    if alpha is None:
        return colour
    white = Image.new("RGB", colour.size, "white")
    white.paste(colour, mask=alpha)
    return white


def _eight_bits(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Split any mode into its colour (L, RGB or CMYK, which a profile may still describe) and its alpha."""
    if image.mode == "F":
        values = np.asarray(image)
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
            raise Undecodable("The pixels are floating point numbers outside 0 to 1, so their white is unknown.")
        return Image.fromarray(np.rint(values * 255).astype(np.uint8)), None
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise Undecodable("The pixels are integers beyond 16 bits, so their white is unknown.")
        key = image.info.get("transparency")
        alpha = Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)) if isinstance(key, int) else None
        return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8)), alpha
    if image.mode == "LAB":
        return ImageCms.profileToProfile(image, ImageCms.createProfile("LAB"), SRGB, outputMode="RGB"), None
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        grey = image.mode in ("1", "L", "LA", "La")  # a grey profile describes one channel only
        return (rgba.convert("L") if grey else rgba.convert("RGB")), rgba.getchannel("A")
    if image.mode == "1":
        return image.convert("L"), None
    return (image if image.mode in ("L", "RGB", "CMYK") else image.convert("RGB")), None


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        return ImageCms.profileToProfile(image, source, SRGB, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return image.convert("RGB")  # a broken or foreign profile: viewers ignore it, too


def _turn_upright(image: Image.Image) -> int:
    """Turn an image as EXIF says, in place; broken EXIF data turns nothing. Returns EXIF's orientation, 1 for upright.

    TIFF is already turned by Pillow, which drops the tag.
    """
    with contextlib.suppress(Exception):  # metadata is a little file system of its own, and breaks in as many ways
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        ImageOps.exif_transpose(image, in_place=True)
        return orientation
    return 1


def _sentence(error: Exception) -> str:
    return f"{str(error).strip().rstrip('.') or type(error).__name__}."


def fit(image: np.ndarray, size: int, crop: str = "center") -> np.ndarray:
    """Bring a picture of any shape to a square, antialiased.

    Bicubic as Pillow does it, the filter of CLIP's and of clean FID's preprocessing.

    image: (h, w, 3) uint8.   size: edge of the result in pixels.
    crop: "center" scales the shortest edge to ``size`` and keeps the middle; "squash" scales both
        edges, each by its own factor; "pad" scales the longest edge and fills up with white; "clip" is "center" in
        whole pixels, as CLIP's own preprocessing counts them. "clip" and "squash" are Pillow's filter and nothing
        else, so that weights see what they were trained on; the others first shrink a much larger picture roughly.
    Returns (size, size, 3) uint8.
    """
    check_fit(size, crop)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"Expected an image of shape (h, w, 3) and type uint8, found {image.shape} {image.dtype}.")
    if image.shape[:2] == (size, size):
        return image
    picture = Image.fromarray(image)
    return np.array(CROPS[crop](picture, size, (0, 0, *picture.size)))


def check_fit(size: int, crop: str) -> None:
    """Validate the arguments of ``fit`` before there is an image. Raises ValueError."""
    if size < 1:
        raise ValueError(f"config.data.image_size is {size}, expected at least 1.")
    if crop not in CROPS:
        raise ValueError(f"config.data.crop is {crop!r}, expected one of {', '.join(CROPS)}.")


# Crops: (image, size, box) -> square; box: the part of the pixels that is image; all of them for squash and clip.


def _center(image: Image.Image, size: int, box: Box) -> Image.Image:
    x_min, y_min, x_max, y_max = box
    side = min(x_max - x_min, y_max - y_min)
    x, y = (x_min + x_max - side) / 2, (y_min + y_max - side) / 2
    return _resize(image, (size, size), (x, y, x + side, y + side))


def _squash(image: Image.Image, size: int, _: Box) -> Image.Image:
    return image.resize((size, size), Image.Resampling.BICUBIC)


def _clip(image: Image.Image, size: int, _: Box) -> Image.Image:
    shortest = min(image.size)
    width, height = (int(size * edge / shortest) for edge in image.size)
    x, y = round((width - size) / 2), round((height - size) / 2)
    # The part of the image that is kept of it, scaled to width x height: a strip is never enlarged as a whole.
    scale_x, scale_y = image.width / width, image.height / height
    right, lower = min((x + size) * scale_x, image.width), min((y + size) * scale_y, image.height)
    box = (x * scale_x, y * scale_y, right, lower)
    return image.resize((size, size), Image.Resampling.BICUBIC, box=box)


def _pad(image: Image.Image, size: int, box: Box) -> Image.Image:
    edges = (box[2] - box[0], box[3] - box[1])
    width, height = (max(1, round(edge * size / max(edges))) for edge in edges)
    square = Image.new("RGB", (size, size), "white")
    square.paste(_resize(image, (width, height), box), ((size - width) // 2, (size - height) // 2))
    return square


def _resize(image: Image.Image, size: tuple[int, int], box: tuple[float, float, float, float]) -> Image.Image:
    return image.resize(size, Image.Resampling.BICUBIC, box=box, reducing_gap=3.0)


CROPS = {"center": _center, "squash": _squash, "pad": _pad, "clip": _clip}
ROUGH_CROPS = ("center", "pad")
SRGB = ImageCms.createProfile("sRGB")
Image.init()
AVAILABLE = tuple(name for name in FORMATS if name in Image.OPEN)
