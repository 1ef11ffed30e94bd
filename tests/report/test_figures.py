"""The figures' artists hold the study's numbers; grids hold the images' pixels."""

import re
from dataclasses import replace

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from cedm_ray.clustering.bound import BoundPoint, BoundResult
from cedm_ray.report.figures import (
    amount,
    distance_versus_clusters,
    distance_versus_images,
    number,
    svg,
)
from cedm_ray.search.results import FEATURES, StudyResult, TrialReport, TrialResult, trial_name

RUNGS = (5.0, 10.0, 20.0)


def trial(num_clusters, distances, status="completed", collapsed=()):
    reports = tuple(
        TrialReport(
            trial=trial_name(num_clusters),
            rung=rung,
            images_seen=int(1000 * RUNGS[rung]),
            distance=distance,
            num_samples=100,
            loss=0.3,
            train_s=1.0,
            evaluate_s=0.1,
            skipped_steps=0,
            collapsed=rung in collapsed,
        )
        for rung, distance in enumerate(distances)
    )
    name = trial_name(num_clusters)
    return TrialResult(
        trial=name, num_clusters=num_clusters, num_used=num_clusters, status=status, reason="", reports=reports
    )


def bound(c_max=40, censored=False, points=((10, 10), (20, 20), (40, 39), (80, 70))):
    answered = tuple(
        BoundPoint(
            num_clusters=c, num_used=used, utilization=used / c, passed=used / c > 0.96, spread=None, told=(used,)
        )
        for c, used in points
    )
    return BoundResult(c_max=c_max, alpha=0.96, censored=censored, reason="found", points=answered)


def study(*trials, best="c00020", **changes):
    result = StudyResult(
        name="digits",
        num_images=300,
        image_size=8,
        extractor="pixels",
        metric="FD[pixels]",
        num_samples=100,
        rungs_kimg=RUNGS,
        bound=bound(),
        trials=trials,
        best=best,
        gain=0.25,
        stage_s={},
    )
    return replace(result, **changes)


TRIALS = (
    trial(None, [40.0, 20.0, 8.0]),
    trial(20, [30.0, 12.0, 6.0]),
    trial(10, [32.0, 14.0, 7.0]),
    trial(40, [39.0, 19.0], status="stopped"),
    trial(5, [37.0, None], status="diverged"),
    trial(2, [], status="failed"),
)


def lines(axes):
    return {line.get_label(): line for line in axes.lines}


def texts(axes):
    return [text.get_text() for text in axes.texts]


def test_completed_trials_are_a_line_in_the_order_of_c():
    line = lines(distance_versus_clusters(study(*TRIALS)).axes[0])["trained to the full budget"]
    assert line.get_xdata().tolist() == [10, 20]
    assert line.get_ydata().tolist() == [7.0, 6.0]


def test_trials_that_ended_early_are_hollow_at_their_last_distance_and_say_when():
    axes = distance_versus_clusters(study(*TRIALS)).axes[0]
    line = lines(axes)["short of the full budget (images seen)"]
    assert line.get_markerfacecolor() == "#ffffff"
    assert list(zip(line.get_xdata(), line.get_ydata(), strict=True)) == [(5, 37.0), (40, 19.0)]
    assert {"5k", "10k"} <= set(texts(axes))


def test_the_baseline_is_level_and_the_best_is_marked_with_its_distance():
    axes = distance_versus_clusters(study(*TRIALS)).axes[0]
    assert set(lines(axes)["unconditional model"].get_ydata()) == {8.0}
    assert (lines(axes)["best"].get_xdata()[0], lines(axes)["best"].get_ydata()[0]) == (20, 6.0)
    assert "C = 20: 6.000" in texts(axes)


def test_a_trial_on_features_is_a_level_of_its_own_and_a_line_by_its_name():
    oracle = replace(trial(None, [10.0, 8.0, 2.0]), trial=FEATURES)
    oracle = replace(oracle, reports=tuple(replace(report, trial=FEATURES) for report in oracle.reports))
    result = study(*TRIALS, oracle)
    drawn = lines(distance_versus_clusters(result).axes[0])
    assert set(drawn["on feature vectors"].get_ydata()) == {2.0}
    assert set(drawn["unconditional model"].get_ydata()) == {8.0}
    axes = distance_versus_images(result).axes[0]
    assert lines(axes)[FEATURES].get_ydata().tolist() == [10.0, 8.0, 2.0]
    assert FEATURES in texts(axes)


def test_the_searched_range_ends_at_c_max_and_utilization_has_its_own_axis():
    axes, right = distance_versus_clusters(study(*TRIALS)).axes
    (band,) = axes.patches
    assert (band.get_x(), band.get_x() + band.get_width()) == (2, 40)
    assert lines(right)["share of clusters used, r(C)"].get_ydata().tolist() == [1.0, 1.0, 39 / 40, 70 / 80]
    assert set(lines(right)["threshold α = 0.96"].get_ydata()) == {0.96}


def test_a_censored_bound_says_at_least():
    figure = distance_versus_clusters(study(*TRIALS, bound=bound(censored=True)))
    assert "searched range, 2 to at least 40" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_cluster_ticks_are_plain_integers():
    figure = distance_versus_clusters(study(*TRIALS))
    labels = [tick.get_text() for tick in figure.axes[0].get_xticklabels()]
    assert sorted(labels, key=int) == ["2", "5", "10", "20", "40", "80"]


def test_each_trial_is_a_line_over_thousands_of_images():
    axes = distance_versus_images(study(*TRIALS)).axes[0]
    drawn = lines(axes)
    assert drawn["c00040"].get_xdata().tolist() == [5.0, 10.0]
    assert drawn["c00040"].get_ydata().tolist() == [39.0, 19.0]
    assert drawn["c00005"].get_ydata().tolist() == [37.0]
    assert drawn["unconditional"].get_linestyle() == "--"
    assert drawn["c00020"].get_linewidth() > drawn["c00010"].get_linewidth()
    assert "c00002" not in drawn
    crosses = [line for line in axes.lines if line.get_marker() == "x"]
    assert {(line.get_xdata()[0], line.get_ydata()[0]) for line in crosses} == {(10.0, 19.0), (5.0, 37.0)}
    assert sorted(texts(axes)) == ["C = 10", "C = 20", "C = 40", "C = 5", "unconditional"]
    assert [line.get_xdata()[0] for line in axes.lines if line.get_linewidth() == 0.7] == list(RUNGS)


@pytest.mark.parametrize("rungs", [(40.0, 80.0), (60.0, 80.0), (5.0, 10.0, 20.0), (1.0, 100.0)])
def test_names_of_trials_that_ended_at_the_first_rung_stand_inside_the_axes(rungs):
    ended = replace(trial(1250, [30.0], status="stopped"), seed=1)
    report = replace(ended.reports[0], images_seen=int(1000 * rungs[0]))
    result = study(replace(ended, reports=(report,)), best=None, rungs_kimg=rungs)
    figure = distance_versus_images(result)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    (axes,) = figure.axes
    (name,) = axes.texts
    assert name.get_text() == "C = 1,250, seed 1"
    assert name.get_window_extent(canvas.get_renderer()).x0 > axes.bbox.x0


def test_a_collapsed_report_is_no_distance():
    result = study(trial(10, [30.0, 0.1], status="collapsed", collapsed={1}), best=None)
    assert lines(distance_versus_images(result).axes[0])["c00010"].get_ydata().tolist() == [30.0]
    hollow = lines(distance_versus_clusters(result).axes[0])["short of the full budget (images seen)"]
    assert hollow.get_ydata().tolist() == [30.0]


def test_more_names_than_fit_leave_those_of_the_best_and_the_baseline():
    crowd = [trial(c, [30.0, 20.0, 6.0 + c / 1000]) for c in range(3, 70)]
    result = study(trial(None, [40.0, 30.0, 20.0]), *crowd, best="c00069")
    named = texts(distance_versus_images(result).axes[0])
    assert {"unconditional", "C = 69", "C = 3"} <= set(named)
    assert len(named) < 40


@pytest.mark.parametrize(
    "result",
    [
        study(best=None),
        study(*(trial(c, [], status="failed") for c in (None, 2, 4)), best=None),
        study(trial(2, [5.0, 5.0, 5.0]), best="c00002"),
        study(trial(2, [0.0, 0.0, 0.0]), best="c00002"),
        study(trial(2, [5.0]), best="c00002", rungs_kimg=(5.0,), bound=bound(c_max=None, points=())),
        study(*TRIALS, bound=bound(c_max=2, points=((2, 2),))),
        study(*TRIALS, bound=bound(c_max=None, points=((2, 1), (50, 3)))),
        study(*TRIALS, metric="FD[a$b$^{c]"),
        study(*TRIALS, metric="FD[数字\x1b]"),
    ],
)
@pytest.mark.parametrize("draw", [distance_versus_clusters, distance_versus_images])
def test_every_study_draws(result, draw):
    assert svg(draw(result), "a figure").endswith("</svg>\n")


def test_svg_is_the_same_for_the_same_study_and_holds_no_address():
    markup = svg(distance_versus_clusters(study(*TRIALS)), 'a <b> & "c"')
    assert markup == svg(distance_versus_clusters(study(*TRIALS)), 'a <b> & "c"')
    assert "http" not in markup
    assert 'aria-label="a &lt;b&gt; &amp; &quot;c&quot;"' in markup


def test_two_figures_on_one_page_share_no_clip_path():
    defined = [
        set(re.findall(r'<clipPath id="([^"]+)"', svg(draw(study(*TRIALS)), draw.__name__)))
        for draw in (distance_versus_clusters, distance_versus_images)
    ]
    assert defined[1]
    assert not defined[0] & defined[1]


def test_numbers_for_the_eye():
    assert [number(value) for value in (3.14159, 153.24, 12345.6, 0.012345)] == ["3.142", "153.2", "12,346", "0.01235"]
    assert [amount(value) for value in (0.5, 5.0, 2.5, 1e5)] == ["500", "5k", "2.5k", "100M"]
