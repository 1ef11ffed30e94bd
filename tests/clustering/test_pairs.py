"""What a device holds for the fits: rows, partners, and what is refused."""

import numpy as np
import pytest
import torch

from cedm_ray.clustering.neighbors import nearest_neighbors
from cedm_ray.clustering.pairs import draw_pairs, load_temi_data
from cedm_ray.clustering.recipe import TemiConfig

CONFIG = TemiConfig(num_neighbors=5)


def draw(num_images=40, width=6):
    return np.random.default_rng(0).normal(3, 2, size=(num_images, width)).astype(np.float32)


def load(features, norm="none"):
    config = CONFIG.model_copy(update={"feature_norm": norm})
    return load_temi_data(features, nearest_neighbors(features, 7), config)


def test_a_read_only_memory_map_serves_without_a_copy(tmp_path):
    np.save(tmp_path / "features.npy", draw())
    mapped = np.load(tmp_path / "features.npy", mmap_mode="r")
    data = load(mapped)
    assert data.rows.data_ptr() == mapped.ctypes.data
    assert (data.rows.numpy() == mapped).all()


def test_features_that_could_be_written_to_are_copied():
    features = draw()
    data = load(features)
    features[:] = 0
    assert not (data.rows == 0).any()


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int32])
def test_other_types_become_float32(dtype):
    features = (10 * draw()).astype(dtype)
    features.flags.writeable = False
    data = load(features)
    assert data.rows.dtype == torch.float32
    assert (data.rows.numpy() == features.astype(np.float32)).all()


def test_standardized_rows_have_mean_zero_and_deviation_one_and_say_how():
    features = draw(9000)  # More than one tile.
    features[:, 2] = 0.1  # A constant dimension has no standard deviation to divide by.
    data = load(features, "standardize")
    deviation = features.std(axis=0, ddof=1, dtype=np.float64)
    deviation[2] = 1
    np.testing.assert_allclose(data.normalization["feature_scale"], deviation, rtol=1e-6)
    np.testing.assert_allclose(data.normalization["feature_mean"], features.mean(axis=0, dtype=np.float64), rtol=1e-6)
    expected = (features - data.normalization["feature_mean"]) / data.normalization["feature_scale"]
    np.testing.assert_allclose(data.rows, expected, atol=1e-6)
    assert (data.rows[:, 2] == 0).all()


def test_l2_rows_have_length_one():
    features = draw()
    data = load(features, "l2")
    np.testing.assert_allclose(data.rows, features / np.linalg.norm(features, axis=1, keepdims=True), rtol=1e-6)
    assert data.normalization == {}


def test_an_epoch_has_every_image_once_with_one_of_its_neighbors():
    data = load(draw(200))
    anchors, partners = draw_pairs(data.partners, stream=1).T
    assert sorted(anchors.tolist()) == list(range(200))
    assert all(partner in data.partners[anchor].tolist() for anchor, partner in zip(anchors, partners, strict=True))
    assert not torch.equal(draw_pairs(data.partners, stream=2)[:, 0], anchors)
    # Each of the m = 5 neighbors is drawn about equally often: 3 standard deviations of a binomial are 25 of 120.
    columns = [draw_pairs(data.partners, stream=s) for s in range(3)]
    counts = sum((data.partners[pairs[:, 0]] == pairs[:, 1:]).sum(dim=0) for pairs in columns)
    assert counts.tolist() == pytest.approx([120] * 5, abs=30)


def test_features_that_cannot_be_clustered_are_refused():
    features = draw()
    neighbors = nearest_neighbors(features, 5)
    broken = features.copy()
    broken[[3, 9], 1] = np.nan, np.inf
    with pytest.raises(ValueError, match=r"NaN or infinity in 2 of 40 rows, first \[3, 9\]"):
        load_temi_data(broken, neighbors, CONFIG)
    with pytest.raises(ValueError, match="got 40 equal rows"):
        load_temi_data(np.ones_like(features), neighbors, CONFIG)
    with pytest.raises(ValueError, match=r"neighbors must have shape \[40, at least 5\], got \(40, 4\)"):
        load_temi_data(features, neighbors[:, :4], CONFIG)
    with pytest.raises(ValueError, match=r"neighbors must lie in \[0, 40\), got -1"):
        load_temi_data(features, np.full_like(neighbors, -1), CONFIG)
    with pytest.raises(ValueError, match="features must have shape"):
        load_temi_data(features[0], neighbors, CONFIG)
