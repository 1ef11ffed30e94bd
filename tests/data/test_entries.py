import collections

import numpy as np
import pytest

from cedm_ray.data.entries import check_label, distrust_name, is_hidden, regular_files, sort_out
from cedm_ray.errors import InputDataError


@pytest.mark.parametrize("value", [0, 9, 2**31 - 1, np.int64(3), np.uint8(255)])
def test_whole_numbers_of_at_least_0_are_labels(value):
    label = check_label(value, "x")
    assert (label, type(label)) == (int(value), int)


@pytest.mark.parametrize("value", [None, -1, 1.0, 2**31, True, "3", [1], {"a": 1}, float("nan")])
def test_anything_else_is_no_label_and_named(value):
    with pytest.raises(InputDataError, match=r"image 4 has the label .*, which is not a whole number of at least 0"):
        check_label(value, "image 4")


@pytest.mark.parametrize("name", ["/a.png", "a\\b.png", "C:a.png", "a\0.png", "../a.png", "a/../../b.png"])
def test_names_that_lead_elsewhere_are_not_trusted(name):
    assert distrust_name(name) is not None


@pytest.mark.parametrize("name", ["a.png", "a/b.png", "a..b/c.png", "ä:b.png", "c"])
def test_plain_names_are_trusted(name):
    assert distrust_name(name) is None


def test_hidden_parts_hide_a_name():
    assert [is_hidden(name) for name in ("a/.b.png", "__MACOSX/a.png", ".a/b.png", "a.b/c.png")] == [True] * 3 + [False]


def test_extensions_are_counted_and_judged():
    counts: collections.Counter = collections.Counter()
    reasons = [sort_out(name, counts) for name in ("a.PNG", "b.gif", "c.txt", "d")]
    assert reasons == [None, ".gif is not read; PNG, JPEG, WebP, BMP and TIFF are", "", ""]
    assert counts == {".png": 1, ".gif": 1, ".txt": 1, "no extension": 1}


def test_only_regular_files_right_in_the_folder_are_taken(tmp_path):
    for name in ("b.tar", "a.TAR", ".c.tar", "d.txt"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "e.tar").symlink_to(tmp_path / "b.tar")
    (tmp_path / "f.tar").mkdir()
    assert [path.name for path in regular_files(tmp_path, (".tar",))] == ["a.TAR", "b.tar"]
