"""Sample efficiency against the paper's two factors and crossings worked by hand."""

import pytest

from cedm_ray.metrics.efficiency import sample_efficiency

SNAPSHOTS = list(range(20, 201, 20))


def falling(start: float, end: float) -> list[float]:
    """A curve over SNAPSHOTS that falls to `end` like 1 / images."""
    rate = (start - end) / (1 / 20 - 1 / 200)
    return [end + rate * (1 / seen - 1 / 200) for seen in SNAPSHOTS]


@pytest.mark.parametrize(("at", "factor"), [(40, 5.0), (60, 200 / 60)])
def test_the_papers_factors_are_those_of_the_snapshots(at, factor):
    # The unconditional model has its best, 2.07, at 200 million images; the other is below it from snapshot `at` on.
    other = [3.0 if seen < at else 2.0 for seen in SNAPSHOTS]
    found = sample_efficiency(SNAPSHOTS, other, SNAPSHOTS, falling(6.0, 2.07))
    assert found.baseline_images == 200
    assert found.snapshot_images == at
    assert found.snapshot_factor == pytest.approx(factor)
    # 3 to 2 over 20 million images: 2.07 is reached 0.07 of the way before the snapshot.
    assert found.images == pytest.approx(at - 0.07 * 20)
    assert found.factor == pytest.approx(200 / (at - 1.4))
    assert not found.at_first


def test_the_target_is_the_baselines_best_where_it_first_has_it():
    found = sample_efficiency([10, 20, 30], [5, 3, 1], [10, 20, 30, 40], [6, 2, 2.5, 2])
    assert (found.target, found.baseline_images) == (2, 20)
    assert found.images == pytest.approx(25)
    assert found.factor == pytest.approx(0.8), "slower than the baseline"


def test_the_first_of_several_crossings_counts():
    found = sample_efficiency([1, 2, 3, 4], [4, 2, 4, 1], [10], [3])
    assert found.images == pytest.approx(1.5)
    assert found.snapshot_images == 2


def test_a_curve_that_touches_the_target_has_reached_it():
    found = sample_efficiency([1, 2], [4, 3], [10], [3])
    assert (found.images, found.factor) == (2, 5)


def test_what_is_never_reached_has_no_factor():
    found = sample_efficiency([1, 2], [4, 3.1], [10], [3])
    assert (found.images, found.factor, found.snapshot_images, found.snapshot_factor) == (None, None, None, None)


def test_a_first_snapshot_below_the_target_gives_a_lower_bound():
    found = sample_efficiency([5, 10], [2, 1], [10, 20], [4, 3])
    assert found.at_first
    assert (found.images, found.factor) == (5, 4)


@pytest.mark.parametrize(
    ("curves", "message"),
    [
        (([1, 2], [3], [1], [3]), "images and distances must be as many"),
        (([], [], [1], [3]), "at least one"),
        (([1], [3], [2, 1], [3, 4]), "baseline_images must be above 0 and strictly ascending"),
        (([0, 1], [3, 4], [1], [3]), "^images must be above 0"),
        (([1], [float("nan")], [1], [3]), "must be finite"),
    ],
)
def test_curves_that_are_none_are_refused(curves, message):
    with pytest.raises(ValueError, match=message):
        sample_efficiency(*curves)
