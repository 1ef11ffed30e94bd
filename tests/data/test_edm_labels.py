import json

import pytest

from cedm_ray.data.edm_labels import parse_labels
from cedm_ray.data.sources import open_source
from cedm_ray.errors import InputDataError

NAMES = ["00000/a.png", "00000/b.png"]


def labels_of(pairs):
    return parse_labels(json.dumps({"labels": pairs}).encode(), NAMES, others=["bad.gif"], where="dataset.json")


def test_each_image_gets_its_label_in_any_order():
    assert labels_of([[NAMES[1], 7], ["bad.gif", 1], [NAMES[0], 0]]).tolist() == [0, 7]


def test_null_says_that_there_are_no_labels():
    assert labels_of(None) is None


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([[NAMES[0], 1]], "has 1 labels for 3 images; the first image without one is 00000/b.png"),
        ([], "the first image without one is 00000/a.png"),
        ([[NAMES[0], 1], ["00000/c.png", 1]], "entry 1 names 00000/c.png, which is not there"),
        ([[NAMES[0], 1], [NAMES[0], 1]], "entry 1 names 00000/a.png for the second time"),
        ([[NAMES[0], None]], r"entry 0 \(00000/a.png\) has the label null"),
        ([[NAMES[0], 1.5]], r"entry 0 \(00000/a.png\) has the label 1.5"),
        ([[NAMES[0], -1]], r"entry 0 \(00000/a.png\) has the label -1"),
        ([[NAMES[0], True]], "has the label true"),
        ([[NAMES[0], [0, 1]]], r"has the label \[0, 1\]"),
        ([[NAMES[0]]], r"entry 0 must be \[name, label\]"),
        ([3], r"entry 0 must be \[name, label\], got 3"),
        ({"a": 1}, "must be a list"),
    ],
)
def test_the_first_bad_entry_is_named(pairs, message):
    with pytest.raises(InputDataError, match=message) as caught:
        labels_of(pairs)
    assert "labels" in caught.value.mend


@pytest.mark.parametrize("text", [b"", b"\xff", b"[1]", b'{"classes": 1}', b"[" * 10**6])
def test_a_file_of_another_kind_is_an_error(text):
    with pytest.raises(InputDataError, match=r'dataset.json (is not JSON|has no "labels")'):
        parse_labels(text, NAMES, others=[], where="dataset.json")


def test_a_zip_and_a_folder_of_edm_carry_their_labels(tmp_path, png, write_zip):
    text = json.dumps({"labels": [["00000/img00000001.png", 3], ["00000/img00000000.png", 5]]}).encode()
    members = {f"00000/img0000000{row}.png": png((row, 0, 0)) for row in range(2)} | {"dataset.json": text}
    for name, data in members.items():
        (tmp_path / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / name).write_bytes(data)
    write_zip(tmp_path / "a.zip", members)
    for path, kind in ((tmp_path / "folder", "edm-folder"), (tmp_path / "a.zip", "edm-zip")):
        source = open_source(path)
        assert (source.kind, source.labelled) == (kind, True)
        assert [(entry.name, entry.label) for entry in source] == [
            ("00000/img00000000.png", 5),
            ("00000/img00000001.png", 3),
        ]


def test_an_edm_zip_with_bad_labels_is_refused_with_the_entry(tmp_path, png, write_zip):
    path = write_zip(tmp_path / "a.zip", {"a.png": png(), "dataset.json": b'{"labels": [["a.png", -3]]}'})
    with pytest.raises(InputDataError, match=r"a.zip: dataset.json: entry 0 \(a.png\) has the label -3"):
        open_source(path)
