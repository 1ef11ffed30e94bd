import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from cedm_ray.data.image_set import ImageSet, open_image_set
from cedm_ray.durable import read_record, replace_record, sha256_file
from cedm_ray.errors import IntegrityError


def test_pixels_are_a_read_only_memory_map(folder, tmp_path, import_all):
    images = import_all(folder, tmp_path / "set")
    assert isinstance(images.pixels, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        images.pixels[0] = 0


def test_opening_again_gives_the_same_set(folder, tmp_path, import_all):
    images = import_all(folder, tmp_path / "set")
    opened = open_image_set(tmp_path / "set", verify=True)
    assert np.array_equal(opened.pixels, images.pixels)
    for field in ("name", "names", "digest", "refused", "fingerprint"):
        assert getattr(opened, field) == getattr(images, field)


@pytest.mark.parametrize("damage", ["truncate", "remove", "other shape"])
def test_pixels_that_do_not_fit_the_manifest_are_named(folder, tmp_path, import_all, damage):
    import_all(folder, tmp_path / "set")
    path = tmp_path / "set" / "pixels.npy"
    if damage == "truncate":
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "remove":
        path.unlink()
    else:
        np.save(path, np.zeros((4, 3, 6, 6), np.uint8))
    with pytest.raises(IntegrityError, match=r"pixels.npy is not the file that was written"):
        open_image_set(tmp_path / "set")


@pytest.mark.parametrize(("name", "verify"), [("pixels.npy", True), ("index.parquet", False), ("manifest.json", False)])
def test_one_flipped_bit_is_found(folder, tmp_path, import_all, name, verify):
    import_all(folder, tmp_path / "set")
    path = tmp_path / "set" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match=name):
        open_image_set(tmp_path / "set", verify=verify)


def test_objects_in_place_of_pixels_are_never_unpickled(folder, tmp_path, import_all):
    import_all(folder, tmp_path / "set")
    np.save(tmp_path / "set" / "pixels.npy", np.array([{}], object))
    with pytest.raises(IntegrityError, match=r"pixels.npy"):
        open_image_set(tmp_path / "set")


@pytest.mark.parametrize(
    ("pixels", "names", "message"),
    [
        (np.zeros((2, 3, 4, 4), np.float32), ("a", "b"), "must be uint8"),
        (np.zeros((2, 1, 4, 4), np.uint8), ("a", "b"), r"must be uint8 \[N, 3, S, S\]"),
        (np.zeros((2, 3, 4, 5), np.uint8), ("a", "b"), r"got uint8 \[2, 3, 4, 5\]"),
        (np.zeros((1, 3, 4, 4), np.uint8), ("a",), "at least 2 images, got 1"),
        (np.zeros((2, 3, 4, 4), np.uint8), ("a",), "got 1 for 2 images"),
    ],
)
def test_an_image_set_checks_itself(pixels, names, message):
    with pytest.raises(ValueError, match=message):
        ImageSet(name="x", names=names, pixels=pixels, digest="0")


def test_damage_is_found_where_it_is(folder, tmp_path, import_all, monkeypatch):
    monkeypatch.setattr("cedm_ray.data.importing.SHARD_BYTES", 2 * 3 * 4 * 4)
    import_all(folder, tmp_path / "set")
    shards = read_record(tmp_path / "set" / "manifest.json")["shards"]
    assert [shard["rows"] for shard in shards] == [[0, 2], [2, 4]]
    path = tmp_path / "set" / "pixels.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match="rows 2 to 3 does not match"):
        open_image_set(tmp_path / "set", verify=True)


def test_a_set_of_an_earlier_version_opens(folder, tmp_path, import_all):
    images = import_all(folder, tmp_path / "set")
    index = pq.read_table(tmp_path / "set" / "index.parquet").drop_columns(["sha256", "label"])
    pq.write_table(index, tmp_path / "set" / "index.parquet", write_page_checksum=True)
    manifest = read_record(tmp_path / "set" / "manifest.json")
    for key in ("shards", "labelled", "kind"):
        del manifest[key]
    replace_record(
        tmp_path / "set" / "manifest.json",
        {**manifest, "index_sha256": sha256_file(tmp_path / "set" / "index.parquet")},
    )
    old = open_image_set(tmp_path / "set", verify=True)
    assert (old.names, old.digest, old.labels) == (images.names, images.digest, None)
    assert np.array_equal(old.pixels, images.pixels)


def test_labels_are_those_of_the_rows_and_in_no_digest(tmp_path, png, write_zip, import_all):
    names = ["a.png", "b.png", "c.png", "d.png"]
    members = {name: png((level, 0, 0)) for level, name in enumerate(names)}
    members["b.png"] = b"<html>"
    plain = import_all(write_zip(tmp_path / "a.zip", members), tmp_path / "plain", max_bad_fraction=0.5)
    labels = json.dumps({"labels": [[name, 7 - row] for row, name in enumerate(names)]})
    path = write_zip(tmp_path / "a.zip", {**members, "dataset.json": labels.encode()})
    labelled = import_all(path, tmp_path / "labelled", max_bad_fraction=0.5)
    assert labelled.labels.tolist() == [7, 5, 4]
    assert labelled.labels.dtype == np.int32
    assert plain.labels is None
    assert (plain.digest, plain.names_digest) == (labelled.digest, labelled.names_digest)
