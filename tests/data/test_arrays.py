import zipfile

import numpy as np
import pytest

from cedm_ray.data.arrays import ARRAYS
from cedm_ray.data.decoding import decode_entries
from cedm_ray.data.images_config import ImagesConfig
from cedm_ray.data.sources import open_source
from cedm_ray.errors import InputDataError, SecurityError

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 6, 6, 3), dtype=np.uint8)


def decoded(path) -> np.ndarray:
    return np.stack([image.pixels for image in decode_entries(open_source(path), ImagesConfig())])


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("images", [PIXELS, PIXELS.transpose(0, 3, 1, 2).copy()])
def test_an_npz_gives_its_images_in_order(tmp_path, save, images):
    save(tmp_path / "a.npz", images=images, other=np.zeros(3))
    source = open_source(tmp_path / "a.npz")
    assert (source.kind, source.labelled, source.streamed) == ("npz", False, save is np.savez_compressed)
    assert np.array_equal(decoded(tmp_path / "a.npz"), PIXELS.transpose(0, 3, 1, 2))
    assert [entry.name for entry in source.at([1, 4])] == ["00000001", "00000004"]


def test_an_npy_gives_its_images_grey_ones_too(tmp_path):
    np.save(tmp_path / "a.npy", PIXELS)
    assert open_source(tmp_path / "a.npy").kind == "npy"
    assert np.array_equal(decoded(tmp_path / "a.npy"), PIXELS.transpose(0, 3, 1, 2))
    for grey in (PIXELS[..., 0], PIXELS[..., :1]):
        np.save(tmp_path / "a.npy", np.ascontiguousarray(grey))
        assert np.array_equal(decoded(tmp_path / "a.npy"), np.repeat(PIXELS[:, None, :, :, 0], 3, axis=1))


@pytest.mark.parametrize(("images", "labels"), ARRAYS.items())
@pytest.mark.parametrize("values", [np.arange(5, dtype=np.uint8), np.arange(5).reshape(5, 1)])
def test_labels_have_the_name_that_goes_with_the_images(tmp_path, images, labels, values):
    np.savez_compressed(tmp_path / "a.npz", **{images: PIXELS, labels: values})
    assert open_source(tmp_path / "a.npz").labels.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.arange(4), r"a.npz: y must hold 5 labels, got an array \[4\]"),
        (np.eye(5, dtype=int), r"got an array \[5, 5\]"),
        (np.array([0, 1, -1, 2, 3]), "a.npz: y: image 2 has the label -1"),
        (np.array([0, 1.5, 1, 2, 3]), "image 0 has the label 0.0"),
    ],
)
def test_bad_labels_are_named(tmp_path, labels, message):
    np.savez(tmp_path / "a.npz", x=PIXELS, y=labels)
    with pytest.raises(InputDataError, match=message):
        open_source(tmp_path / "a.npz")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_objects_are_never_unpickled(tmp_path, save):
    objects = np.array([{}, []], object)
    for arrays in ({"images": objects}, {"images": PIXELS, "labels": objects}):
        save(tmp_path / "a.npz", **arrays)
        with pytest.raises(SecurityError, match="pickled Python objects"):
            open_source(tmp_path / "a.npz")
    np.save(tmp_path / "a.npy", objects)
    with pytest.raises(SecurityError, match="pickled Python objects"):
        open_source(tmp_path / "a.npy")


@pytest.mark.parametrize(
    "array",
    [PIXELS.astype(np.float32), PIXELS[0, 0], np.zeros((2, 4, 4, 5), np.uint8), np.zeros((0, 4, 4, 3), np.uint8)],
)
def test_arrays_that_are_no_images_are_refused(tmp_path, array):
    np.savez(tmp_path / "a.npz", images=array)
    np.save(tmp_path / "a.npy", array)
    for name in ("a.npz", "a.npy"):
        with pytest.raises(InputDataError, match=r"must be uint8 \[N, S, S, 3\]"):
            open_source(tmp_path / name)


def test_an_npz_without_images_says_what_it_holds(tmp_path):
    np.savez(tmp_path / "a.npz", features=np.zeros(3))
    with pytest.raises(InputDataError, match="holds no images: its arrays are features") as caught:
        open_source(tmp_path / "a.npz")
    assert "images or arr_0" in caught.value.mend


def test_a_bomb_is_refused_from_the_directory(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", images=np.zeros((500, 64, 64, 3), np.uint8))
    with pytest.raises(InputDataError, match=r"inflates more than images.max_ratio \(200\) times"):
        open_source(tmp_path / "a.npz")


def test_truncated_arrays_are_errors(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", images=PIXELS)
    data = bytearray((tmp_path / "a.npz").read_bytes())
    data[300:310] = bytes(10)
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(InputDataError, match=r"a.npz (cannot be read to its end|is not an npz file)"):
        decoded(tmp_path / "a.npz")
    np.save(tmp_path / "a.npy", PIXELS)
    (tmp_path / "a.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:-1])
    with pytest.raises(InputDataError, match="is not an npy file that can be read"):
        open_source(tmp_path / "a.npy")


def test_a_shape_that_does_not_fit_the_bytes_is_an_error(tmp_path):
    np.save(tmp_path / "images.npy", PIXELS)
    data = (tmp_path / "images.npy").read_bytes().replace(b"(5, 6, 6, 3)", b"(9, 6, 6, 3)")
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("images.npy", data)
    with pytest.raises(InputDataError, match=r"not as long as its shape \[9, 6, 6, 3\] says"):
        open_source(tmp_path / "a.npz")


def test_digits_carry_their_labels():
    source = open_source("sklearn:digits")
    assert (source.kind, len(source), source.labelled) == ("digits", 1797, True)
    assert [entry.label for entry in source.at(range(12))] == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
