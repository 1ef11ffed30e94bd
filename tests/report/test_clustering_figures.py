"""The artists hold the numbers of the bound and of the clusters."""

from statistics import median_low

import numpy as np
import pytest

from cedm_ray.clustering.bound import BoundPoint, BoundResult
from cedm_ray.clustering.lower_bound import lower_bound
from cedm_ray.report.clustering_figures import size_histogram, utilization_versus_clusters


def bound(points, c_max, censored=False):
    answered = tuple(
        BoundPoint(
            num_clusters=c,
            num_used=median_low(told),
            utilization=median_low(told) / c,
            passed=median_low(told) / c > 0.96,
            spread=(max(told) - min(told)) / c if len(told) > 1 else None,
            told=told,
        )
        for c, told in points
    )
    return BoundResult(c_max=c_max, alpha=0.96, censored=censored, reason="", points=answered)


FOUND = bound([(100, (100,)), (400, (300, 304, 290)), (200, (195,))], 200)


def labels(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_the_curve_runs_by_c_and_a_point_that_fails_is_hollow():
    axes = utilization_versus_clusters(FOUND, None).axes[0]
    curve = next(line for line in axes.lines if len(line.get_xdata()) == 3)
    assert list(curve.get_xdata()) == [100, 200, 400]
    assert list(curve.get_ydata()) == [1, 0.975, 0.75]
    hollow = {
        line.get_xdata()[0]: line.get_markerfacecolor() == "#ffffff" for line in axes.lines if line.get_marker() == "o"
    }
    assert hollow == {100: False, 200: False, 400: True}
    assert axes.get_xlim()[0] < 2
    assert axes.get_ylim()[0] < 0.75


def test_a_bar_reaches_from_the_lowest_to_the_highest_of_the_repeats_and_all_of_it_is_seen():
    # The median is the highest here: a bar of half the spread to each side would say that more than all are used.
    axes = utilization_versus_clusters(bound([(50, (50, 40, 50)), (100, (60,))], 50), None).axes[0]
    (bars,) = axes.collections
    ((start, end),) = bars.get_segments()
    np.testing.assert_allclose([start, end], [[50, 0.8], [50, 1.0]])
    low = utilization_versus_clusters(bound([(100, (90, 10, 95))], None), None).axes[0]
    assert low.get_ylim()[0] < 0.1


def test_no_tick_says_that_a_cluster_has_no_image():
    figure = size_histogram(np.array([1, 1, 2, 7, 900]))
    figure.canvas.draw()
    told = [tick.get_text() for tick in figure.axes[0].get_xticklabels()]
    assert "1" in told
    assert "0" not in told


def test_the_range_the_threshold_and_the_lower_end_are_named():
    figure = utilization_versus_clusters(FOUND, lower_bound({500: [30, 40]}))
    assert labels(figure) == ["C from 2 to 200", "threshold α = 0.96", "lower end 35"]
    assert len(figure.axes[0].patches) == 2
    assert labels(utilization_versus_clusters(bound([(50, (50,))], 50, True), None))[0] == "C from 2 to at least 50"
    nothing = utilization_versus_clusters(bound([(2, (1,))], None), None)
    assert labels(nothing) == ["threshold α = 0.96"]


@pytest.mark.parametrize(
    "counts", [[5, 5, 5], [1], [3, 0, 4, 0], list(range(1, 200)), [1, 1, 2, 7, 900, 0], [10_000, 1]]
)
def test_every_used_cluster_is_in_one_bar(counts):
    figure = size_histogram(np.array(counts))
    axes = figure.axes[0]
    assert sum(bar.get_height() for bar in axes.patches) == np.count_nonzero(counts)
    assert len(axes.patches) <= 31
    # Whoever reads it can tell small from large: no axis has a single number.
    low, high = sorted(axes.get_xlim())
    assert sum(low <= tick <= high for tick in axes.get_xticks()) >= 3
    empty = counts.count(0)
    assert (f"{empty:,} of {len(counts):,} clusters are empty" in labels(figure)) == bool(empty)
