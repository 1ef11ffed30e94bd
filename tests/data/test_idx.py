import gzip
import struct

import numpy as np
import pytest

from cedm_ray.data.decoding import decode_entries
from cedm_ray.data.images_config import ImagesConfig
from cedm_ray.data.sources import open_source
from cedm_ray.errors import InputDataError

PIXELS = np.random.default_rng(0).integers(0, 256, (4, 7, 7), dtype=np.uint8)
LABELS = np.array([7, 0, 9, 1], np.uint8)


def idx(array: np.ndarray, shape=None) -> bytes:
    """By hand from the description of the format."""
    shape = shape or array.shape
    return struct.pack(f">4B{len(shape)}I", 0, 0, 8, len(shape), *shape) + array.tobytes()


def write(root, *, zipped: bool, images: bytes | None = None, labels: bytes | None = None):
    suffix, pack = (".gz", gzip.compress) if zipped else ("", bytes)
    root.mkdir(exist_ok=True)
    (root / f"train-images-idx3-ubyte{suffix}").write_bytes(pack(images or idx(PIXELS)))
    if labels is not None:
        (root / f"train-labels-idx1-ubyte{suffix}").write_bytes(pack(labels))
    return root / f"train-images-idx3-ubyte{suffix}"


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("whole_folder", [False, True])
def test_images_and_the_labels_beside_them(tmp_path, zipped, whole_folder):
    path = write(tmp_path / "mnist", zipped=zipped, labels=idx(LABELS))
    source = open_source(path.parent if whole_folder else path)
    assert (source.kind, source.labelled, source.streamed) == ("idx", True, zipped)
    images = list(decode_entries(source, ImagesConfig()))
    assert np.array_equal(np.stack([image.pixels for image in images]), np.repeat(PIXELS[:, None], 3, axis=1))
    assert [entry.label for entry in source] == LABELS.tolist()


def test_labels_are_optional(tmp_path):
    source = open_source(write(tmp_path / "mnist", zipped=True))
    assert (source.labelled, len(source)) == (False, 4)


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(("shape", "found"), [((5, 7, 7), "has 196"), ((3, 7, 7), "has (more|196)")])
def test_a_wrong_length_is_an_error(tmp_path, zipped, shape, found):
    path = write(tmp_path / "mnist", zipped=zipped, images=idx(PIXELS, shape))
    with pytest.raises(InputDataError, match=rf"must have {np.prod(shape)} bytes of values .* and {found}"):
        open_source(path)


@pytest.mark.parametrize("labels", [idx(LABELS[:3]), idx(LABELS, (2, 2)), b"\0\0\x0d\1\0\0\0\1abcd"])
def test_bad_labels_are_an_error_that_names_their_file(tmp_path, labels):
    with pytest.raises(InputDataError, match="train-labels-idx1-ubyte"):
        open_source(write(tmp_path / "mnist", zipped=False, labels=labels))


def test_a_truncated_gzip_is_an_error(tmp_path):
    path = write(tmp_path / "mnist", zipped=True)
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(InputDataError, match="truncated or damaged"):
        open_source(path)


def test_a_bomb_is_refused_while_it_inflates(tmp_path):
    path = write(tmp_path / "mnist", zipped=True, images=idx(np.zeros((5_000, 64, 64), np.uint8)))
    with pytest.raises(InputDataError, match=r"inflates more than images.max_ratio \(200\) times"):
        open_source(path)
