"""The bootstrap interval against differences that are known, and plain resampling; seed sets and their summary."""

import statistics

import numpy as np
import pytest
import torch

from cedm_ray.metrics import uncertainty
from cedm_ray.metrics.frechet import ReferenceFactor, frechet_distance, frechet_reference
from cedm_ray.metrics.statistics import FeatureStatistics
from cedm_ray.metrics.uncertainty import SeedSets, bootstrap_difference, bootstrap_mean_difference, summarize_sets

VARIANCES = np.linspace(0.2, 2, 6)
# A Gaussian of exactly known moments.
POPULATION = ReferenceFactor(
    count=None,
    mean=torch.zeros(6, dtype=torch.float64),
    root=torch.from_numpy(np.diag(VARIANCES**0.5)),
    spread=float(VARIANCES.sum()),
)


def in_blocks(features: np.ndarray, count: int) -> list[FeatureStatistics]:
    return [FeatureStatistics.of(torch.from_numpy(block)) for block in np.split(features, count)]


def two_models(seed: int, count: int = 10, per_block: int = 60) -> tuple[list, list]:
    """Blocks of two models that paint nearly the same from the same noise."""
    random = np.random.default_rng(seed)
    noise, own = random.normal(size=(2, count * per_block, 6))
    a, b = (noise * 1.2 + 0.3) * VARIANCES**0.5, (noise * 1.15 + own * 0.1 + 0.25) * VARIANCES**0.5
    return in_blocks(a, count), in_blocks(b, count)


# For commuting covariances, shifts and scales of each axis: sum of (shift² + (scale - 1)²) times its variance.
EXACT = VARIANCES.sum() * ((0.3**2 + 0.2**2) - (0.25**2 + (np.hypot(1.15, 0.1) - 1) ** 2))


def test_intervals_hold_the_true_difference_as_often_as_they_say():
    found = [bootstrap_difference(*two_models(seed), POPULATION, replicates=100, seed=seed) for seed in range(120)]
    held = np.mean([one.low <= EXACT <= one.high for one in found])
    # 120 intervals of 95 %: the share itself scatters by 2 %.
    assert 0.89 <= held <= 1
    scatter = np.std([one.value for one in found])
    width = np.mean([one.high - one.low for one in found])
    assert 2 * 1.96 * 0.8 < width / scatter < 2 * 2.26 * 1.2
    assert all(one.resolved for one in found)


def test_common_seeds_narrow_the_interval():
    a, b = two_models(1)
    paired = bootstrap_difference(a, b, POPULATION)
    # The same blocks, but no longer those of the same seeds.
    apart = bootstrap_difference(a, b[5:] + b[:5], POPULATION)
    assert apart.value == pytest.approx(paired.value, rel=1e-9)
    assert paired.high - paired.low < 0.25 * (apart.high - apart.low)


def test_a_model_does_not_differ_from_itself():
    a, _ = two_models(2)
    found = bootstrap_difference(a, a, POPULATION)
    assert (found.value, found.low, found.high) == pytest.approx((0, 0, 0), abs=1e-12)
    assert not found.resolved


def test_several_sets_give_the_mean_of_their_differences_and_a_narrower_interval():
    sides = [two_models(seed) for seed in range(4)]
    apart = [bootstrap_difference(*pair, POPULATION, replicates=2000) for pair in sides]
    found = bootstrap_mean_difference(*zip(*sides, strict=True), POPULATION, replicates=2000)
    assert found.value == pytest.approx(np.mean([one.value for one in apart]), rel=1e-12)
    width = np.mean([(one.high - one.low) ** 2 for one in apart]) ** 0.5
    # Of four times the images, and of Student's quantile of 36 instead of 9 degrees of freedom.
    assert found.high - found.low == pytest.approx(width / 2 * 2.028 / 2.262, rel=0.1)
    with pytest.raises(ValueError, match="same sets"):
        bootstrap_mean_difference([sides[0][0]], [], POPULATION)


def test_swapping_the_models_turns_the_interval_around():
    a, b = two_models(3)
    one, other = bootstrap_difference(a, b, POPULATION, seed=5), bootstrap_difference(b, a, POPULATION, seed=5)
    assert (other.value, other.low, other.high) == pytest.approx((-one.value, -one.high, -one.low), rel=1e-9)


@pytest.mark.parametrize("per_block", [2, 60])
def test_resampled_distances_are_those_of_the_resampled_images(per_block, monkeypatch):
    # Blocks of 2 images leave resamples of fewer distinct images than dimensions.
    a, _ = two_models(4, count=5, per_block=per_block)
    reference = FeatureStatistics.of(torch.from_numpy(np.random.default_rng(9).normal(size=(80, 6))))
    weights = torch.tensor([[1, 1, 1, 1, 1], [0, 2, 3, 0, 0], [0, 0, 0, 1, 4], [5, 0, 0, 0, 0]], dtype=torch.float64)
    monkeypatch.setattr(uncertainty, "BATCH_ELEMENTS", 3 * 36)
    found = uncertainty._resampled_distances(a, weights, frechet_reference(reference))
    expected = []
    for row in weights.int().tolist():
        chosen = [block for block, times in zip(a, row, strict=True) for _ in range(times)]
        total = chosen[0]
        for block in chosen[1:]:
            total = total + block
        # The plain distance counts every copy as an image, so that only where copies are no cause of zeros is it exact.
        distinct = sum(times > 0 for times in row) * per_block
        expected.append(frechet_distance(total, reference) if distinct > 6 else np.nan)
    known = ~np.isnan(expected)
    np.testing.assert_allclose(found[known], np.array(expected)[known], rtol=1e-9)
    assert known[0]
    assert np.isfinite(found).all()
    assert (found > 0).all()


def test_the_resamples_follow_the_seed():
    sides = two_models(5)
    assert bootstrap_difference(*sides, POPULATION, seed=1) == bootstrap_difference(*sides, POPULATION, seed=1)
    assert bootstrap_difference(*sides, POPULATION, seed=1) != bootstrap_difference(*sides, POPULATION, seed=2)


def test_a_higher_level_is_a_wider_interval():
    sides = two_models(6)
    wide, narrow = (bootstrap_difference(*sides, POPULATION, level=level) for level in (0.99, 0.8))
    assert wide.low < narrow.low < narrow.value < narrow.high < wide.high


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blocks_a": []}, "at least 5, got 0 and 10"),
        ({"blocks_a": two_models(1, 4)[0], "blocks_b": two_models(1, 4)[1]}, "at least 5, got 4 and 4"),
        ({"blocks_b": two_models(1, 10, 61)[1]}, "equally many images"),
        ({"replicates": 19}, "replicates must be at least 20, got 19"),
        ({"level": 1.0}, r"level must lie in \(0, 1\), got 1.0"),
    ],
)
def test_blocks_that_do_not_pair_are_refused(change, message):
    a, b = two_models(1)
    with pytest.raises(ValueError, match=message):
        bootstrap_difference(**({"blocks_a": a, "blocks_b": b, "reference": POPULATION} | change))


def test_seed_sets_are_disjoint_and_in_order():
    sets = SeedSets(first_seed=7, num_samples=100, num_sets=3).ranges
    assert sets == (range(7, 107), range(107, 207), range(207, 307))
    assert SeedSets().ranges[2] == range(100_000, 150_000)


@pytest.mark.parametrize(("name", "value"), [("first_seed", -1), ("num_samples", 1), ("num_sets", 0)])
def test_seed_sets_of_nothing_are_refused(name, value):
    with pytest.raises(ValueError, match=rf"{name} must be at least \d, got {value}"):
        SeedSets(**{name: value})


def test_a_summary_is_that_of_the_standard_library():
    values = (1.67, 1.71, 1.65)
    found = summarize_sets(values)
    assert found.values == values
    assert found.mean == pytest.approx(statistics.mean(values))
    assert found.std == pytest.approx(statistics.stdev(values))
    assert found.standard_error == pytest.approx(statistics.stdev(values) / 3**0.5)
    assert found.lowest == 1.65


def test_one_set_has_no_deviation():
    found = summarize_sets([2.5])
    assert (found.mean, found.std, found.standard_error, found.lowest) == (2.5, None, None, 2.5)


@pytest.mark.parametrize("values", [[], [1.0, float("nan")], [float("inf")]])
def test_values_that_are_none_are_refused(values):
    with pytest.raises(ValueError, match="at least one finite number"):
        summarize_sets(values)
