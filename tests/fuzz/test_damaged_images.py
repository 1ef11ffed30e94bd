"""3,000 damaged images and 500 damaged archives."""

import contextlib
import gzip
import io
import pickle
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given, seed, settings
from hypothesis import strategies as st
from PIL import Image

from cedm_ray.data.decoding import Refusal, decode_entries, decode_image
from cedm_ray.data.images_config import ImagesConfig
from cedm_ray.data.sources import open_source
from cedm_ray.errors import InputDataError, SecurityError


def encode(image: Image.Image, image_format: str, **options) -> bytes:
    data = io.BytesIO()
    # Of a copy: Pillow leaves what it encoded with on the image.
    others = [other.copy() for other in options.pop("append_images", [])]
    image.copy().save(data, image_format, append_images=others, **options)
    return data.getvalue()


def good_images() -> dict[str, bytes]:
    noise = np.random.default_rng(0).integers(0, 256, (24, 20, 4), dtype=np.uint8)
    rgb, rgba = Image.fromarray(noise[:, :, :3].copy()), Image.fromarray(noise)
    exif = Image.Exif()
    exif[0x0112] = 6
    deep = Image.fromarray(noise[:, :, 0].astype(np.uint16) * 257)
    frames = {"save_all": True, "append_images": [rgb.rotate(90), rgb.rotate(180)]}
    found = {
        "rgb.png": encode(rgb, "PNG"),
        "rgba.png": encode(rgba, "PNG", exif=exif),
        "palette.png": encode(rgb.quantize(16), "PNG", transparency=3),
        "deep.png": encode(deep, "PNG"),
        "bits.png": encode(rgb.convert("1"), "PNG"),
        "moving.png": encode(rgb, "PNG", **frames),
        "rgb.jpg": encode(rgb, "JPEG", exif=exif),
        "progressive.jpg": encode(rgb, "JPEG", progressive=True, subsampling=2),
        "cmyk.jpg": encode(rgb.convert("CMYK"), "JPEG"),
        "grey.jpg": encode(rgb.convert("L"), "JPEG"),
        "two.mpo.jpg": encode(rgb, "MPO", **frames),
        "lossy.webp": encode(rgb, "WEBP", exif=exif),
        "lossless.webp": encode(rgba, "WEBP", lossless=True),
        "moving.webp": encode(rgb, "WEBP", **frames),
        "rgb.bmp": encode(rgb, "BMP"),
        "palette.bmp": encode(rgb.quantize(16), "BMP"),
        "alpha.bmp": encode(rgba, "BMP"),
        "float.tiff": encode(Image.fromarray(noise[:, :, 0] / np.float32(255)), "TIFF"),
        "deep.tiff": encode(deep, "TIFF"),
        "pages.tiff": encode(rgb, "TIFF", **frames),
        "lab.tiff": encode(rgb.convert("YCbCr"), "TIFF"),
    }
    for compression in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "group4"):
        image = rgb.convert("1") if compression == "group4" else rgb
        found[f"{compression}.tiff"] = encode(image, "TIFF", compression=compression)
    return found


GOOD_IMAGES = good_images()


def with_right_checksums(png: bytes) -> bytes:
    """A PNG whose chunks have the checksums of what they hold, so that its content reaches the decoder."""
    content, start = bytearray(png), 8
    while start + 12 <= len(content):
        end = start + 8 + int.from_bytes(content[start : start + 4], "big")
        if end + 4 > len(content):
            break
        content[end : end + 4] = zlib.crc32(content[start + 4 : end]).to_bytes(4, "big")
        start = end + 4
    return bytes(content)


@seed(20261124)
@settings(settings.get_profile("fuzz"), max_examples=3000)
@given(number=st.integers(0, 2**63))
def test_images(quick, mutated, number):
    rng = np.random.default_rng(number)
    name = sorted(GOOD_IMAGES)[rng.integers(len(GOOD_IMAGES))]
    content = mutated(GOOD_IMAGES[name], rng)
    if name.endswith(".png") and rng.random() < 0.7:
        content = with_right_checksums(content)
    size = (None, 8, 32)[rng.integers(3)]
    with quick():
        found = decode_image(name, content, ImagesConfig(size=size, crop="center", enlarge=True))
    if isinstance(found, Refusal):
        assert found.reason
        assert str(found).isprintable()
    else:
        side = size or min(found.width, found.height)
        assert (found.pixels.shape, found.pixels.dtype) == ((3, side, side), np.uint8)


# Archives -------------------------------------------------------------------------------------------------------------


def packed_tar(members: dict[str, bytes], mode: str) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode=mode) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return data.getvalue()


def packed_zip(members: dict[str, bytes], compression: int) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return data.getvalue()


def good_archives() -> dict[str, bytes]:
    """One of each kind that people keep images in, with a few of them; sources that are not read are refused."""
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    files = {f"0000{i % 2}/{i}.png": encode(Image.fromarray(image), "PNG") for i, image in enumerate(pixels)}
    labels = b'{"labels": [' + b", ".join(b'["%s", %d]' % (n.encode(), i) for i, n in enumerate(files)) + b"]}"
    samples = {
        f"{i}.{end}": data for i, data in enumerate(files.values()) for end, data in (("png", data), ("cls", b"1"))
    }
    batch = {b"data": pixels.transpose(0, 3, 1, 2).reshape(6, -1), b"labels": [0] * 6, b"filenames": [b"a.png"] * 6}
    arrays, stack, table = io.BytesIO(), io.BytesIO(), io.BytesIO()
    np.savez_compressed(arrays, images=pixels, labels=np.arange(6))
    np.save(stack, pixels)
    cells = [{"bytes": content, "path": name} for name, content in files.items()]
    pq.write_table(pa.table({"image": cells, "label": list(range(6))}), table)
    greys = struct.pack(">BBBBIII", 0, 0, 8, 3, 6, 8, 8) + pixels[..., 0].tobytes()
    return {
        "stored.zip": packed_zip(files, zipfile.ZIP_STORED),
        "deflated.zip": packed_zip(files, zipfile.ZIP_DEFLATED),
        "edm.zip": packed_zip({**files, "dataset.json": labels}, zipfile.ZIP_STORED),
        "nested.zip": packed_zip({**files, "inner.zip": packed_zip(files, zipfile.ZIP_STORED)}, zipfile.ZIP_STORED),
        "plain.tar": packed_tar(files, "w"),
        "packed.tar.gz": packed_tar(files, "w:gz"),
        "web.tar": packed_tar(samples, "w"),
        "cifar-10-python.tar.gz": packed_tar({"cifar-10-batches-py/data_batch_1": pickle.dumps(batch, 2)}, "w:gz"),
        "arrays.npz": arrays.getvalue(),
        "stack.npy": stack.getvalue(),
        "train.parquet": table.getvalue(),
        "train-images-idx3-ubyte": greys,
        "train-images-idx3-ubyte.gz": gzip.compress(greys),
    }


GOOD_ARCHIVES = good_archives()


@seed(20261124)
@settings(settings.get_profile("fuzz"), max_examples=500)
@given(number=st.integers(0, 2**63))
def test_archives(quick, mutated, tmp_path, number):
    rng = np.random.default_rng(number)
    name = sorted(GOOD_ARCHIVES)[rng.integers(len(GOOD_ARCHIVES))]
    content = GOOD_ARCHIVES[name]
    if name.endswith(".gz") and rng.random() < 0.5:
        # What is packed is damaged, and then packed again.
        content = gzip.compress(mutated(gzip.decompress(content), rng), 1)
    else:
        content = mutated(content, rng)
    path = tmp_path / name
    path.write_bytes(content)
    config = ImagesConfig(source=str(path), size=8, enlarge=True, crop="center")
    with quick(), contextlib.suppress(InputDataError, SecurityError):
        source = open_source(config)
        count = 0
        for item in decode_entries(source, config):
            count += 1
            assert str(item) if isinstance(item, Refusal) else item.name
        assert count == len(source)


def test_no_damage_to_a_parquet_footer_ends_the_process(tmp_path):
    """In a process of its own: pyarrow has calls that end theirs (SIGABRT) where a column's statistics are damaged."""
    (tmp_path / "good.parquet").write_bytes(GOOD_ARCHIVES["train.parquet"])
    program = """
import sys
from pathlib import Path
from cedm_ray.data.sources import open_source
from cedm_ray.errors import CedmError
good = Path(sys.argv[1]).read_bytes()
path = Path(sys.argv[1]).with_name("bad.parquet")
start = len(good) - 8 - int.from_bytes(good[-8:-4], "little")
for position in range(start, len(good) - 8):
    path.write_bytes(good[:position] + bytes([8]) + good[position + 1 :])
    try:
        list(open_source(path))
    except CedmError:
        pass
print("all of them")
"""
    done = subprocess.run([sys.executable, "-c", program, tmp_path / "good.parquet"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "all of them\n"), done.stderr[-2000:]
