"""Images as they lie, against the arrays that were written; and what is refused, by its name."""

import zipfile

import numpy as np
import pytest
from PIL import Image

from cedm_ray.data.image_set import open_image_set
from cedm_ray.data.images_config import ImagesConfig
from cedm_ray.data.importing import import_images
from cedm_ray.data.stored_images import content_digest, open_stored
from cedm_ray.errors import InputDataError, SecurityError


def pixels_of(count, size=6, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def write_files(folder, pixels):
    folder.mkdir(exist_ok=True)
    # Written backwards, so that only sorting by name gives their order.
    for index in reversed(range(len(pixels))):
        Image.fromarray(pixels[index]).save(folder / f"{index:03d}.png")
    return folder


def packed(folder, path):
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.iterdir(), reverse=True):
            archive.write(file, file.name)
    return path


@pytest.fixture
def stored(tmp_path, request):
    """The same ten images in every form."""
    pixels = pixels_of(10)
    kind = request.param
    if kind in ("folder", "zip"):
        folder = write_files(tmp_path / "images", pixels)
        return (folder if kind == "folder" else packed(folder, tmp_path / "images.zip")), pixels
    path = tmp_path / "images.npz"
    if kind == "ours":
        np.savez(path, images=pixels, seeds=np.arange(10))
    elif kind == "channels first":
        np.savez(path, seeds=np.arange(10), images=np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))
    elif kind == "adm":
        np.savez(path, pixels, np.arange(10))
    else:
        np.savez_compressed(path, pixels)
    return path, pixels


FORMS = ["folder", "zip", "ours", "channels first", "adm", "compressed"]


@pytest.mark.parametrize("stored", FORMS, indirect=True)
def test_positions_are_the_images_in_the_order_of_their_names(stored):
    path, pixels = stored
    images = open_stored(path)
    assert (len(images), images.size, images.name) == (10, 6, "images")
    found = images.read([7, 1, 4])
    assert found.dtype == np.uint8
    assert np.array_equal(found, pixels[[7, 1, 4]].transpose(0, 3, 1, 2))
    assert np.array_equal(images.read(range(1, 10, 4)), pixels[1::4].transpose(0, 3, 1, 2))


@pytest.mark.parametrize("stored", FORMS, indirect=True)
def test_the_digest_is_that_of_the_same_images_as_a_study_has_them(stored, tmp_path):
    path, pixels = stored
    for _ in import_images(ImagesConfig(source=str(write_files(tmp_path / "files", pixels))), tmp_path / "set"):
        pass
    assert content_digest(open_stored(path)) == open_image_set(tmp_path / "set").digest


def test_the_fingerprint_changes_with_the_images(tmp_path):
    np.savez(tmp_path / "a.npz", images=pixels_of(3))
    before = open_stored(tmp_path / "a.npz").fingerprint
    assert open_stored(tmp_path / "a.npz").fingerprint == before
    np.savez(tmp_path / "a.npz", images=pixels_of(3, seed=1))
    assert open_stored(tmp_path / "a.npz").fingerprint != before


def test_another_size_is_refused_with_both_names(tmp_path):
    folder = write_files(tmp_path / "mixed", pixels_of(3))
    Image.fromarray(pixels_of(1, size=8)[0]).save(folder / "x.png")
    images = open_stored(folder)
    assert len(images.read(range(3))) == 3
    with pytest.raises(InputDataError, match=r"000\.png has side 6, x\.png has side 8"):
        images.read([3])


def test_a_file_that_is_no_image_is_refused_by_its_name(tmp_path):
    folder = write_files(tmp_path / "bad", pixels_of(3))
    (folder / "002.png").write_bytes((folder / "002.png").read_bytes()[:60])
    images = open_stored(folder)
    with pytest.raises(InputDataError, match=r"002\.png"):
        images.read([2])
    (folder / "000.png").write_bytes(b"<html></html>")
    with pytest.raises(InputDataError, match=r"000\.png: an HTML page"):
        open_stored(folder)
    (folder / "picture.gif").write_bytes(b"GIF8")
    with pytest.raises(InputDataError, match=r"picture\.gif"):
        open_stored(folder)


def test_empty_and_missing_places_say_so(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputDataError, match=r"no images in .*empty; found: nothing"):
        open_stored(tmp_path / "empty")
    with pytest.raises(InputDataError, match=r"there is no file .*none.npz"):
        open_stored(tmp_path / "none.npz")
    with pytest.raises(InputDataError, match=r"cannot read images from .*none"):
        open_stored(tmp_path / "none")
    with pytest.raises(InputDataError, match="1 image; at least 2"):
        open_stored(write_files(tmp_path / "one", pixels_of(1)))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"labels": np.arange(3)}, "holds no images: its arrays are labels"),
        ({"images": pixels_of(3).astype(np.float32)}, r"images must be uint8 .*, got float32 \[3, 6, 6, 3\]"),
        ({"images": pixels_of(3)[:, :4]}, r"got uint8 \[3, 4, 6, 3\]"),
        ({"images": np.asfortranarray(pixels_of(3))}, "Fortran order"),
    ],
)
def test_arrays_that_are_no_images_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(InputDataError, match=message):
        open_stored(tmp_path / "a.npz")


def test_pickled_objects_are_a_security_matter(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.array([{"a": 1}, None], dtype=object))
    with pytest.raises(SecurityError, match="pickled Python objects and was not read"):
        open_stored(tmp_path / "a.npz")


def test_damaged_archives_are_refused(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"no zip")
    with pytest.raises(InputDataError, match="not an npz file that can be read"):
        open_stored(tmp_path / "a.npz")
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("images.npy", b"no array")
    with pytest.raises(InputDataError, match="not an npz file that can be read"):
        open_stored(tmp_path / "a.npz")


def _spoiled(tmp_path, compress, change):
    """The bytes of an npz of images after `change`, on disk."""
    path = tmp_path / "a.npz"
    (np.savez_compressed if compress else np.savez)(path, images=pixels_of(3))
    data = bytearray(path.read_bytes())
    change(data, data.index(b"PK\x01\x02"))
    path.write_bytes(data)
    return path


def _encrypted(data, directory):
    data[6] |= 1
    data[directory + 8] |= 1


def _unknown_packing(data, directory):
    data[8:10] = data[directory + 10 : directory + 12] = (97).to_bytes(2, "little")


def _broken_stream(data, directory):
    start = 30 + int.from_bytes(data[26:28], "little") + int.from_bytes(data[28:30], "little")
    data[start : start + 4] = b"\xff\xff\xff\xff"


@pytest.mark.parametrize(
    ("compress", "change"), [(False, _encrypted), (False, _unknown_packing), (True, _broken_stream)]
)
def test_archives_that_zipfile_cannot_read_are_refused(tmp_path, compress, change):
    with pytest.raises(InputDataError, match="not an npz file that can be read"):
        open_stored(_spoiled(tmp_path, compress, change))


def test_an_array_by_its_name_without_the_ending_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("images", b"nothing")
    with pytest.raises(InputDataError, match="not an npz file that can be read"):
        open_stored(tmp_path / "a.npz")
