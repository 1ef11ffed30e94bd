"""Small sources of images, written by the library that made their format, and what is read of them."""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from cedm_ray.data.decoding import OneSize, Refusal, decode_entries
from cedm_ray.data.image_set import ImageSet, open_image_set
from cedm_ray.data.images_config import ImagesConfig
from cedm_ray.data.importing import import_images
from cedm_ray.data.sources import open_source


def png_bytes(color=(0, 0, 0), side: int = 4) -> bytes:
    """A square PNG of one color."""
    data = io.BytesIO()
    Image.new("RGB", (side, side), color).save(data, "PNG")
    return data.getvalue()


def read_source(path, **settings) -> tuple[list[str], dict[str, str]]:
    """The names of the good images in order, and the reasons of the refused ones by name."""
    config = ImagesConfig(source=str(path), **settings)
    items = list(decode_entries(open_source(config), config))
    one_size = OneSize()
    for item in items:
        if not isinstance(item, Refusal):
            one_size.check(item.name, item.pixels.shape[-1])
    good = [item.name for item in items if not isinstance(item, Refusal)]
    return good, {item.name: item.reason for item in items if isinstance(item, Refusal)}


def zip_of(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    """A zip of these members in this order."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


@pytest.fixture(scope="session")
def png() -> Callable:
    """`png_bytes`."""
    return png_bytes


@pytest.fixture(scope="session")
def read() -> Callable:
    """`read_source`."""
    return read_source


@pytest.fixture(scope="session")
def write_zip() -> Callable:
    """`zip_of`."""
    return zip_of


@pytest.fixture(scope="session")
def import_all() -> Callable:
    """Import a source to a folder; the set."""

    def run(source, folder: Path, *, workers: int = 0, **settings) -> ImageSet:
        for _ in import_images(ImagesConfig(source=str(source), **settings), folder, workers=workers):
            pass
        return open_image_set(folder)

    return run


@pytest.fixture
def folder(tmp_path) -> Path:
    """Four images below two folders, one of them with another extension than its format."""
    root = tmp_path / "images"
    for name in ("b.png", "a/z.PNG", "a/b/c.jpg", "a-b.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png_bytes())
    return root
