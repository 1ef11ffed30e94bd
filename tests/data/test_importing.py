import errno
import hashlib
import io
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cedm_ray.config import digest
from cedm_ray.data import importing
from cedm_ray.data.decoding import Refusal
from cedm_ray.data.image_set import open_image_set
from cedm_ray.data.images_config import ImagesConfig
from cedm_ray.data.importing import import_images
from cedm_ray.data.sources import source_fingerprint
from cedm_ray.errors import InputDataError, StorageError


def run(generator):
    """The values that a generator yields, and the one that it returns."""
    values = []
    while True:
        try:
            values.append(next(generator))
        except StopIteration as stop:
            return values, stop.value


@pytest.fixture
def folder(tmp_path):
    """Five random images, of which row i is `expected(i)`, and one that is damaged."""
    root = tmp_path / "my images"
    root.mkdir()
    for i in range(5):
        Image.fromarray(expected(i).transpose(1, 2, 0)).save(root / f"{i}.png")
    (root / "2b.png").write_bytes(b"<html>")
    return root


def expected(i: int) -> np.ndarray:
    return np.random.default_rng(i).integers(0, 256, (3, 6, 6), dtype=np.uint8)


def config_of(folder, **settings) -> ImagesConfig:
    return ImagesConfig(source=str(folder), **{"max_bad_fraction": 0.2, **settings})


def test_row_i_is_image_i_of_the_source_without_the_refused(folder, tmp_path):
    _, images = run(import_images(config_of(folder), tmp_path / "set"))
    assert np.array_equal(images.pixels, np.stack([expected(i) for i in range(5)]))
    assert images.names == ("0.png", "1.png", "2.png", "3.png", "4.png")
    assert images.refused == (Refusal(name="2b.png", reason="an HTML page, not an image"),)
    assert (images.name, len(images), images.size) == ("my-images", 5, 6)
    assert images.fingerprint == source_fingerprint(config_of(folder))


def test_the_digest_is_of_shape_and_pixels_and_not_of_names(folder, tmp_path):
    _, images = run(import_images(config_of(folder), tmp_path / "set"))
    (folder / "4.png").rename(folder / "5.png")
    _, renamed = run(import_images(config_of(folder), tmp_path / "renamed"))
    sha256 = hashlib.sha256(np.stack([expected(i) for i in range(5)]).tobytes()).hexdigest()
    by_hand = {"shape": [5, 3, 6, 6], "dtype": "uint8", "pixels_sha256": sha256}
    assert images.digest == renamed.digest == digest(by_hand)
    assert images.names_digest != renamed.names_digest


def test_progress_counts_every_image_and_refusal_up_to_the_total(folder, tmp_path):
    progress, _ = run(import_images(config_of(folder), tmp_path / "set"))
    assert [p.done for p in progress] == [1, 2, 3, 4, 5, 6]
    assert {p.total for p in progress} == {6}
    assert [p.refused for p in progress] == [0, 0, 0, 1, 1, 1]


def test_the_index_holds_every_image_that_was_found(folder, tmp_path):
    run(import_images(config_of(folder), tmp_path / "set"))
    lines = pq.read_table(tmp_path / "set" / "index.parquet").to_pylist()
    sha256 = hashlib.sha256((folder / "2.png").read_bytes()).hexdigest()
    good = {"row": 2, "name": "2.png", "sha256": sha256, "width": 6, "height": 6, "mode": "RGB", "label": None}
    assert lines[2] == {**good, "reason": None}
    refused = dict.fromkeys(good) | {"name": "2b.png"}
    assert lines[3] == {**refused, "reason": "an HTML page, not an image"}


def test_a_refused_image_ends_the_import_when_told_to_fail(folder, tmp_path):
    with pytest.raises(InputDataError, match=r"refused image 2b.png: an HTML page"):
        run(import_images(config_of(folder, on_bad="fail"), tmp_path / "set"))
    assert list((tmp_path / "set").iterdir()) == []


def test_more_refusals_than_allowed_end_the_import_with_their_reasons(folder, tmp_path):
    message = r"1 of 6 images are refused so far, .*\(0.01\). Reasons: 1 x an HTML page, .* The first: 2b.png$"
    with pytest.raises(InputDataError, match=message) as caught:
        run(import_images(config_of(folder, max_bad_fraction=0.01), tmp_path / "set"))
    assert "repair or remove" in caught.value.mend


def test_sound_images_that_are_too_small_are_not_to_be_repaired_but_the_size_lowered(folder, tmp_path):
    (folder / "2b.png").unlink()
    with pytest.raises(InputDataError, match=r"1 of 5 .* 1 x 6x6 is smaller than images.size \(64\)") as caught:
        run(import_images(config_of(folder, size=64, max_bad_fraction=0), tmp_path / "set"))
    assert caught.value.mend == "lower images.size, or let smaller images in with images.enlarge"


def test_exactly_the_allowed_fraction_is_not_too_much(folder, tmp_path):
    _, images = run(import_images(config_of(folder, max_bad_fraction=1 / 6), tmp_path / "set"))
    assert len(images) == 5


def test_one_image_is_too_few(tmp_path):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "images" / "a.png")
    with pytest.raises(InputDataError, match="has 1 usable images"):
        run(import_images(config_of(tmp_path / "images"), tmp_path / "set"))


def test_an_import_cut_short_is_no_set_and_is_begun_again(folder, tmp_path):
    progress = import_images(config_of(folder), tmp_path / "set")
    next(progress)
    (tmp_path / "set" / ".pixels.npy.1-dead.tmp").write_bytes(b"left by a killed process")
    progress.close()
    with pytest.raises(InputDataError, match="no image set in"):
        open_image_set(tmp_path / "set")
    _, images = run(import_images(config_of(folder), tmp_path / "set"))
    assert len(images) == 5
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == [
        "index.parquet",
        "manifest.json",
        "pixels.npy",
    ]


def test_a_finished_set_is_never_written_over(folder, tmp_path):
    run(import_images(config_of(folder), tmp_path / "set"))
    with pytest.raises(ValueError, match="folder must not hold an image set"):
        run(import_images(config_of(folder), tmp_path / "set"))


def test_a_disk_that_fails_while_images_are_still_decoded_ends_the_import(folder, tmp_path, monkeypatch):
    def fail(file):
        raise OSError(errno.EIO, "Input/output error")

    # Only what is flushed beside the decoding fails: the flush at the end would not be told of it again.
    monkeypatch.setattr(importing, "os", SimpleNamespace(fsync=fail))
    monkeypatch.setattr(importing, "SHARD_BYTES", 2 * 3 * 6 * 6)
    with pytest.raises(StorageError, match="Input/output error"):
        run(import_images(config_of(folder), tmp_path / "set"))
    assert list((tmp_path / "set").iterdir()) == []


def test_a_place_that_cannot_be_written_is_a_storage_error(folder, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="cannot write"):
        run(import_images(config_of(folder), tmp_path / "file" / "set"))


def test_a_zip_gives_the_digest_of_the_folder_in_it(folder, tmp_path):
    import zipfile

    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for path in folder.iterdir():
            archive.write(path, path.name)
    _, images = run(import_images(config_of(folder), tmp_path / "set"))
    _, zipped = run(import_images(config_of(tmp_path / "a.zip"), tmp_path / "zipped"))
    assert (zipped.digest, zipped.names_digest) == (images.digest, images.names_digest)


def test_memory_does_not_grow_with_the_number_of_pixels(tmp_path):
    """200 images of 96 kB each pass through Python in less than 2 MB."""
    import tracemalloc

    root = tmp_path / "images"
    root.mkdir()
    data = io.BytesIO()
    Image.new("RGB", (180, 180)).save(data, "PNG")
    for i in range(200):
        (root / f"{i}.png").write_bytes(data.getvalue())
    generator = import_images(config_of(root), tmp_path / "set")
    next(generator)
    tracemalloc.start()
    for _ in generator:
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000


def test_the_set_has_the_same_bytes_on_any_number_of_workers(folder, tmp_path):
    for workers in (0, 2):
        run(import_images(config_of(folder), tmp_path / str(workers), workers=workers))
    for name in ("pixels.npy", "index.parquet"):
        assert (tmp_path / "0" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


def test_images_of_two_sizes_need_a_size_however_they_are_decoded(folder, tmp_path):
    Image.new("RGB", (8, 8)).save(folder / "9.png")
    for workers in (0, 1):
        with pytest.raises(InputDataError, match=r"0.png has side 6, 9.png has side 8"):
            run(import_images(config_of(folder), tmp_path / "set", workers=workers))
