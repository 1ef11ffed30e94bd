import hashlib
import json
import zipfile

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cedm_ray.data import exporting
from cedm_ray.data.exporting import export_images
from cedm_ray.data.sources import open_source
from cedm_ray.errors import StorageError


@pytest.fixture(scope="module")
def images(tmp_path_factory, import_all):
    """The first 12 digits, with their labels, and the same without."""
    folder = tmp_path_factory.mktemp("sets")
    digits = open_source("sklearn:digits")
    greys = np.stack([entry.content for entry in digits.at(range(12))])
    np.savez(folder / "a.npz", x=greys, y=np.arange(12) % 10)
    np.savez(folder / "b.npz", x=greys)
    return {name: import_all(folder / f"{name}.npz", folder / name) for name in "ab"}


@pytest.mark.parametrize(("out", "kind"), [("files", "edm-folder"), ("a.zip", "edm-zip"), ("a.parquet", "parquet")])
def test_an_export_imports_to_the_same_set(images, tmp_path, import_all, out, kind, monkeypatch):
    monkeypatch.setattr(exporting, "_ROWS_PER_GROUP", 5)
    assert list(export_images(images["a"], tmp_path / out)) == list(range(1, 13))
    assert open_source(tmp_path / out).kind == kind
    again = import_all(tmp_path / out, tmp_path / "set")
    assert again.digest == images["a"].digest
    assert np.array_equal(again.labels, images["a"].labels)


@pytest.mark.parametrize("out", ["files", "a.zip", "a.parquet"])
def test_a_set_without_labels_exports_none(images, tmp_path, out):
    list(export_images(images["b"], tmp_path / out))
    assert not open_source(tmp_path / out).labelled


def test_a_zip_has_edms_layout(images, tmp_path):
    list(export_images(images["a"], tmp_path / "a.zip"))
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert archive.namelist() == [f"00000/img{row:08d}.png" for row in range(12)] + ["dataset.json"]
        pairs = json.loads(archive.read("dataset.json"))["labels"]
        assert pairs[11] == ["00000/img00000011.png", 1]
        with Image.open(archive.open("00000/img00000011.png")) as picture:
            assert np.array_equal(np.asarray(picture).transpose(2, 0, 1), images["a"].pixels[11])


def test_parquet_has_the_columns_of_hugging_face(images, tmp_path):
    list(export_images(images["a"], tmp_path / "a.parquet"))
    schema = pq.read_schema(tmp_path / "a.parquet")
    features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert features == {"image": {"_type": "Image"}, "label": {"dtype": "int32", "_type": "Value"}}
    assert pq.read_table(tmp_path / "a.parquet")["image"][3].as_py()["path"] == images["a"].names[3]


@pytest.mark.parametrize("out", ["a.zip", "a.parquet"])
def test_equal_sets_give_equal_files_and_one_cut_short_leaves_none(images, tmp_path, out):
    (tmp_path / "x").mkdir()
    for folder in ("1", "2"):
        list(export_images(images["a"], tmp_path / folder / out))
    digests = {hashlib.sha256((tmp_path / folder / out).read_bytes()).hexdigest() for folder in ("1", "2")}
    assert len(digests) == 1
    export = export_images(images["a"], tmp_path / "x" / out)
    next(export)
    export.close()
    assert list((tmp_path / "x").iterdir()) == []


def test_nothing_is_written_over(images, tmp_path):
    (tmp_path / "a.zip").write_bytes(b"mine")
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "mine").write_bytes(b"")
    for out in ("a.zip", "files"):
        with pytest.raises(StorageError, match="is there already and is not written over"):
            list(export_images(images["a"], tmp_path / out))
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="cannot write"):
        list(export_images(images["a"], tmp_path / "file" / "a.zip"))
