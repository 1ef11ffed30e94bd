"""What results say of themselves, by hand."""

import dataclasses
from functools import partial

import pytest

from cedm_ray.clustering.bound import BoundResult
from cedm_ray.search.results import (
    Progress,
    StudyResult,
    TrialReport,
    TrialResult,
    read_trial_name,
    shown,
    trial_name,
)


def report(rung, distance, collapsed=False):
    return TrialReport.played(
        "c00020", rung, distance, images_seen=1000 * (rung + 1), num_samples=8, collapsed=collapsed
    )


def trial(num_clusters, num_used=None, reports=()):
    name = trial_name(num_clusters)
    return TrialResult(
        trial=name, num_clusters=num_clusters, num_used=num_used, status="running", reason="", reports=tuple(reports)
    )


def test_names_of_trials_sort_by_c():
    assert trial_name(None) == "unconditional"
    assert trial_name(2) == "c00002"
    assert trial_name(12345) == "c12345"
    assert sorted(map(trial_name, (100, 20, 3))) == ["c00003", "c00020", "c00100"]


@pytest.mark.parametrize(
    ("c", "seed", "proposal"), [(None, 0, 0), (2, 0, 0), (100, 3, 0), (123456, 12, 0), (20, 0, 7), (20, 2, 13)]
)
def test_a_trial_is_read_from_its_name(c, seed, proposal):
    assert read_trial_name(trial_name(c, seed, proposal)) == (c, seed, proposal)


def test_a_proposal_has_its_number_in_its_trials_names():
    assert trial_name(20, proposal=3) == "c00020-p3"
    assert trial_name(20, seed=1, proposal=3) == "c00020-p3-s1"


@pytest.mark.parametrize(
    "name",
    ["c100", "c00100-s0", "c00100-p0", "c00100-s1-p2", "c00100-final", "c00100-r0", "unconditional-s1", "", "ray"],
)
def test_a_name_of_no_trial_is_refused(name):
    with pytest.raises(ValueError, match="is no name of a trial"):
        read_trial_name(name)


def test_trials_are_compared_at_the_full_budget_and_not_where_the_winner_was_trained_on_to():
    winner = trial(20, reports=[report(0, 3.0), report(1, 2.0), report(2, 1.5)])
    one = dataclasses.replace(study(None), rungs_kimg=(1.0, 2.0, 3.0), full_rung=1)
    assert one.compared(winner) == report(1, 2.0)
    assert dataclasses.replace(one, full_rung=None).compared(winner) == report(2, 1.5)
    assert one.compared(trial(20, reports=[report(0, 3.0)])) == report(0, 3.0)
    assert winner.at(5) is None


@pytest.mark.parametrize(("c", "used", "utilization"), [(20, 19, 0.95), (20, None, None), (None, None, None)])
def test_utilization_is_the_share_of_clusters_in_use(c, used, utilization):
    assert trial(c, used).utilization == utilization


def test_final_is_the_last_report_with_a_usable_distance():
    assert trial(20).final is None
    assert trial(20, reports=[report(0, None)]).final is None
    assert trial(20, reports=[report(0, 3.0), report(1, 2.0)]).final == report(1, 2.0)
    assert trial(20, reports=[report(0, 3.0), report(1, None)]).final == report(0, 3.0)
    assert trial(20, reports=[report(0, 3.0), report(1, 1.0, collapsed=True)]).final == report(0, 3.0)
    # Zero is a distance.
    assert trial(20, reports=[report(0, 3.0), report(1, 0.0)]).final == report(1, 0.0)


def study(best):
    return StudyResult(
        name="x",
        num_images=10,
        image_size=8,
        extractor="pixels",
        metric="FD[pixels]",
        num_samples=8,
        rungs_kimg=(1.0,),
        bound=BoundResult(c_max=20, alpha=0.96, censored=False, reason="", points=()),
        trials=(trial(None), trial(20), trial(4)),
        best=best,
        gain=None,
        stage_s={},
    )


def test_c_v_is_the_c_of_the_best_trial():
    assert study("c00004").best_num_clusters == 4
    assert study(None).best_num_clusters is None
    assert study(None).trial("c00020").num_clusters == 20
    with pytest.raises(KeyError):
        study(None).trial("c00005")


def test_what_a_generator_returns_comes_after_all_its_steps_were_shown():
    def steps():
        yield 1
        yield 2
        return "found"

    seen = []
    told = partial(Progress, task="x", total=2, unit="steps")
    assert shown(steps(), lambda step: told(done=step), seen.append) == "found"
    assert [progress.done for progress in seen] == [1, 2]
