"""A study's result from its records: by hand, and after a death at any point."""

import shutil

import numpy as np
import pytest

from cedm_ray.data.image_set import ImageSet, open_image_set
from cedm_ray.errors import IntegrityError
from cedm_ray.search.asha import Asha
from cedm_ray.search.finals import FinalsConfig
from cedm_ray.search.goals import Goal
from cedm_ray.search.outcome import dead_end, restore, study_result
from cedm_ray.search.results import TrialReport, trial_name
from cedm_ray.search.space import SearchSpace
from cedm_ray.search.study import FitRecord, Study

IMAGES = ImageSet(
    name="none",
    names=tuple(f"{i}.png" for i in range(100)),
    pixels=np.zeros((100, 3, 2, 2), dtype=np.uint8),
    digest="0" * 64,
)
SPACE = SearchSpace.model_validate(
    {
        "name": "by-hand",
        "images": {"source": "x"},
        "bound": {"alpha": 0.9, "c_start": 8, "c_limit": 8},
        "candidates": {"explicit": [2, 4, 8]},
        "rungs": {"rungs_kimg": [1, 2], "reduction_factor": 2},
        "evaluation": {"detector": "inception", "num_samples": 8},
    }
)


class ByHand:
    """Writes records as a search would."""

    def __init__(self, path):
        self.study, self.asha = Study(path), Asha(SPACE.rungs)

    def fit(self, c, used):
        record = FitRecord(num_clusters=c, repeat=0, num_used=used, loss=0.0, seconds=1.0)
        self.study.write_fit(record, f"{trial_name(c)}-r0", {}, {})
        return self

    def trial(self, c, *distances, collapsed=False, undecided=False):
        for rung, distance in enumerate(distances):
            report = TrialReport.played(
                trial_name(c),
                rung,
                distance,
                images_seen=1000 * (rung + 1),
                num_samples=8,
                collapsed=collapsed and rung == len(distances) - 1,
            )
            self.study.write_report(report)
            if not (undecided and rung == len(distances) - 1):
                self.study.write_decision(self.asha.decide(report))
        return self

    @property
    def result(self):
        return study_result(self.study, SPACE, IMAGES)


@pytest.fixture
def hand(tmp_path):
    return ByHand(tmp_path)


def test_no_result_while_the_bound_is_unknown(hand):
    assert hand.result is None
    assert hand.trial(None, 9.0, 8.0).result is None
    assert hand.fit(8, 8).result is not None


def test_gain_and_best_by_hand(hand):
    hand.fit(8, 8).fit(4, 4).fit(2, 2)
    hand.trial(None, 12.0, 8.0).trial(4, 9.0, 6.0).trial(2, 8.0, 7.0).trial(8, 10.0)
    result = hand.result
    assert (result.best, result.best_num_clusters) == ("c00004", 4)
    assert result.gain == 0.25
    assert [t.num_clusters for t in result.trials] == [None, 2, 4, 8]
    assert [t.status for t in result.trials] == ["completed", "completed", "completed", "stopped"]
    assert [t.num_used for t in result.trials] == [None, 2, 4, 8]
    assert [[r.distance for r in t.reports] for t in result.trials] == [[12.0, 8.0], [8.0, 7.0], [9.0, 6.0], [10.0]]
    assert result.trial("c00008").reason == "stopped at 1 kimg: 10, rung cutoff 8.5"
    assert (result.metric, result.num_images, result.num_samples) == ("FID", 100, 8)
    assert result.bound.c_max == 8


def test_gain_is_negative_where_the_baseline_is_better(hand):
    assert hand.fit(8, 8).trial(None, 4.0, 4.0).trial(8, 9.0, 5.0).result.gain == -0.25


def test_best_lies_within_the_candidates_also_where_another_c_is_better(hand):
    hand.fit(8, 8).fit(5, 5).fit(20, 20)
    # Trained one at a time by hand: 5 is no candidate, 20 lies above the bound.
    hand.trial(8, 9.0, 6.0).trial(5, 2.0, 1.0).trial(20, 1.5, 0.5)
    result = hand.result
    assert result.best == "c00008"
    assert [t.trial for t in result.trials] == ["unconditional", "c00002", "c00004", "c00008", "c00005", "c00020"]


def test_best_was_trained_on_the_whole_budget(hand):
    hand.fit(8, 8).trial(8, 9.0, 6.0).trial(4, 1.0).trial(2, 0.5, None)
    result = hand.result
    assert result.best == "c00008"
    assert [t.status for t in result.trials] == ["running", "diverged", "running", "completed"]


def test_what_collapsed_or_diverged_is_never_best(hand):
    hand.fit(8, 8).trial(8, 9.0, 0.1, collapsed=True).trial(4, 8.0, None).trial(2, 1.0, -5.0)
    result = hand.result
    assert result.best is None
    assert result.gain is None
    assert [t.status for t in result.trials[1:]] == ["diverged", "diverged", "collapsed"]


def test_of_equal_distances_the_smaller_c_is_best(hand):
    assert hand.fit(8, 8).trial(8, 5.0, 5.0).trial(2, 5.0, 5.0).trial(4, 5.0, 5.0).result.best == "c00002"


@pytest.mark.parametrize("distances", [(), (4.0,), (4.0, None), (4.0, 0.0)])
def test_no_gain_without_a_baseline_to_compare_with(hand, distances):
    assert hand.fit(8, 8).trial(8, 5.0, 5.0).trial(None, *distances).result.gain is None


def test_failures_are_told_with_their_text_also_where_the_fit_failed(hand):
    hand.fit(8, 8).trial(8, 5.0)
    hand.study.write_failure("c00008", "out of memory")
    hand.study.write_failure("c00004-r0", "no luck")
    result = hand.result
    assert (result.trial("c00008").status, result.trial("c00008").reason) == ("failed", "out of memory")
    assert (result.trial("c00004").status, result.trial("c00004").reason) == ("failed", "no luck")
    assert result.trial("c00004").num_used is None
    assert (result.trial("c00002").status, result.trial("c00002").reason) == ("running", "not yet at a rung")


def test_a_report_that_was_not_judged_yet_is_not_shown(hand):
    result = hand.fit(8, 8).trial(8, 5.0, 4.0, undecided=True).result
    assert result.trial("c00008").status == "running"
    assert len(result.trial("c00008").reports) == 1
    assert result.best is None


def test_no_c_that_passes_has_a_result_without_candidates(hand):
    for c in (8, 4, 2):
        hand.fit(c, 1)
    result = hand.result
    assert (result.bound.c_max, result.best, result.gain) == (None, None, None)
    assert [t.trial for t in result.trials] == ["unconditional"]


def test_a_bound_that_waits_for_a_failed_fit_is_a_dead_end(hand):
    hand.study.write_failure("c00008-r0", "out of memory")
    agenda = restore(hand.study, SPACE, 100, Goal(kind="search")).agenda
    error = dead_end(hand.study, agenda)
    assert "without C = 8: out of memory" in str(error)
    assert str(hand.study.path / "failures" / "c00008-r0.json") in error.mend
    # One trial alone does not need the bound.
    agenda = restore(hand.study, SPACE, 100, Goal(kind="trial", num_clusters=4)).agenda
    assert dead_end(hand.study, agenda) is None


def test_a_lost_report_behind_a_decision_is_an_integrity_error(hand):
    hand.fit(8, 8).trial(8, 5.0)
    (hand.study.path / "trials" / "c00008" / "reports" / "000.json").unlink()
    with pytest.raises(IntegrityError, match="decision 1 on c00008 has no report"):
        restore(hand.study, SPACE, 100, Goal(kind="search"))


def without_times(result):
    return [(t.trial, t.status, t.reason, [(r.rung, r.distance) for r in t.reports]) for t in result.trials]


@pytest.fixture(scope="module")
def one_at_a_time(prepared, tiny_space, tmp_path_factory, study_tools):
    """A search on one core, where the order of all events is one and the same."""
    study = Study(tmp_path_factory.mktemp("alone") / "study")
    shutil.copytree(prepared.path, study.path)
    study_tools.drive(study, tiny_space, cpus=1)
    return study


def test_a_search_killed_again_and_again_and_run_again_finds_the_same(one_at_a_time, fresh, tiny_space, study_tools):
    for turns in (1, 12, 8, 9, 15):
        assert not study_tools.drive(fresh, tiny_space, cpus=1, steps=turns).finished
    kept = (set(fresh.fits()), len(fresh.decisions()))
    study_tools.drive(fresh, tiny_space, cpus=1)
    images = open_image_set(fresh.images)
    expected, found = (study_result(study, tiny_space, images) for study in (one_at_a_time, fresh))
    assert found.bound == expected.bound
    assert found.best == expected.best
    assert found.gain == expected.gain
    assert without_times(found) == without_times(expected)
    assert fresh.decisions() == one_at_a_time.decisions()
    assert kept[0] <= set(fresh.fits()) == set(one_at_a_time.fits())


def test_a_search_of_many_tasks_at_once_finds_the_bound_and_distances_of_one_at_a_time(
    one_at_a_time, finished, tiny_space
):
    images = open_image_set(finished.images)
    alone, together = (study_result(study, tiny_space, images) for study in (one_at_a_time, finished))
    assert together.bound == alone.bound
    distances = [
        {(t.trial, r.rung): r.distance for t in result.trials for r in t.reports} for result in (alone, together)
    ]
    # Which trial is stopped depends on who comes first at a rung; what each measures does not.
    shared = distances[0].keys() & distances[1].keys()
    assert len(shared) >= 4
    assert {key: distances[0][key] for key in shared} == {key: distances[1][key] for key in shared}


def test_a_search_with_waiting_trials_finalists_and_a_last_stretch(fresh, tiny_space, study_tools):
    """The whole of it on a real study, and once more after a cut."""
    space = tiny_space.model_copy(
        update={
            "rungs": tiny_space.rungs.model_copy(update={"rule": "halving"}),
            "finals": FinalsConfig(finalists=1, seeds=2, budget_kimg=0.64),
        }
    )
    study_tools.drive(fresh, space, cpus=2, steps=40)
    driver = study_tools.drive(fresh, space, cpus=2)
    images = open_image_set(fresh.images)
    result = study_result(fresh, space, images)
    assert any(decision.status == "waiting" for decision in driver.asha.decisions)
    completed = [t for t in result.trials if t.num_clusters is not None and t.status == "completed"]
    assert [t.seed for t in completed] == [0, 1]
    assert len({t.num_clusters for t in completed}) == 1
    # The better of the winner's two seeds at the full budget is what was trained on.
    best = min(completed, key=lambda t: t.at(1).distance)
    assert (result.best, result.full_rung, result.rungs_kimg) == (best.trial, 1, (0.256, 0.512, 0.64))
    assert [r.rung for r in best.reports] == [0, 1, 2]
    assert result.gain == 1 - best.at(1).distance / result.trials[0].at(1).distance
    stopped = [t for t in result.trials if t.status == "stopped"]
    assert len(stopped) == len(driver.agenda.candidates) - 1
    assert all(t.final.distance >= completed[0].reports[0].distance for t in stopped)
    assert restore(fresh, space, len(images), Goal(kind="search")).agenda.finished


def test_a_result_tells_every_proposal_with_its_settings(proposed, proposing_space):
    images = open_image_set(proposed.images)
    result = study_result(proposed, proposing_space, images)
    tried = {one.task.trial: dict(one.settings) for one in proposed.proposals()}
    assert [trial.trial for trial in result.trials] == [
        "unconditional",
        "c00003-p1",
        "c00003-p2",
        "c00003-p3",
        "c00003-p4",
    ]
    assert {trial.trial: trial.settings for trial in result.trials[1:]} == tried
    assert result.trials[0].settings == {}
    assert {trial.num_clusters for trial in result.trials[1:]} == {3}
    for trial in result.trials[1:]:
        gamma = tried[trial.trial]["clustering.gamma"]
        fit = "c00003-r0" if gamma == 0.6 else "c00003-5f7a6adf-r0"
        assert trial.num_used == proposed.fits()[fit].num_used
    best = min(result.trials[1:], key=lambda trial: trial.reports[-1].distance)
    assert (result.best, result.best_num_clusters) == (best.trial, 3)


def test_a_proposal_whose_fit_failed_is_told_with_its_text(proposed, proposing_space, tmp_path):
    shutil.copytree(proposed.path, tmp_path / "study")
    study = Study(tmp_path / "study")
    study.write_failure("c00003-5f7a6adf-r0", "out of memory")
    result = study_result(study, proposing_space, open_image_set(study.images))
    failed = {trial.trial for trial in result.trials if trial.status == "failed"}
    assert failed == {one.task.trial for one in study.proposals() if dict(one.settings)["clustering.gamma"] == 0.9}
