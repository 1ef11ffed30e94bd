import os
import shutil

import numpy as np
import pytest

from cedm_ray.data.images_config import ImagesConfig
from cedm_ray.data.importing import import_images
from cedm_ray.data.same_images import same_images
from cedm_ray.data.sources import source_fingerprint


@pytest.fixture
def files(tmp_path, png):
    """Six images, one that is refused by its name and one by its content."""
    root = tmp_path / "files"
    root.mkdir()
    for row in range(6):
        (root / f"{row}.png").write_bytes(png((row, 0, 0)))
    (root / "a.gif").write_bytes(b"")
    (root / "3b.png").write_bytes(b"<html>")
    return root


def config_of(path, **settings):
    return ImagesConfig(source=str(path), max_bad_fraction=0.5, **settings)


def made(path, folder):
    for _ in import_images(config_of(path), folder):
        pass
    return folder


def test_files_that_were_copied_or_packed_are_the_same_images_at_other_times(files, tmp_path, write_zip):
    folder = made(files, tmp_path / "set")
    copy = tmp_path / "copy"
    shutil.copytree(files, copy)
    os.utime(copy / "2.png", ns=(5, 5))
    assert source_fingerprint(config_of(copy)) != source_fingerprint(config_of(files))
    assert same_images(config_of(copy), folder)
    packed = write_zip(tmp_path / "a.zip", {path.name: path.read_bytes() for path in files.iterdir()})
    assert same_images(config_of(packed), folder)


@pytest.mark.parametrize("change", ["pixels", "name", "more", "fewer", "mended", "another reason", "settings"])
def test_any_other_image_name_or_setting_is_noticed(files, tmp_path, png, change):
    folder = made(files, tmp_path / "set")
    config = config_of(files)
    if change == "pixels":
        (files / "5.png").write_bytes(png((9, 9, 9)))
    elif change == "name":
        (files / "5.png").rename(files / "6.png")
    elif change == "more":
        (files / "6.png").write_bytes(png())
    elif change == "fewer":
        (files / "5.png").unlink()
    elif change == "mended":
        (files / "3b.png").write_bytes(png())
    elif change == "another reason":
        (files / "3b.png").write_bytes(b"")
    else:
        config = config_of(files, background="white")
    assert not same_images(config, folder)


def test_labels_are_part_of_what_was_imported(tmp_path):
    x = np.arange(4 * 48, dtype=np.uint8).reshape(4, 4, 4, 3)
    for name, y in (("a", [0, 1, 0, 1]), ("b", [0, 1, 0, 1]), ("c", [0, 1, 1, 1])):
        np.savez(tmp_path / f"{name}.npz", x=x, y=np.array(y))
    folder = made(tmp_path / "a.npz", tmp_path / "set")
    assert same_images(config_of(tmp_path / "b.npz"), folder)
    assert not same_images(config_of(tmp_path / "c.npz"), folder)
