import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from cedm_ray.data import decoding
from cedm_ray.data.decoding import Refusal, decode_image
from cedm_ray.data.images_config import ImagesConfig
from cedm_ray.data.png import check_png, read_plain_png


def encode(image: Image.Image, **options) -> bytes:
    data = io.BytesIO()
    image.save(data, "PNG", **options)
    return data.getvalue()


def noise(*shape: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def with_chunks(data: bytes, at: int, *chunks: bytes) -> bytes:
    """`data` with more chunks at a place; 33 is behind IHDR, -12 before IEND."""
    return data[:at] + b"".join(chunks) + data[at:]


COLOR, GREY = encode(noise(9, 7, 3)), encode(noise(9, 7))
TINY_BLOCKS = encode(noise(90, 70, 3), compress_level=0)


@pytest.mark.parametrize(
    "data",
    [
        COLOR,
        GREY,
        TINY_BLOCKS,
        encode(noise(9, 7, 3), dpi=(72, 72)),
        with_chunks(COLOR, 33, chunk(b"gAMA", bytes(4)), chunk(b"sRGB", b"\0"), chunk(b"cHRM", bytes(32))),
        with_chunks(COLOR, -12, chunk(b"tIME", bytes(7))),
    ],
)
def test_a_plain_file_gives_what_pillow_reads(data):
    with Image.open(io.BytesIO(data)) as image:
        found = read_plain_png(data)
        assert (found.mode, found.size, found.tobytes()) == (image.mode, image.size, image.tobytes())


def halves(data: bytes) -> tuple[bytes, bytes]:
    """The content of the one IDAT of `data` in two pieces."""
    content = data[41:-16]
    return content[: len(content) // 2], content[len(content) // 2 :]


def split(data: bytes, *between: bytes) -> bytes:
    first, second = halves(data)
    return data[:33] + chunk(b"IDAT", first) + b"".join(between) + chunk(b"IDAT", second) + data[-12:]


def test_pixels_in_several_chunks_are_one_stream():
    assert read_plain_png(split(COLOR)).tobytes() == read_plain_png(COLOR).tobytes()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        COLOR[:20],
        COLOR[:33],
        COLOR[:-1],
        COLOR[:-30],
        COLOR[:50] + bytes([COLOR[50] ^ 1]) + COLOR[51:],
        encode(noise(9, 7, 4)),
        encode(noise(9, 7).convert("P")),
        encode(noise(9, 7).convert("1")),
        encode(noise(9, 7).convert("LA")),
        encode(Image.fromarray(np.zeros((4, 4), np.uint16))),
        encode(noise(9, 7, 3), transparency=(1, 2, 3)),
        encode(noise(9, 7, 3), exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0"),
        encode(Image.new("L", (2000, 1000))),
        with_chunks(COLOR, 33, chunk(b"gAMA", b"\0")),
        with_chunks(COLOR, 33, COLOR[8:33]),
        split(COLOR, chunk(b"tIME", bytes(7))),
        COLOR[:33] + chunk(b"IDAT", halves(COLOR)[0]) + COLOR[-12:],
        COLOR[:33] + chunk(b"IDAT", b"no stream") + COLOR[-12:],
        COLOR[:33] + COLOR[-12:],
    ],
)
def test_anything_else_is_left_to_pillow(data):
    assert read_plain_png(data) is None


def test_files_that_are_damaged_anywhere_get_the_same_answer_on_both_ways(monkeypatch):
    """Every byte of a small file, each changed in three ways, as it lies there and with checksums that fit again."""
    small, config = encode(noise(3, 3, 3)), ImagesConfig(crop="center", max_pixels=10_000)
    damaged = [
        small[:at] + bytes([value]) + small[at + 1 :]
        for at in range(len(small))
        for value in {0, 255, small[at] ^ 1} - {small[at]}
    ]
    header, stream = small[16:29], small[41:-16]
    resealed = [data[:8] + chunk(b"IHDR", data[16:29]) + chunk(b"IDAT", data[41:-16]) + small[-12:] for data in damaged]
    assert sum(small[:8] == data[:8] and (data[16:29], data[41:-16]) != (header, stream) for data in resealed) > 100
    damaged += resealed

    def answers() -> list:
        found = [decode_image("a", data, config) for data in damaged]
        return [one if isinstance(one, Refusal) else (one.pixels.tobytes(), one.mode, one.sha256) for one in found]

    short = answers()
    monkeypatch.setattr(decoding, "read_plain_png", lambda data: None)
    assert answers() == short


def test_checksums_are_compared_up_to_the_last_chunk():
    check_png(COLOR + b"and more")
    with pytest.raises(ValueError, match="Truncated PNG file"):
        check_png(COLOR[:-1])
    with pytest.raises(ValueError, match="a wrong checksum in its IDAT chunk"):
        check_png(COLOR[:50] + bytes([COLOR[50] ^ 1]) + COLOR[51:])
