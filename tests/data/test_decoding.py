import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cedm_ray.data import decoding
from cedm_ray.data.decoding import Refusal, SourceImage, decode_image, printable
from cedm_ray.data.images_config import ImagesConfig
from cedm_ray.errors import InputDataError

CONFIG = ImagesConfig()


def encode(image: Image.Image, image_format: str = "PNG", **options) -> bytes:
    data = io.BytesIO()
    image.save(data, image_format, **options)
    return data.getvalue()


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def decode(data: bytes, **settings) -> SourceImage:
    image = decode_image("a.png", data, ImagesConfig(**settings))
    assert isinstance(image, SourceImage), image
    return image


def reason(data: bytes, **settings) -> str:
    refusal = decode_image("a.png", data, ImagesConfig(**settings))
    assert isinstance(refusal, Refusal)
    return refusal.reason


def color_of(data: bytes, **settings) -> list[int]:
    """The one color of an image that has only one."""
    pixels = decode(data, **settings).pixels
    assert (pixels == pixels[:, :1, :1]).all()
    return pixels[:, 0, 0].tolist()


@pytest.mark.parametrize("image_format", ["PNG", "BMP", "TIFF", "WEBP"])
def test_a_square_image_of_the_right_size_keeps_every_bit(image_format):
    rgb = noise(8, 8)
    options = {"lossless": True} if image_format == "WEBP" else {}
    image = decode(encode(Image.fromarray(rgb), image_format, **options), size=8)
    assert np.array_equal(image.pixels, rgb.transpose(2, 0, 1))
    assert image.pixels.flags.c_contiguous
    assert (image.width, image.height, image.mode) == (8, 8, "RGB")


def test_a_jpeg_is_decoded_as_pillow_decodes_it():
    data = encode(Image.fromarray(noise(8, 8)), "JPEG")
    assert np.array_equal(decode(data).pixels, np.asarray(Image.open(io.BytesIO(data))).transpose(2, 0, 1))


def palette_image() -> Image.Image:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    return image


@pytest.mark.parametrize(
    ("data", "color", "mode"),
    [
        (encode(Image.new("1", (4, 4), 1)), [255, 255, 255], "1"),
        (encode(Image.new("L", (4, 4), 77)), [77, 77, 77], "L"),
        (encode(palette_image()), [10, 20, 30], "P"),
        (encode(Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "TIFF"), [255, 0, 0], "CMYK"),
        # JFIF: red is Y + 1.402 (Cr - 128); green is 56.6, of which Pillow cuts off the rest.
        (encode(Image.new("YCbCr", (4, 4), (128, 128, 228)), "TIFF"), [255, 56, 128], "YCbCr"),
        (encode(Image.new("LA", (4, 4), (200, 0))), [0, 0, 0], "LA"),
        (encode(Image.new("RGBA", (4, 4), (10, 20, 30, 255))), [10, 20, 30], "RGBA"),
        # 257 * 123 = 31611; half a step further rounds up.
        (encode(Image.fromarray(np.full((4, 4), 31611, np.uint16))), [123, 123, 123], "I;16"),
        (encode(Image.fromarray(np.full((4, 4), 31611 + 129, np.uint16))), [124, 124, 124], "I;16"),
        (encode(Image.fromarray(np.full((4, 4), 65535, np.uint16))), [255, 255, 255], "I;16"),
        (encode(Image.fromarray(np.full((4, 4), 257, np.int32)), "TIFF"), [1, 1, 1], "I"),
        (encode(Image.fromarray(np.full((4, 4), 0.2, np.float32)), "TIFF"), [51, 51, 51], "F"),
    ],
)
def test_every_color_mode_has_its_documented_conversion(data, color, mode):
    assert color_of(data) == color
    assert decode(data).mode == mode


def test_alpha_is_laid_over_the_background():
    half = encode(Image.new("RGBA", (4, 4), (100, 0, 200, 51)))
    assert color_of(half) == [20, 0, 40]
    assert color_of(half, background="white") == [224, 204, 244]
    assert color_of(half, background="#ff0000") == [224, 0, 40]


def test_a_color_declared_transparent_is_laid_over_the_background_too():
    assert (
        color_of(encode(Image.new("RGB", (4, 4), (1, 2, 3)), transparency=(1, 2, 3)), background="white") == [255] * 3
    )
    assert color_of(encode(palette_image(), transparency=bytes([255, 0])), background="#010203") == [1, 2, 3]


@pytest.mark.parametrize(
    "data",
    [
        encode(Image.fromarray(noise(7, 7, 4))),
        encode(Image.fromarray(noise(7, 7, 2))),
        encode(Image.fromarray(noise(7, 7)), transparency=(126, 1, 2)),
        encode(Image.fromarray(noise(7, 7)).quantize(9), transparency=bytes([0, 100, 200])),
    ],
)
def test_alpha_is_the_same_in_strips_as_in_one_piece(data, monkeypatch):
    with Image.open(io.BytesIO(data)) as image:
        expected = Image.new("RGBA", (7, 7), "#102030")
        expected.alpha_composite(image.convert("RGBA"))
    expected = np.asarray(expected.convert("RGB")).transpose(2, 0, 1)
    for pixels in (1, 14, 21, 1000):
        monkeypatch.setattr(decoding, "STRIP_PIXELS", pixels)
        assert np.array_equal(decode(data, background="#102030").pixels, expected)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_once_whatever_the_format(image_format, orientation):
    """Stored pixels of each orientation, written down from the EXIF standard: where row 0 and column 0 lie."""
    upright = np.zeros((16, 16, 3), np.uint8)
    upright[:8, :8], upright[:8, 8:], upright[8:, :8] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: upright.swapaxes(0, 1)[::-1],
        7: upright.swapaxes(0, 1)[::-1, ::-1],
        8: upright.swapaxes(0, 1)[:, ::-1],
    }[orientation]
    image = Image.fromarray(np.ascontiguousarray(stored))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(image_format, {})
    pixels = decode(encode(image, image_format, exif=exif, **options)).pixels
    assert np.abs(pixels.transpose(1, 2, 0).astype(int) - upright).max() <= 3


def test_center_crop_takes_the_largest_central_square():
    rgb = noise(5, 10)
    image = decode(encode(Image.fromarray(rgb)), crop="center")
    assert np.array_equal(image.pixels, rgb[:, 2:7].transpose(2, 0, 1))
    assert (image.width, image.height) == (10, 5)


def test_resizing_is_lanczos_of_the_cropped_square():
    rgb = noise(20, 33)
    expected = Image.fromarray(rgb[:, 6:26]).resize((8, 8), Image.Resampling.LANCZOS)
    image = decode(encode(Image.fromarray(rgb)), crop="center", size=8)
    assert np.array_equal(image.pixels.transpose(1, 2, 0), np.asarray(expected))


def test_a_flat_image_stays_flat_at_any_size():
    data = encode(Image.new("RGB", (12, 12), (3, 250, 128)))
    assert color_of(data, size=5) == [3, 250, 128]
    assert color_of(data, size=31, enlarge=True) == [3, 250, 128]


def test_an_image_that_is_not_square_is_an_error_that_names_image_and_setting():
    with pytest.raises(InputDataError, match=r"b.png is 4x3, not square, and images.crop is none") as caught:
        decode_image("b.png", encode(Image.new("RGB", (4, 3))), CONFIG)
    assert "images.crop to center" in caught.value.mend


def test_a_small_image_is_refused_unless_enlarging_is_allowed():
    data = encode(Image.new("RGB", (4, 4)))
    assert reason(data, size=8) == "4x4 is smaller than images.size (8) and images.enlarge is false"
    assert decode(data, size=8, enlarge=True).pixels.shape == (3, 8, 8)


def png_of(width: int, height: int) -> bytes:
    """A PNG whose header promises width x height grey pixels and whose content is empty."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [
        (30_000, 30_000, "900,000,000 pixels are more than Pillow allows"),
        (10_000, 10_000, "100,000,000 pixels are more than Pillow allows"),
        (9_000, 9_000, "9000x9000 is more than images.max_pixels (64,000,000)"),
        (1, 100_000, "1x100000 is longer than 65,535 pixels"),
        (0, 0, "a PNG file with a damaged header"),
    ],
)
def test_absurd_sizes_are_refused_from_the_header(width, height, expected):
    assert reason(png_of(width, height)) == expected


def corrupted(data: bytes, chunk: bytes) -> bytes:
    """One bit of a PNG chunk's checksum flipped."""
    start = data.index(chunk)
    end = start + 4 + struct.unpack(">I", data[start - 4 : start])[0]
    return data[:end] + bytes([data[end] ^ 1]) + data[end + 1 :]


GOOD_PNG = encode(Image.fromarray(noise(16, 16)))
GOOD_JPEG = encode(Image.fromarray(noise(16, 16)), "JPEG")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "the file is empty"),
        (b"<!DOCTYPE html><title>404</title>", "an HTML page"),
        (b"  <html>", "an HTML page"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG"),
        (b"just text", "not PNG, JPEG, WebP, BMP or TIFF (it starts with b'just tex')"),
        (b"\x1b[31mred", "it starts with b'\\x1b[31mred'"),
        (encode(Image.new("RGB", (4, 4)), "GIF"), "a GIF image"),
        (encode(Image.new("RGB", (4, 4)), "EPS"), "PostScript"),
        (b"PK\x03\x04aaaa", "a zip archive"),
        (GOOD_PNG[:-200], "Truncated"),
        (GOOD_PNG[:20], "Truncated"),
        (GOOD_JPEG[: len(GOOD_JPEG) // 2], "Truncated"),
        (GOOD_JPEG[:-20], "truncated"),
        (corrupted(GOOD_PNG, b"IHDR"), "a PNG file with a damaged header"),
        (corrupted(GOOD_PNG, b"IDAT"), "checksum"),
        (
            encode(Image.fromarray(np.full((4, 4), 70_000, np.int32)), "TIFF"),
            "must lie in [0, 65535], got [70000, 70000]",
        ),
        (encode(Image.fromarray(np.full((4, 4), 2, np.float32)), "TIFF"), "must lie in [0, 1], got [2, 2]"),
        (encode(Image.fromarray(np.full((4, 4), np.nan, np.float32)), "TIFF"), "must lie in [0, 1], got [nan, nan]"),
    ],
)
def test_bad_content_is_refused_with_its_reason(data, expected):
    assert expected in reason(data)


@pytest.mark.parametrize("image_format", ["PNG", "WEBP", "TIFF"])
def test_animations_and_several_pages_are_refused(image_format):
    frames = [Image.new("RGB", (4, 4), (level, 0, 0)) for level in (0, 100, 200)]
    data = encode(frames[0], image_format, save_all=True, append_images=frames[1:])
    assert reason(data) == "an animation or several pages (3 frames)"


def test_a_jpeg_that_carries_more_pictures_gives_its_first():
    data = encode(Image.new("RGB", (8, 8), "white"), "MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))])
    assert color_of(data) == [255, 255, 255]


@given(seed=st.integers(0, 2**32), which=st.sampled_from([GOOD_PNG, GOOD_JPEG]), cut=st.booleans())
@settings(max_examples=150, deadline=None)
def test_mutated_files_give_an_image_or_a_refusal_and_never_another_exception(seed, which, cut):
    rng = np.random.default_rng(seed)
    data = np.frombuffer(which, np.uint8).copy()
    data[rng.integers(0, len(data), 3)] = rng.integers(0, 256, 3)
    if cut:
        data = data[: rng.integers(0, len(data))]
    result = decode_image("a.png", data.tobytes(), ImagesConfig(size=16, crop="center", enlarge=True))
    assert isinstance(result, Refusal) or result.pixels.shape == (3, 16, 16)


def test_one_flipped_bit_in_a_png_never_goes_unnoticed_as_other_pixels():
    good = decode(GOOD_PNG).pixels
    for position in range(8, len(GOOD_PNG), 13):
        data = bytearray(GOOD_PNG)
        data[position] ^= 0x10
        image = decode_image("a.png", bytes(data), CONFIG)
        assert isinstance(image, Refusal) or np.array_equal(image.pixels, good)


def test_control_characters_are_printed_as_escapes():
    assert str(Refusal(name="\x1b[31m\n.png", reason="why")) == "\\x1b[31m\\n.png: why"
    assert printable("Größe 大.png") == "Größe 大.png"
