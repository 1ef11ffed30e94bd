import io
import pickle
import tarfile

import numpy as np
import pytest

from cedm_ray.data.decoding import decode_entries
from cedm_ray.data.images_config import ImagesConfig
from cedm_ray.data.sources import open_source
from cedm_ray.errors import InputDataError, SecurityError


def batch_of(number, count=3, **changes):
    data = np.random.default_rng(number).integers(0, 256, (count, 3072), dtype=np.uint8)
    return {b"data": data, b"labels": [(number + row) % 10 for row in range(count)], **changes}


def write_files(root, files):
    root.mkdir()
    for name, value in files.items():
        (root / name).write_bytes(value if isinstance(value, bytes) else pickle.dumps(value, 2))
    return root


def write_tarball(path, top, files, mode="w:gz"):
    with tarfile.open(path, mode) as archive:
        for name, value in files.items():
            data = value if isinstance(value, bytes) else pickle.dumps(value, 2)
            info = tarfile.TarInfo(f"{top}/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


# The official archive is not in order either.
CIFAR10 = {
    "data_batch_4": batch_of(4),
    "readme.html": b"<html>",
    "test_batch": batch_of(9),
    **{f"data_batch_{number}": batch_of(number) for number in (3, 2, 5, 1)},
    "batches.meta": {b"label_names": [b"airplane"]},
}


@pytest.mark.parametrize("form", ["tar.gz", "tar", "folder"])
def test_the_training_images_come_in_the_official_order_with_their_labels(tmp_path, form):
    if form == "folder":
        path = write_files(tmp_path / "cifar-10-batches-py", CIFAR10)
    else:
        mode = "w:gz" if form == "tar.gz" else "w"
        path = write_tarball(tmp_path / f"a.{form}", "cifar-10-batches-py", CIFAR10, mode)
    source = open_source(path)
    assert (source.kind, source.name, len(source), source.labelled) == ("cifar", "cifar10", 15, True)
    images = list(decode_entries(source, ImagesConfig()))
    expected = np.concatenate([batch_of(number)[b"data"] for number in range(1, 6)]).reshape(15, 3, 32, 32)
    assert np.array_equal(np.stack([image.pixels for image in images]), expected)
    labels = [label for number in range(1, 6) for label in batch_of(number)[b"labels"]]
    assert [entry.label for entry in source] == labels
    assert [entry.name for entry in source.at([2, 3])] == ["data_batch_1/00002", "data_batch_2/00000"]


def test_cifar_100_has_its_fine_labels(tmp_path):
    train = {b"data": batch_of(0)[b"data"], b"fine_labels": [99, 0, 7], b"coarse_labels": [1, 2, 3]}
    files = {"meta": {b"fine_label_names": []}, "test": batch_of(9), "train": train}
    source = open_source(write_tarball(tmp_path / "cifar-100-python.tar.gz", "cifar-100-python", files))
    assert (source.name, source.labels.tolist()) == ("cifar100", [99, 0, 7])


class Attack:
    def __reduce__(self):
        return pytest.fail, ("it ran",)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"data_batch_2": batch_of(2) | {b"labels": Attack()}}, SecurityError, "data_batch_2 has the name"),
        ({"data_batch_2": batch_of(2) | {b"labels": [1, 2]}}, InputDataError, "must be a list of 3 labels, got 2"),
        ({"data_batch_2": batch_of(2) | {b"labels": None}}, InputDataError, "must be a list of 3 labels, got none"),
        ({"data_batch_2": batch_of(2) | {b"labels": [1, 2, -3]}}, InputDataError, "image 2 has the label -3"),
        ({"data_batch_2": {b"labels": []}}, InputDataError, r"data must be uint8 \[n, 3072\], got NoneType"),
        ({"data_batch_2": batch_of(2) | {b"data": np.zeros((3, 9), np.uint8)}}, InputDataError, r"got \[3, 9\]"),
        ({"data_batch_2": b"\x80\x02}"}, InputDataError, "data_batch_2 is a damaged pickle"),
        ({"data_batch_2": b"<html>404</html>"}, SecurityError, "data_batch_2 has the opcode b'<' at byte 0"),
    ],
)
@pytest.mark.parametrize("form", ["folder", "tar"])
def test_a_tampered_batch_is_refused_by_its_name_and_nothing_runs(tmp_path, changes, error, message, form):
    files = CIFAR10 | changes
    if form == "folder":
        path = write_files(tmp_path / "files", files)
    else:
        path = write_tarball(tmp_path / "a.tar", "cifar-10-batches-py", files, "w")
    with pytest.raises(error, match=message):
        open_source(path)


def test_a_missing_batch_is_named(tmp_path):
    files = {name: value for name, value in CIFAR10.items() if name != "data_batch_5"}
    with pytest.raises(InputDataError, match=r"has no cifar-10-batches-py/data_batch_5"):
        open_source(write_files(tmp_path / "files", files))
