"""Where a study stands: by hand from records, in every phase, and with nobody but its storage."""

import json
import shutil

import pytest

from cedm_ray.errors import ConfigurationError, IntegrityError
from cedm_ray.lock import exclusive_lock
from cedm_ray.search.asha import Asha
from cedm_ray.search.results import UNCONDITIONAL, TrialReport, trial_name
from cedm_ray.search.status import read_standing
from cedm_ray.search.study import FitRecord, Study


def report_of(num_clusters, rung, distance, *, train_s=100.0, evaluate_s=28.0, gpus=0.5, trained_images=256):
    """As the rungs of the tiny space, 256 and 512 images."""
    return TrialReport(
        trial=trial_name(num_clusters),
        rung=rung,
        images_seen=256 * (rung + 1),
        distance=distance,
        num_samples=32,
        loss=0.1,
        train_s=train_s,
        evaluate_s=evaluate_s,
        skipped_steps=0,
        collapsed=False,
        trained_images=trained_images,
        gpus=gpus,
    )


@pytest.fixture
def bounded(fresh):
    """The prepared study with fits by hand: C_max is 4, candidates are 2, 3 and 4."""
    for c, used in ((8, 6), (7, 5), (6, 5), (5, 4), (2, 2), (3, 3)):
        record = FitRecord(num_clusters=c, repeat=0, num_used=used, loss=0.0, seconds=1.0)
        fresh.write_fit(record, f"{trial_name(c)}-r0", {}, {})
    fit = fresh.fits()["c00004-r0"]
    assert fit.num_used == 4, "the tiny study's fit of C = 4 must use all clusters"
    fresh.write_candidates([4, 2, 3])
    return fresh


def judge(study, space, reports):
    asha = Asha(space.rungs)
    for report in reports:
        study.begin_trial(report.trial)
        study.write_report(report)
        study.write_decision(asha.decide(report))


def by_name(standing):
    return {trial.trial: trial for trial in standing.trials}


def test_costs_paces_and_ends_by_hand(bounded, tiny_space):
    reports = [
        report_of(4, 0, 2.0),
        # Two trials that are worse than the first at the rung are stopped: 2 x 128 s of half a GPU.
        report_of(2, 0, 3.0),
        report_of(3, 0, 4.0, gpus=1.0),
        report_of(None, 0, 5.0, train_s=50.0, evaluate_s=14.0, gpus=1.0),
    ]
    judge(bounded, tiny_space, reports)
    with exclusive_lock(bounded.lock):
        standing = read_standing(bounded)
    assert (standing.phase, standing.c_max, standing.fits) == ("trials", 4, 7)
    assert standing.driver is not None
    trials = by_name(standing)
    assert list(trials) == [UNCONDITIONAL, "c00002", "c00003", "c00004"]
    assert [trial.state for trial in standing.trials] == ["running", "stopped", "stopped", "running"]
    assert trials["c00004"].utilization == 1.0
    assert trials["c00004"].images_per_s == pytest.approx(2.56)
    assert trials[UNCONDITIONAL].images_per_s == pytest.approx(5.12)
    # 256 images are left of 512; with their evaluations they went at 2 and 4 a second.
    assert trials["c00004"].eta_s == pytest.approx(128)
    assert trials[UNCONDITIONAL].eta_s == pytest.approx(64)
    assert trials["c00002"].eta_s is None
    # Nothing waits, so the slowest is the last.
    assert standing.eta_s == pytest.approx(128)
    assert standing.images_per_s == pytest.approx(2.56 + 5.12)
    assert standing.wasted_gpu_h == pytest.approx(128 * 1.5 / 3600)
    assert standing.gpu_h == pytest.approx(128 * 1.5 / 3600 + 128 * 0.5 / 3600 + 64 / 3600)
    assert standing.wasted_h == pytest.approx(256 / 3600)
    assert "rung cutoff" in trials["c00003"].reason


def test_what_waits_is_counted_at_the_pace_of_what_runs(bounded, tiny_space):
    judge(bounded, tiny_space, [report_of(4, 0, 2.0)])
    with exclusive_lock(bounded.lock):
        standing = read_standing(bounded)
    assert [trial.state for trial in standing.trials] == ["waiting", "waiting", "waiting", "running"]
    # 256 of one and 512 of three others at 2 images a second.
    assert standing.eta_s == pytest.approx((256 + 3 * 512) / 2)


def test_a_checkpoint_between_rungs_counts(bounded, tiny_space):
    judge(bounded, tiny_space, [report_of(4, 0, 2.0)])
    folder = bounded.checkpoints("c00004") / f"{384:012d}"
    folder.mkdir()
    assert by_name(read_standing(bounded))["c00004"].images_seen == 256
    (folder / "manifest.json").write_text("{}")
    assert by_name(read_standing(bounded))["c00004"].images_seen == 384


def test_without_a_driver_nothing_runs_and_nothing_is_expected(bounded, tiny_space):
    judge(bounded, tiny_space, [report_of(4, 0, 2.0)])
    standing = read_standing(bounded)
    assert standing.driver is None
    assert by_name(standing)["c00004"].state == "interrupted"
    assert (standing.eta_s, standing.images_per_s) == (None, None)


def test_a_failure_is_told_with_its_text_also_where_the_fit_failed(bounded, tiny_space):
    judge(bounded, tiny_space, [report_of(4, 0, 2.0)])
    bounded.write_failure("c00004", "out of memory")
    bounded.write_failure("c00003-r0", "no features")
    trials = by_name(read_standing(bounded))
    assert (trials["c00004"].state, trials["c00004"].reason) == ("failed", "out of memory")
    assert (trials["c00003"].state, trials["c00003"].reason) == ("failed", "no features")


def test_records_of_version_0_1_have_no_rates(bounded, tiny_space):
    old = report_of(4, 0, 2.0, gpus=None, trained_images=None)
    judge(bounded, tiny_space, [old])
    path = bounded.path / "trials/c00004/reports/000.json"
    sealed = json.loads(path.read_text())
    assert sealed["data"]["gpus"] is None
    with exclusive_lock(bounded.lock):
        standing = read_standing(bounded)
    trial = by_name(standing)["c00004"]
    assert (trial.images_per_s, trial.gpu_h, trial.eta_s) == (None, None, None)
    assert (standing.gpu_h, standing.eta_s) == (None, None)
    # No trial was wasted, which is known all the same.
    assert standing.wasted_gpu_h == 0


def test_a_report_without_the_new_fields_can_be_read(bounded):
    from cedm_ray import durable

    old = {
        "trial": "c00002",
        "rung": 0,
        "images_seen": 256,
        "distance": 1.0,
        "num_samples": 32,
        "loss": None,
        "train_s": 1.0,
        "evaluate_s": 1.0,
        "skipped_steps": 0,
        "collapsed": False,
    }
    durable.write_record(bounded.path / "trials/c00002/reports/000.json", old)
    (report,) = bounded.reports("c00002")
    assert (report.trained_images, report.gpus, report.images_per_s, report.gpu_h) == (None, None, None, None)


def test_phases_follow_the_records(tmp_path, tiny_space, fresh, done, study_tools):
    begun = Study(tmp_path / "begun")
    begun.settle(tiny_space.settled())
    assert read_standing(begun).phase == "images"
    assert read_standing(fresh).phase == "bound"
    standing = read_standing(done)
    assert (standing.phase, standing.bound is None) == ("over", False)
    assert {trial.state for trial in standing.trials} <= {"completed", "stopped"}
    fresh.neighbors.unlink()
    assert read_standing(fresh).phase == "features"


def test_a_finished_study_tells_what_each_trial_measured(done):
    standing = read_standing(done)
    for trial in standing.trials:
        *_, last = done.reports(trial.trial)
        assert (trial.images_seen, trial.distance, trial.rung) == (last.images_seen, last.distance, last.rung)
        assert trial.images_per_s == pytest.approx(last.trained_images / last.train_s)
        # No GPU was used, and that is known.
        assert (trial.gpus, trial.gpu_h) == (0, 0)
        assert trial.trial_h > 0
    assert json.loads(json.dumps(standing.to_json()))["trials"][1]["utilization"] == standing.trials[1].utilization


def test_no_study_is_a_configuration_error(tmp_path):
    with pytest.raises(ConfigurationError, match="is not a study"):
        read_standing(Study(tmp_path / "nothing"))


def test_proposals_are_listed_by_c_with_their_settings(proposed):
    standing = read_standing(proposed)
    assert [trial.trial for trial in standing.trials] == [UNCONDITIONAL, *(f"c00003-p{n}" for n in (1, 2, 3, 4))]
    tried = {one.task.trial: dict(one.settings) for one in proposed.proposals()}
    assert all(trial.settings == tried.get(trial.trial, {}) for trial in standing.trials)
    assert all(trial.num_used is not None for trial in standing.trials[1:])
    assert json.loads(json.dumps(standing.to_json()))["trials"][1]["settings"] == tried["c00003-p1"]


def test_a_trial_whose_proposal_is_lost_is_an_integrity_error(proposed, tmp_path):
    shutil.copytree(proposed.path, tmp_path / "study")
    (tmp_path / "study" / "proposals" / "0004.json").unlink()
    with pytest.raises(IntegrityError, match="c00003-p4 tries proposal 4, and 3 are on record"):
        read_standing(Study(tmp_path / "study"))
