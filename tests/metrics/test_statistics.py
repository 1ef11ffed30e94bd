"""Feature statistics against numpy's two-pass mean and covariance."""

import numpy as np
import pytest
import torch

from cedm_ray.metrics.statistics import FeatureStatistics


def features(count: int = 60, dim: int = 7, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, dim, generator=generator, dtype=torch.float64) * torch.arange(1, dim + 1) + 3


@pytest.mark.parametrize("shift", [0.0, 100.0])
def test_mean_and_covariance_are_those_of_numpy(shift):
    data = features() + shift
    statistics = FeatureStatistics.of(data)
    np.testing.assert_allclose(statistics.mean, data.numpy().mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(statistics.covariance, np.cov(data.numpy(), rowvar=False), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sizes", [[60], [31, 29], [1, 42, 17]])
def test_splitting_the_images_over_workers_changes_nothing(sizes):
    whole = FeatureStatistics.of(features())
    merged = FeatureStatistics.empty(7)
    for part in features().split(sizes):
        merged = merged + FeatureStatistics.of(part)
    assert merged.count == 60
    for name in ("mean", "covariance"):
        expected, got = getattr(whole, name), getattr(merged, name)
        assert (got - expected).norm() <= 1e-12 * expected.norm()


@pytest.mark.parametrize("size", [1, 7, 60, 100])
def test_a_stream_of_batches_gives_the_statistics_of_all(size):
    whole = FeatureStatistics.of(features())
    streamed = FeatureStatistics.over((batch for batch in features().split(size)), 7)
    assert streamed.count == 60
    for name in ("sum", "outer", "covariance"):
        expected, got = getattr(whole, name), getattr(streamed, name)
        assert (got - expected).norm() <= 1e-12 * expected.norm()


def test_a_stream_is_checked_batch_by_batch():
    assert FeatureStatistics.over([], 3).count == 0
    with pytest.raises(ValueError, match="width D = 7, got 6"):
        FeatureStatistics.over([features(), features(dim=6)], 7)
    with pytest.raises(ValueError, match="in 60 of 60"):
        FeatureStatistics.over([features(), features() * float("nan")], 7)


def test_covariance_is_exactly_symmetric():
    covariance = FeatureStatistics.of(features(500, 65).float()).covariance
    assert torch.equal(covariance, covariance.T)


def test_half_precision_features_are_summed_in_float64():
    ones = torch.full((4096, 1), 16.0, dtype=torch.float16)
    statistics = FeatureStatistics.of(ones)
    assert statistics.sum.item() == 4096 * 16
    assert statistics.outer.item() == 4096 * 256


def test_arrays_bring_back_the_same_statistics():
    statistics = FeatureStatistics.of(features())
    again = FeatureStatistics.from_arrays(statistics.to_arrays())
    assert again.count == statistics.count
    assert torch.equal(again.sum, statistics.sum)
    assert torch.equal(again.outer, statistics.outer)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": np.array(1.5)}, "one integer"),
        ({"count": np.array(-1)}, "at least 0"),
        ({"sum": np.zeros(3)}, r"\[D\] and \[D, D\]"),
        ({"sum": np.zeros(2, dtype=np.float32)}, "float64"),
        ({"outer": np.full((2, 2), np.nan)}, "finite"),
        ({"mu": np.zeros(2)}, "count, sum and outer"),
    ],
)
def test_arrays_of_something_else_are_refused(change, message):
    arrays = FeatureStatistics.empty(2).to_arrays() | change
    with pytest.raises(ValueError, match=message):
        FeatureStatistics.from_arrays(arrays)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_feature_that_is_not_finite_is_refused_with_its_count(bad):
    data = features()
    data[5, 2] = bad
    with pytest.raises(ValueError, match="in 1 of 60"):
        FeatureStatistics.of(data)


@pytest.mark.parametrize("data", [torch.zeros(3), torch.zeros(3, 2, dtype=torch.uint8), torch.zeros(3, 0)])
def test_what_is_not_a_matrix_of_floats_is_refused(data):
    with pytest.raises(ValueError, match="features must"):
        FeatureStatistics.of(data)


def test_a_covariance_needs_two_images_and_a_mean_one():
    with pytest.raises(ValueError, match="at least 2 images, got 1"):
        _ = FeatureStatistics.of(features(1)).covariance
    with pytest.raises(ValueError, match="at least 1 image"):
        _ = FeatureStatistics.empty(3).mean
    with pytest.raises(ValueError, match="dim must be at least 1"):
        FeatureStatistics.empty(0)


def test_statistics_of_different_widths_do_not_add():
    with pytest.raises(ValueError, match="D = 3 and 4"):
        FeatureStatistics.empty(3) + FeatureStatistics.empty(4)
    with pytest.raises(TypeError):
        FeatureStatistics.empty(3) + 1
