"""Every common kind of image file, against colours that are known without decoding it."""

import functools
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from jdiff.data.decoding import CROPS, Undecodable, decode, decode_square, fit

RED, GREEN, BLUE, WHITE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)


def file(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(
    width: int, height: int, bits: int, colour: int, rows: bytes, extra: bytes = b"", trailer: bytes = b""
) -> bytes:
    """A PNG file written from the specification, for modes that Pillow does not write."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    data = png_chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + header + extra + data + trailer + png_chunk(b"IEND", b"")


def quarters(size: int = 32) -> Image.Image:
    """An image with four different corners: red, green / blue, white."""
    image = Image.new("RGB", (size, size), WHITE)
    half = size // 2
    for place, colour in (((0, 0), RED), ((half, 0), GREEN), ((0, half), BLUE)):
        image.paste(colour, (*place, place[0] + half, place[1] + half))
    return image


# --- modes -----------------------------------------------------------------------------------------------------------


def test_rgb_png_round_trips_exactly():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    decoded = decode(file(Image.fromarray(pixels)))
    assert decoded.dtype == np.uint8 and decoded.flags.writeable
    np.testing.assert_array_equal(decoded, pixels)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF", "PPM"])
@pytest.mark.parametrize("colour", [RED, GREEN, BLUE, WHITE])
def test_lossless_kinds_keep_a_colour(kind, colour):
    assert set(map(tuple, decode(file(Image.new("RGB", (3, 2), colour), kind)).reshape(-1, 3))) == {colour}


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "AVIF", "JPEG2000"])
def test_lossy_kinds_nearly_keep_a_colour(kind):
    decoded = decode(file(quarters(64), kind, quality=95) if kind != "JPEG2000" else file(quarters(64), kind))
    for (row, column), colour in {(8, 8): RED, (8, 56): GREEN, (56, 8): BLUE, (56, 56): WHITE}.items():
        assert np.abs(decoded[row, column].astype(int) - colour).max() <= 6


def test_bilevel_png_is_black_and_white():
    image = Image.new("1", (2, 1))
    image.putpixel((1, 0), 255)
    assert decode(file(image)).tolist() == [[[0, 0, 0], [255, 255, 255]]]


def test_grey_png_becomes_rgb():
    assert decode(file(Image.new("L", (1, 1), 77))).tolist() == [[[77, 77, 77]]]


@pytest.mark.parametrize(("alpha", "expected"), [(255, 100), (0, 255), (51, 224)])  # 0.2 * 100 + 0.8 * 255 = 224
def test_grey_with_alpha_lies_on_white(alpha, expected):
    assert decode(file(Image.new("LA", (1, 1), (100, alpha)))).tolist() == [[[expected] * 3]]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_alpha_is_straight_and_lies_on_white(kind):
    image = Image.new("RGBA", (3, 1), (200, 0, 0, 0))  # fully transparent red
    image.putpixel((1, 0), (200, 0, 0, 51))
    image.putpixel((2, 0), (200, 0, 0, 255))
    decoded = decode(file(image, kind, **({"lossless": True} if kind == "WEBP" else {})))
    assert decoded.tolist() == [[[255, 255, 255], [244, 204, 204], [200, 0, 0]]]  # 0.2 * 200 + 0.8 * 255 = 244


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_palette_with_a_transparent_entry(kind):
    image = Image.new("P", (3, 1))
    image.putpalette([*RED, *GREEN, *BLUE])
    image.putdata([0, 1, 2])
    assert decode(file(image, kind, transparency=1)).tolist() == [[[255, 0, 0], [255, 255, 255], [0, 0, 255]]]


def test_palette_with_half_transparent_entries():
    image = Image.new("P", (2, 1))
    image.putpalette([*BLACK, *RED])
    image.putdata([0, 1])
    assert decode(file(image, transparency=bytes([51, 255]))).tolist() == [[[204, 204, 204], [255, 0, 0]]]


def test_colour_key_transparency():
    image = Image.new("RGB", (2, 1), RED)
    image.putpixel((1, 0), GREEN)
    assert decode(file(image, transparency=GREEN)).tolist() == [[[255, 0, 0], [255, 255, 255]]]


def test_sixteen_bit_grey_is_scaled_not_clipped():
    values = np.array([[0, 128, 200, 257, 25700, 32768, 65535]], np.uint16)  # 257 steps of 16 bits are one of 8
    decoded = decode(file(Image.fromarray(values)))
    assert decoded[0, :, 0].tolist() == [0, 0, 1, 1, 100, 128, 255]
    assert decode(file(Image.fromarray(values), "TIFF"))[0, :, 0].tolist() == [0, 0, 1, 1, 100, 128, 255]


def test_sixteen_bit_pgm():
    data = b"P5 3 1 65535\n" + struct.pack(">3H", 0, 25700, 65535)
    assert decode(data)[0, :, 0].tolist() == [0, 100, 255]


def test_sixteen_bit_grey_with_alpha_and_colour():
    grey_alpha = png(1, 1, 16, 4, b"\0" + struct.pack(">2H", 100 * 257, 51 * 257))
    assert decode(grey_alpha).tolist() == [[[224, 224, 224]]]
    colour = png(1, 1, 16, 2, b"\0" + struct.pack(">3H", 200 * 257, 100 * 257, 0))
    assert decode(colour).tolist() == [[[200, 100, 0]]]


def test_sixteen_bit_grey_with_a_transparent_value():
    key = png_chunk(b"tRNS", struct.pack(">H", 300))
    data = png(2, 1, 16, 0, b"\0" + struct.pack(">2H", 300, 25700), extra=key)
    assert decode(data)[0, :, 0].tolist() == [255, 100]


def test_float_tiff_is_scaled_and_refused_outside_0_to_1():
    assert decode(file(Image.fromarray(np.array([[0, 0.5, 1]], np.float32)), "TIFF"))[0, :, 0].tolist() == [0, 128, 255]
    with pytest.raises(Undecodable, match="outside 0 to 1"):
        decode(file(Image.fromarray(np.array([[0, 7]], np.float32)), "TIFF"))
    with pytest.raises(Undecodable, match="outside 0 to 1"):
        decode(file(Image.fromarray(np.array([[0, np.nan]], np.float32)), "TIFF"))


def test_integers_beyond_sixteen_bits_are_refused():
    with pytest.raises(Undecodable, match="beyond 16 bits"):
        decode(file(Image.fromarray(np.array([[0, 70000]], np.int32)), "TIFF"))


@pytest.mark.parametrize(("inks", "colour"), [((0, 0, 0, 0), WHITE), ((0, 255, 255, 0), RED), ((0, 0, 0, 255), BLACK)])
def test_cmyk_jpeg_inverted_by_adobe_shows_its_colours(inks, colour):
    data = file(Image.new("CMYK", (16, 16), inks), "JPEG", quality=100)
    assert b"Adobe" in data  # the marker by which decoders know that the inks are stored inverted
    assert np.abs(decode(data).astype(int) - colour).max() <= 3


def test_cmyk_tiff_becomes_rgb():
    assert decode(file(Image.new("CMYK", (1, 1), (255, 0, 0, 0)), "TIFF")).tolist() == [[[0, 255, 255]]]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_an_animation_shows_its_first_frame(kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, BLUE)]
    lossless = {"lossless": True} if kind == "WEBP" else {}
    decoded = decode(file(frames[0], kind, save_all=True, append_images=frames[1:], **lossless))
    assert np.abs(decoded.astype(int) - RED).max() <= 3


# --- orientation -----------------------------------------------------------------------------------------------------

# EXIF 2.3, tag Orientation: where the stored picture's row 0 and column 0 are in the displayed one.
# Each entry: the corner of the stored picture that is displayed at top left, top right, bottom left, bottom right.
DISPLAY_CORNERS = {
    1: ("tl", "tr", "bl", "br"),  # row 0 top, column 0 left
    2: ("tr", "tl", "br", "bl"),  # row 0 top, column 0 right
    3: ("br", "bl", "tr", "tl"),  # row 0 bottom, column 0 right
    4: ("bl", "br", "tl", "tr"),  # row 0 bottom, column 0 left
    5: ("tl", "bl", "tr", "br"),  # row 0 left, column 0 top
    6: ("bl", "tl", "br", "tr"),  # row 0 right, column 0 top
    7: ("br", "tr", "bl", "tl"),  # row 0 right, column 0 bottom
    8: ("tr", "br", "tl", "bl"),  # row 0 left, column 0 bottom
}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", DISPLAY_CORNERS)
def test_exif_orientation_turns_the_picture_upright(orientation, kind):
    image = quarters(64).resize((96, 64), Image.Resampling.NEAREST)
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = decode(file(image, kind, exif=exif))
    assert decoded.shape == ((64, 96, 3) if orientation <= 4 else (96, 64, 3))
    colours = {"tl": RED, "tr": GREEN, "bl": BLUE, "br": WHITE}
    for (row, column), corner in zip([(8, 8), (8, -8), (-8, 8), (-8, -8)], DISPLAY_CORNERS[orientation], strict=True):
        assert np.abs(decoded[row, column].astype(int) - colours[corner]).max() <= 12


def test_an_unknown_orientation_turns_nothing():
    exif = Image.Exif()
    exif[0x0112] = 99
    np.testing.assert_array_equal(decode(file(quarters(), exif=exif)), np.asarray(quarters()))


def test_broken_exif_data_is_ignored():
    decoded = decode(file(quarters(), exif=b"Exif\0\0MM\0*\xff\xff\xff\xff"))
    np.testing.assert_array_equal(decoded, np.asarray(quarters()))


# --- colour profiles -------------------------------------------------------------------------------------------------


def swapped_profile() -> bytes:
    """sRGB with the red and blue primaries exchanged: it displays a picture with its channels reversed."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    tags = {
        bytes(profile[offset : offset + 4]): offset
        for offset in range(132, 132 + 12 * struct.unpack(">I", profile[128:132])[0], 12)
    }
    red, blue = tags[b"rXYZ"], tags[b"bXYZ"]
    profile[red + 4 : red + 12], profile[blue + 4 : blue + 12] = (
        profile[blue + 4 : blue + 12],
        profile[red + 4 : red + 12],
    )
    return bytes(profile)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_a_profile_is_converted_to_srgb(kind):
    image = Image.new("RGB", (16, 16), (200, 100, 50))
    options = {"lossless": True} if kind == "WEBP" else {"quality": 98} if kind == "JPEG" else {}
    decoded = decode(file(image, kind, icc_profile=swapped_profile(), **options))
    assert np.abs(decoded.astype(int) - (50, 100, 200)).max() <= 3


def linear_profile() -> bytes:
    """sRGB's primaries with values proportional to light: its parametric curve replaced by y = x."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    curve = profile.index(b"para\0\0\0\0\0\3")  # [icc.1:2022, 10.18] type 3: (a x + b)^g from d on, c x below
    profile[curve + 12 : curve + 32] = struct.pack(">5i", *(round(value * 65536) for value in (1, 1, 0, 1, 0)))
    return bytes(profile)


def test_colours_become_srgb_before_they_are_laid_on_white():
    image = Image.new("RGBA", (1, 1), (55, 55, 55, 51))
    srgb = 255 * (1.055 * (55 / 255) ** (1 / 2.4) - 0.055)  # [iec 61966-2-1]
    decoded = decode(file(image, icc_profile=linear_profile()))
    assert np.abs(decoded - (0.2 * srgb + 0.8 * 255)).max() <= 1
    assert abs(0.2 * srgb - 0.2 * 55) > 10  # otherwise the test could not detect the wrong order


def test_an_srgb_profile_changes_next_to_nothing():
    pixels = np.random.default_rng(1).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    decoded = decode(file(Image.fromarray(pixels), icc_profile=profile))
    assert np.abs(decoded.astype(int) - pixels).max() <= 1


@pytest.mark.parametrize("mode", ["L", "LA", "P", "1"])
def test_a_profile_of_another_kind_of_colour_is_ignored(mode):
    image = Image.new("RGB", (2, 2), (120, 120, 120)).convert("L" if mode == "L" else mode)
    plain = decode(file(image))
    decoded = decode(file(image, icc_profile=swapped_profile()))
    assert np.abs(decoded.astype(int) - plain).max() <= 1


@pytest.mark.parametrize("profile", [b"not a profile", swapped_profile()[:200], b"\0" * 500])
def test_a_broken_profile_is_ignored(profile):
    np.testing.assert_array_equal(decode(file(quarters(), icc_profile=profile)), np.asarray(quarters()))


# --- invalid images --------------------------------------------------------------------------------------------------


def refusal(data: bytes, **options) -> str:
    with pytest.raises(Undecodable) as caught:
        decode(data, **options)
    reason = str(caught.value)
    assert reason.endswith(".") and "\n" not in reason and "Traceback" not in reason
    return reason


def test_an_empty_file_is_refused():
    assert refusal(b"") == "The file is empty."


@pytest.mark.parametrize(
    "data", [b"hello, world", b"\0" * 1000, b"<html><body>404</body></html>", b"%!PS-Adobe-3.0 EPSF\n"]
)
def test_other_data_is_refused_as_not_an_image(data):
    assert "not an image" in refusal(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", "AVIF", "PPM"])
def test_a_truncated_file_is_refused(kind):
    noise = Image.fromarray(np.random.default_rng(2).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    data = file(noise, kind)
    for length in [1, 2, 10, *range(20, len(data) - 60, max(1, len(data) // 40))]:
        refusal(data[:length])


def test_noise_after_a_valid_header_is_decoded_or_refused():
    generator = np.random.default_rng(3)
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"):
        data = bytearray(file(quarters(), kind))
        for _ in range(40):
            noisy = bytearray(data)
            for i in generator.integers(8, len(data), 6):
                noisy[i] = generator.integers(256)
            try:
                assert decode(bytes(noisy)).shape[2] == 3
            except Undecodable as error:
                assert str(error)


def test_a_decompression_bomb_is_refused_by_its_header():
    assert "100 x 50 pixels" in refusal(file(Image.new("RGB", (100, 50))), max_pixels=4999)
    assert decode(file(Image.new("RGB", (100, 50))), max_pixels=5000).shape == (50, 100, 3)
    claim = png(100_000, 100_000, 8, 2, b"")
    assert len(claim) < 100
    assert "too many pixels" in refusal(claim)


def test_a_size_between_our_limit_and_pillows_is_refused():
    assert "10000 x 8000" in refusal(png(10_000, 8_000, 8, 2, b""))
    assert "pixels" in refusal(png(10_000, 10_000, 8, 2, b""))  # Pillow warns here; a warning is an error in tests


def test_an_image_of_width_zero_is_refused():
    assert refusal(png(0, 5, 8, 2, b""))


# --- fit -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("crop", CROPS)
@pytest.mark.parametrize("shape", [(1, 1), (7, 3), (64, 200), (200, 64), (1, 500), (33, 33)])
def test_fit_makes_any_shape_square(crop, shape):
    pixels = np.full((*shape, 3), 255, np.uint8)
    square = fit(pixels, 32, crop=crop)
    assert square.shape == (32, 32, 3) and square.dtype == np.uint8
    assert (square == 255).all()  # white stays white, to the border


def test_center_keeps_the_middle():
    pixels = np.zeros((20, 60, 3), np.uint8)
    pixels[:, :20], pixels[:, 20:40], pixels[:, 40:] = RED, GREEN, BLUE
    assert (fit(pixels, 20) == GREEN).all()
    assert (fit(pixels.swapaxes(0, 1), 10)[2:-2] == GREEN).all()  # the filter reaches two pixels into the neighbours


def test_squash_keeps_the_whole_picture():
    pixels = np.zeros((20, 60, 3), np.uint8)
    pixels[:, :20], pixels[:, 20:40], pixels[:, 40:] = RED, GREEN, BLUE
    square = fit(pixels, 30, crop="squash")
    assert [tuple(square[15, column]) for column in (3, 15, 26)] == [RED, GREEN, BLUE]


def test_pad_keeps_the_shape_on_white():
    square = fit(np.zeros((20, 40, 3), np.uint8), 32, crop="pad")
    assert (square[:8] == 255).all() and (square[8:24] == 0).all() and (square[24:] == 255).all()


def test_fit_is_antialiased():
    """Lines one pixel wide, scaled down eight times, become their mean grey instead of black or white by aliasing."""
    pixels = np.zeros((256, 256, 3), np.uint8)
    pixels[:, ::2] = 255
    assert np.abs(fit(pixels, 32).astype(int) - 127.5).max() <= 2


def test_fit_is_symmetric():
    pixels = np.random.default_rng(4).integers(0, 256, (50, 71, 3), dtype=np.uint8)
    mirror_image = fit(pixels[:, ::-1], 24)[:, ::-1].astype(int)
    assert np.abs(mirror_image - fit(pixels, 24)).max() <= 1  # rounding of the filter's integer weights


def test_fit_does_not_change_an_image_of_the_right_size():
    pixels = np.random.default_rng(5).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    for crop in CROPS:
        np.testing.assert_array_equal(fit(pixels, 16, crop=crop), pixels)


def test_fit_refuses_invalid_arguments():
    with pytest.raises(ValueError, match="expected one of center, squash, pad, clip"):
        fit(np.zeros((2, 2, 3), np.uint8), 2, crop="centre")
    with pytest.raises(ValueError, match=r"found \(2, 2\) float32"):
        fit(np.zeros((2, 2), np.float32), 2)


def bicubic(pixels, size):
    """Keys' cubic convolution, a = -1/2, widened when it shrinks, rounded to bytes after each pass.

    Returns both orders: rows first and columns first.
    """

    def resize_rows(image, new):
        old = image.shape[0]
        stretch = max(old / new, 1)
        x = np.abs(((np.arange(new) + 0.5) * old / new - 0.5)[:, None] - np.arange(old)) / stretch
        inner, outer = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
        weights = np.where(x < 1, inner, np.where(x < 2, outer, 0))
        weights /= weights.sum(1, keepdims=True)
        return np.clip(np.rint(np.einsum("ab,bcd->acd", weights, image)), 0, 255)

    columns_resized = resize_rows(pixels.astype(np.float64).swapaxes(0, 1), size[1]).swapaxes(0, 1)
    rows_resized = resize_rows(pixels.astype(np.float64), size[0])
    return resize_rows(columns_resized, size[0]), resize_rows(rows_resized.swapaxes(0, 1), size[1]).swapaxes(0, 1)


def smallest_difference(image, *truths):
    """The largest pixel difference to the nearest truth: Pillow begins with rows or columns, whichever is cheaper."""
    return min(np.abs(image.astype(int) - truth).max() for truth in truths)


@pytest.mark.parametrize(("shape", "scaled"), [((90, 121), (48, 64)), ((131, 60), (104, 48)), ((20, 30), (48, 72))])
def test_crop_clip_equals_clips_preprocessing(shape, scaled):
    """The shortest edge to the size, the longest rounded down, then the middle in whole pixels [clip.py _transform]."""
    pixels = np.random.default_rng(6).integers(0, 256, (*shape, 3), dtype=np.uint8)
    row, column = (round((edge - 48) / 2) for edge in scaled)
    truths = (image[row : row + 48, column : column + 48] for image in bicubic(pixels, scaled))
    assert smallest_difference(fit(pixels, 48, crop="clip"), *truths) <= 1


def test_squash_is_only_bicubic():
    pixels = np.random.default_rng(7).integers(0, 256, (300, 211, 3), dtype=np.uint8)
    assert smallest_difference(fit(pixels, 32, crop="squash"), *bicubic(pixels, (32, 32))) <= 1


# --- what lies beside a PNG's pixels ---------------------------------------------------------------------------------


def png_of(colour, *chunks, trailer=b""):
    """A PNG of 4 x 4 pixels of a colour, with more chunks before and after its pixels."""
    rows = b"".join(b"\0" + bytes(colour) * 4 for _ in range(4))
    return png(4, 4, 8, 2, rows, b"".join(chunks), trailer)


HUGE = b"{node: 1} " * 2_000_000
CHUNKS = {
    "tEXt": png_chunk(b"tEXt", b"workflow\0" + HUGE),
    "zTXt": png_chunk(b"zTXt", b"workflow\0\0" + zlib.compress(HUGE)),
    "iTXt": png_chunk(b"iTXt", b"workflow\0\1\0\0\0" + zlib.compress(HUGE)),
    "broken zTXt": png_chunk(b"zTXt", b"workflow\0\0" + b"no zlib"),
    "huge iCCP": png_chunk(b"iCCP", b"scanner\0\0" + zlib.compress(HUGE)),
    "broken iCCP": png_chunk(b"iCCP", b"scanner\0\0" + b"no zlib"),
    "foreign iCCP": png_chunk(b"iCCP", b"scanner\0\0" + zlib.compress(HUGE[:2_000_000])),
}


@pytest.mark.parametrize("name", CHUNKS)
@pytest.mark.parametrize("at_end", [False, True])
def test_chunks_beside_the_pixels_never_refuse_a_png(name, at_end):
    chunks, trailer = (b"", CHUNKS[name]) if at_end else (CHUNKS[name], b"")
    data = png_of((200, 30, 30), chunks, trailer=trailer)
    assert decode(data).tolist() == [[[200, 30, 30]] * 4] * 4


def gamma_chunk(value):
    return png_chunk(b"gAMA", struct.pack(">I", round(value * 100_000)))


def primaries_chunk(*chromaticities):
    return png_chunk(b"cHRM", struct.pack(">8I", *(round(value * 100_000) for value in chromaticities)))


ADOBE = (0.3127, 0.3290, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06)
SRGB = (0.3127, 0.3290, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
# Published matrices: Adobe RGB (1998) sec. 4.3.5.3 to XYZ, and IEC 61966-2-1 from XYZ, both of D65.
ADOBE_TO_XYZ = [[0.57667, 0.18556, 0.18823], [0.29734, 0.62736, 0.07529], [0.02703, 0.07069, 0.99134]]
XYZ_TO_SRGB = [[3.2406, -1.5372, -0.4986], [-0.9689, 1.8758, 0.0415], [0.0557, -0.2040, 1.0570]]


def srgb_curve(light):
    light = np.clip(light, 0, 1)
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("gamma", [1.0, 0.55, 0.3])
def test_a_png_of_another_gamma_is_shown_as_its_light(gamma):
    colour = np.array([55, 128, 250])
    pixel = decode(png_of(colour.tolist(), gamma_chunk(gamma)))[0, 0]
    np.testing.assert_allclose(pixel, srgb_curve((colour / 255) ** (1 / gamma)), atol=0.51)


def test_a_png_of_linear_light_shows_55_as_128():
    assert decode(png_of((55, 55, 55), gamma_chunk(1.0)))[0, 0].tolist() == [128] * 3


@pytest.mark.parametrize("colour", [(10, 200, 90), (255, 255, 255), (128, 128, 128), (0, 255, 0), (180, 40, 60)])
def test_a_png_of_adobes_primaries_agrees_with_the_published_matrices(colour):
    data = png_of(colour, gamma_chunk(1 / 2.19921875), primaries_chunk(*ADOBE))
    linear = np.array(XYZ_TO_SRGB) @ np.array(ADOBE_TO_XYZ) @ srgb_light(np.array(colour) / 255)
    np.testing.assert_allclose(decode(data)[0, 0], srgb_curve(linear), atol=1.0)


def srgb_light(values):
    """Gamma 1 / 2.2 stands for sRGB's curve."""
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


@pytest.mark.parametrize(
    "chunks",
    [
        [gamma_chunk(0.45455)],
        [gamma_chunk(0.45455), primaries_chunk(*SRGB)],
        [png_chunk(b"sRGB", b"\0"), gamma_chunk(1.0), primaries_chunk(*ADOBE)],
        [gamma_chunk(0.0)],
        [primaries_chunk(*[0.3] * 8)],
        [primaries_chunk(*[0.0] * 8)],
    ],
)
def test_a_png_of_srgb_or_of_nonsense_is_unchanged(chunks):
    assert decode(png_of((55, 128, 200), *chunks))[0, 0].tolist() == [55, 128, 200]


# --- JPEGs that are scaled down --------------------------------------------------------------------------------------


@functools.cache
def photograph_pixels(width, height):
    """The pixels of a picture with the spectrum of a photograph: noise whose amplitude falls with its frequency."""
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(width), np.fft.fftfreq(height)))
    noise = np.random.default_rng(0).normal(size=(3, height, width))
    field = np.fft.ifft2(np.fft.fft2(noise) / (frequency + 1 / max(width, height))).real
    field = field[:1] + 0.3 * field  # colours vary less than brightness
    return np.clip(128 + 45 * field / field.std(), 0, 255).astype(np.uint8).transpose(1, 2, 0)


def photograph(width, height, kind="JPEG", **options):
    buffer = io.BytesIO()
    Image.fromarray(photograph_pixels(width, height)).save(buffer, kind, quality=90, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("shape", [(1200, 900), (900, 1201), (3000, 800)])
@pytest.mark.parametrize("crop", ["center", "pad"])
def test_a_jpeg_decoded_at_a_fraction_is_nearly_the_whole_one_scaled_down(shape, crop):
    data = photograph(*shape)
    for size in (32, 64, 128):
        difference = np.abs(decode_square(data, size, crop=crop).astype(int) - fit(decode(data), size, crop))
        assert difference.max() <= 5 and difference.mean() <= 0.6


def test_a_large_jpeg_is_decoded_at_a_fraction_of_at_least_twice_the_square(monkeypatch):
    sizes = []
    monkeypatch.setitem(
        CROPS, "center", lambda image, size, box: sizes.append(image.size) or image.resize((size, size))
    )
    for size in (16, 32, 100, 300):
        decode_square(photograph(1600, 1202), size)
    assert sizes == [(200, 151), (200, 151), (400, 301), (800, 601)]


@pytest.mark.parametrize("crop", ["clip", "squash"])
def test_crops_of_pretrained_weights_decode_the_whole_jpeg(crop):
    data = photograph(600, 500)
    np.testing.assert_array_equal(decode_square(data, 32, crop=crop), fit(decode(data), 32, crop))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_fraction_is_turned_as_exif_says(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = photograph(1201, 900, exif=exif)
    for crop in ("center", "pad"):
        difference = np.abs(decode_square(data, 32, crop=crop).astype(int) - fit(decode(data), 32, crop))
        assert difference.max() <= 5 and difference.mean() <= 0.6


def test_an_image_for_which_memory_is_missing_is_refused(monkeypatch):
    def fail(*_, **__):
        raise MemoryError

    monkeypatch.setattr(Image.Image, "resize", fail)
    with pytest.raises(Undecodable, match="more memory"):
        decode_square(file(quarters()), 8)
