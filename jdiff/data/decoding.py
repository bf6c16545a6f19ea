"""Bytes to pixels: the picture a person sees when the file is opened, as sRGB on white.

A file stores more than its pixels: which way the camera was held, a colour profile, see-through
parts, inverted inks, sixteen bits. A viewer applies them all, and so does ``decode``, in this order:

1. one frame, at 8 bits a channel (16 bits are scaled, not clipped);
2. the profile's colours to sRGB, because white below means sRGB's white;
3. see-through parts over white, with straight alpha: c = alpha * colour + (1 - alpha) * white;
4. turned the way up that EXIF says.

Whatever cannot be read becomes ``Undecodable`` with one sentence, so that one bad file in a million
is a line in a report and not the end of a night's work.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageCms

MAX_PIXELS = 2**26  # 8192 x 8192: above a camera's 50 megapixels, below Pillow's own limit

# What people keep photographs and drawings in. Pillow opens more, among them formats that start
# other programs (EPS) or that have no signature, so that noise would pass for an image (TGA).
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", "AVIF", "PPM", "ICO", "QOI")

ORIENTATION_TAG = 0x0112
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Undecodable(ValueError):
    """Bytes that are no usable image; the message is one sentence that says why."""


def decode(data: bytes, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Read an image file's bytes as the picture a person sees.

    max_pixels: a larger picture is refused from its header, before memory is spent on it. At most
        Pillow's own limit (89 million) is of use, which is checked as well.
    Returns (h, w, 3) uint8, sRGB.
    Raises Undecodable.
    """
    if not data:
        raise Undecodable("The file is empty.")
    image = _open(data)
    width, height = image.size
    if width < 1 or height < 1:
        raise Undecodable(f"The image is {width} x {height} pixels: it has nothing to show.")
    if width * height > max_pixels:
        raise Undecodable(
            f"The header claims {width} x {height} pixels, above the {max_pixels} of config.data.max_pixels."
        )
    try:
        image.load()
        picture = _upright(_on_white(image), image)
    except Undecodable:
        raise
    except Exception as error:  # a plugin raises whatever its parser trips over in bytes from anywhere
        raise Undecodable(f"The {image.format} data is truncated or broken: {_sentence(error)}") from error
    return np.array(picture)


def _open(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=AVAILABLE)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise Undecodable(f"The header claims too many pixels: {_sentence(error)}") from error
    except Image.UnidentifiedImageError as error:
        raise Undecodable(
            f"The {len(data)} bytes are not an image (of {', '.join(AVAILABLE)}), or its header is cut off."
        ) from error
    except Exception as error:
        raise Undecodable(f"The image's header is truncated or broken: {_sentence(error)}") from error


def _on_white(image: Image.Image) -> Image.Image:
    """Steps 1 to 3: an RGB image of 8 bits, in sRGB, on white."""
    profile = image.info.get("icc_profile")
    colour, alpha = _eight_bits(image)
    colour = _to_srgb(colour, profile) if profile else colour.convert("RGB")
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


def _upright(picture: Image.Image, image: Image.Image) -> Image.Image:
    """Step 4; broken EXIF data turns nothing. TIFF is already turned by Pillow, which drops the tag."""
    try:
        turn = UPRIGHT.get(image.getexif().get(ORIENTATION_TAG))
    except Exception:  # metadata is a little file system of its own, and breaks in as many ways
        return picture
    return picture if turn is None else picture.transpose(turn)


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
    return np.array(CROPS[crop](Image.fromarray(image), size))


def check_fit(size: int, crop: str) -> None:
    """Validate the arguments of ``fit`` before there is an image. Raises ValueError."""
    if size < 1:
        raise ValueError(f"config.data.image_size is {size}, expected at least 1.")
    if crop not in CROPS:
        raise ValueError(f"config.data.crop is {crop!r}, expected one of {', '.join(CROPS)}.")


def _center(image: Image.Image, size: int) -> Image.Image:
    side = min(image.size)
    x, y = (image.width - side) / 2, (image.height - side) / 2
    return _resize(image, (size, size), (x, y, x + side, y + side))


def _squash(image: Image.Image, size: int) -> Image.Image:
    return image.resize((size, size), Image.Resampling.BICUBIC)


def _clip(image: Image.Image, size: int) -> Image.Image:
    shortest = min(image.size)
    width, height = (int(size * edge / shortest) for edge in image.size)
    x, y = round((width - size) / 2), round((height - size) / 2)
    return image.resize((width, height), Image.Resampling.BICUBIC).crop((x, y, x + size, y + size))


def _pad(image: Image.Image, size: int) -> Image.Image:
    longest = max(image.size)
    width, height = (max(1, round(edge * size / longest)) for edge in image.size)
    square = Image.new("RGB", (size, size), "white")
    square.paste(_resize(image, (width, height), (0, 0, *image.size)), ((size - width) // 2, (size - height) // 2))
    return square


def _resize(image: Image.Image, size: tuple[int, int], box: tuple[float, float, float, float]) -> Image.Image:
    return image.resize(size, Image.Resampling.BICUBIC, box=box, reducing_gap=3.0)


CROPS = {"center": _center, "squash": _squash, "pad": _pad, "clip": _clip}
SRGB = ImageCms.createProfile("sRGB")
Image.init()
AVAILABLE = tuple(name for name in FORMATS if name in Image.OPEN)
