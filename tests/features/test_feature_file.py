"""Features that were computed elsewhere stand where an extractor stands, and say what is wrong with them."""

import numpy as np
import pytest
import torch

from cedm_ray.errors import ConfigurationError, InputDataError
from cedm_ray.features.extractors import distance_name, extractor_name, open_extractor
from cedm_ray.features.store import extract_features, feature_key


def extract(images, extractor, folder):
    steps = extract_features(images, extractor, folder, batch_size=7, shard_rows=16)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_the_store_holds_the_files_rows(image_set, tmp_path, dtype):
    images = image_set(40)
    rows = np.random.default_rng(0).normal(size=(40, 5)).astype(dtype)
    np.save(tmp_path / "mine.npy", rows)
    extractor = open_extractor(str(tmp_path / "mine.npy"), images)
    assert (extractor.name, extractor.dim) == ("mine", 5)
    features = extract(images, extractor, tmp_path / "store")
    assert features.dtype == np.float32
    assert (features == rows.astype(np.float32)).all()


def test_other_rows_have_another_key(image_set, tmp_path):
    images, keys = image_set(40), set()
    for name, value in (("a", 0.0), ("b", 1.0), ("c", 0.0)):
        np.save(tmp_path / f"{name}.npy", np.full((40, 2), value))
        keys.add(feature_key(images, open_extractor(str(tmp_path / f"{name}.npy"), images)))
    assert len(keys) == 2


def test_rows_that_are_not_finite_are_named(image_set, tmp_path):
    rows = np.random.default_rng(0).normal(size=(40, 5))
    rows[23, 1] = np.nan
    np.save(tmp_path / "mine.npy", rows)
    images = image_set(40)
    with pytest.raises(InputDataError, match="1 of 16 images: 23"):
        extract(images, open_extractor(str(tmp_path / "mine.npy"), images), tmp_path / "store")


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (np.zeros((39, 5)), r"\[39, 5\] for 40 images"),
        (np.zeros(40), r"\[40\] for 40 images"),
        (np.zeros((40, 0)), r"\[40, 0\]"),
        (np.zeros((40, 5), dtype=np.int64), "int64, not floating-point"),
        (np.array([[{}]] * 40, dtype=object), "cannot read"),
    ],
)
def test_files_that_are_no_features_are_refused(image_set, tmp_path, rows, told):
    np.save(tmp_path / "mine.npy", rows, allow_pickle=True)
    with pytest.raises(InputDataError, match=told):
        open_extractor(str(tmp_path / "mine.npy"), image_set(40))


def test_a_missing_file_is_named(image_set, tmp_path):
    with pytest.raises(InputDataError, match=r"none\.npy"):
        open_extractor(str(tmp_path / "none.npy"), image_set(40))


def test_it_is_no_detector(image_set, tmp_path):
    np.save(tmp_path / "mine.npy", np.random.default_rng(0).normal(size=(40, 5)))
    extractor = open_extractor(str(tmp_path / "mine.npy"), image_set(40))
    with pytest.raises(ConfigurationError, match="cannot compute those of others"):
        extractor(torch.zeros(2, 3, 6, 6, dtype=torch.uint8))
    assert extractor_name("x/mine.npy") == "mine"
    assert distance_name("x/mine.npy") == "FD[mine]"
