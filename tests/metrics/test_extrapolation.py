"""Extrapolation against distances that are known for infinitely many images, and a line drawn by hand."""

import numpy as np
import pytest
import torch

from cedm_ray.metrics.extrapolation import frechet_infinity
from cedm_ray.metrics.frechet import ReferenceFactor, frechet_distance, frechet_distance_low_rank
from cedm_ray.metrics.statistics import FeatureStatistics

VARIANCES = np.linspace(0.2, 2, 12)
# A Gaussian of exactly known moments: axes of their own variances, mean 0.
POPULATION = ReferenceFactor(
    count=None,
    mean=torch.zeros(12, dtype=torch.float64),
    root=torch.from_numpy(np.diag(VARIANCES**0.5)),
    spread=float(VARIANCES.sum()),
)


def images(count: int, scale: float, shift: float, seed: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(count, 12)) * VARIANCES**0.5 * scale + shift)


def blocks(count: int, total: int, scale: float, shift: float, seed: int) -> list[FeatureStatistics]:
    return [FeatureStatistics.of(block) for block in images(total, scale, shift, seed).split(total // count)]


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (1.1, 0.1), (1.3, 0.5)])
def test_the_bias_of_few_images_goes_and_the_error_covers_what_is_left(scale, shift):
    # Commuting covariances have a closed form, and this is it for infinitely many images.
    exact = 12 * shift**2 + ((scale - 1) ** 2 * VARIANCES).sum()
    found = [frechet_infinity(blocks(10, 1000, scale, shift, seed), POPULATION, seed=seed) for seed in range(60)]
    values = np.array([one.value for one in found])
    raw = np.array([one.distances[-1] for one in found])
    errors = np.array([one.standard_error for one in found])
    bias, raw_bias = values.mean() - exact, raw.mean() - exact
    assert raw_bias > 0.04
    assert abs(bias) < max(0.15 * raw_bias, 3 * values.std() / 60**0.5)
    # The scatter of 10 unions is known to a quarter; it errs on the wide side where hardly any distance is left.
    assert 0.8 * values.std() < np.sqrt((errors**2).mean()) < (1.4 if shift == 0.5 else 4) * values.std()
    assert (np.abs(values - exact) < 2.26 * errors).mean() > 0.9


def test_the_points_are_means_over_disjoint_unions():
    parts = blocks(6, 300, 1.2, 0.3, seed=1)
    found = frechet_infinity(parts, POPULATION, seed=4)
    assert found.counts == (50, 100, 150, 300)
    order = np.random.default_rng(4).permutation(6)
    shuffled = [parts[row] for row in order]
    singles = [frechet_distance(part, POPULATION) for part in shuffled]
    halves = [frechet_distance(sum(shuffled[i + 1 : i + 3], shuffled[i]), POPULATION) for i in (0, 3)]
    assert found.distances[0] == pytest.approx(np.mean(singles), rel=1e-12)
    assert found.distances[2] == pytest.approx(np.mean(halves), rel=1e-12)
    assert found.standard_error == pytest.approx(np.std(singles, ddof=1) / 6**0.5)
    # The line of least squares, solved by its normal equations.
    x, y = 1 / np.array(found.counts), np.array(found.distances)
    slope = ((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum()
    assert found.slope == pytest.approx(slope)
    assert found.value == pytest.approx(y.mean() - slope * x.mean())


def test_features_take_the_low_rank_form_and_give_the_same_line():
    # Blocks of 5, 10 and 20 images in 12 dimensions.
    features = images(20, 1.2, 0.3, seed=2)
    by_features = frechet_infinity(list(features.split(5)), POPULATION, smallest=5, seed=1)
    by_statistics = frechet_infinity(blocks(4, 20, 1.2, 0.3, seed=2), POPULATION, smallest=5, seed=1)
    assert by_features.counts == (5, 10, 20)
    assert by_features.distances == pytest.approx(by_statistics.distances, rel=1e-9)
    singles = [frechet_distance_low_rank(block, POPULATION) for block in features.split(5)]
    assert by_features.distances[0] == pytest.approx(np.mean(singles), rel=1e-12)


def test_two_blocks_make_the_line_through_two_points():
    found = frechet_infinity(blocks(2, 200, 1.2, 0.3, seed=3), POPULATION)
    half, whole = found.distances
    assert found.value == pytest.approx(2 * whole - half)


def test_unions_of_too_few_images_for_their_width_make_no_point():
    # 24 images are two for each of the 12 dimensions.
    assert frechet_infinity(blocks(4, 48, 1.2, 0.3, seed=3), POPULATION).counts == (24, 48)
    assert frechet_infinity(blocks(4, 48, 1.2, 0.3, seed=3), POPULATION, smallest=2).counts == (12, 24, 48)
    for block in (blocks(4, 44, 1.2, 0.3, seed=3), list(images(44, 1.2, 0.3, seed=3).split(11))):
        with pytest.raises(ValueError, match=r"4 blocks of 11 images make fewer than two unions .* at least 24"):
            frechet_infinity(block, POPULATION)


def test_few_images_are_not_extrapolated_to_nonsense():
    # Five images for each dimension: all unions would give a negative distance, the large ones give the right one.
    wide = ReferenceFactor(
        count=None, mean=torch.zeros(64, dtype=torch.float64), root=torch.eye(64, dtype=torch.float64), spread=64.0
    )
    exact = 64 * 0.1**2
    random = np.random.default_rng(5)
    parts = [FeatureStatistics.of(torch.from_numpy(random.normal(size=(32, 64)) * 1.1)) for _ in range(10)]
    found, bent = frechet_infinity(parts, wide), frechet_infinity(parts, wide, smallest=2)
    assert found.counts == (160, 320)
    assert found.distances[-1] > exact + 2
    assert abs(found.value - exact) < 0.7
    assert bent.value < exact - 1


@pytest.mark.parametrize(
    ("count", "options", "message"),
    [(1, {}, "at least 2 blocks"), (13, {"smallest": 21}, "13 blocks of 20"), (4, {"smallest": 41}, "at least 41")],
)
def test_blocks_that_make_no_line_are_refused(count, options, message):
    with pytest.raises(ValueError, match=message):
        frechet_infinity(blocks(count, 20 * count, 1.2, 0.3, seed=3), POPULATION, **options)


def test_blocks_of_different_sizes_are_refused():
    parts = [FeatureStatistics.of(images(count, 1, 0, seed=1)) for count in (20, 21)]
    with pytest.raises(ValueError, match="equally many images, got from 20 to 21"):
        frechet_infinity(parts, POPULATION)
    with pytest.raises(ValueError, match="at least 2 images"):
        frechet_infinity(list(images(2, 1, 0, seed=1).split(1)), POPULATION, smallest=1)
