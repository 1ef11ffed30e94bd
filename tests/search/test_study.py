"""The study directory: records go around unchanged, and whatever is missing or different is noticed."""

from pathlib import Path

import numpy as np
import pytest

from cedm_ray import durable
from cedm_ray.errors import ConfigurationError, IntegrityError
from cedm_ray.search.goals import FitTask, Proposal
from cedm_ray.search.results import Decision, TrialReport
from cedm_ray.search.study import FitRecord, Study


@pytest.fixture
def study(tmp_path) -> Study:
    return Study(tmp_path / "study")


REPORT = TrialReport(
    trial="c00007",
    rung=1,
    images_seen=512,
    distance=1 / 3,
    num_samples=32,
    loss=0.1 + 0.2,
    train_s=1.5,
    evaluate_s=0.25,
    skipped_steps=2,
    collapsed=False,
)
DIVERGED = TrialReport(
    trial="c00007",
    rung=0,
    images_seen=256,
    distance=None,
    num_samples=32,
    loss=None,
    train_s=0.0,
    evaluate_s=0.0,
    skipped_steps=20,
    collapsed=True,
)


def decision(sequence, **changes):
    values = {"trial": "c00007", "rung": 0, "images_seen": 256, "status": "running", "cutoff": 1 / 7, "reason": "é – <"}
    return Decision(sequence=sequence, **{**values, **changes})


def test_making_the_value_touches_nothing(study):
    assert not study.path.exists()
    assert (study.fits(), study.trials(), study.failures()) == ({}, [], {})
    assert (study.decisions(), study.stage_s(), study.reports("c00007")) == ([], {}, [])
    assert not study.path.exists()


SETTLED = {"seed": 0, "images": {"size": 64}, "clustering": {"num_neighbors": 50, "epochs": 9}, "bound": {"alpha": 0.9}}
OTHERS = {
    "images.size": SETTLED | {"images": {"size": 32}},
    "clustering.num_neighbors": SETTLED | {"clustering": {"num_neighbors": 20, "epochs": 9}},
    "clustering.epochs": SETTLED | {"clustering": {"num_neighbors": 50, "epochs": 8}},
    "bound.alpha": SETTLED | {"bound": {"alpha": 0.8}},
    "seed": SETTLED | {"seed": 1},
}


@pytest.mark.parametrize(
    ("there", "fixed"),
    [
        ((), set()),
        (("images/manifest.json",), {"images.size"}),
        (("images/manifest.json", "neighbors.safetensors"), {"images.size", "clustering.num_neighbors"}),
        (("images/manifest.json", "neighbors-0123.safetensors"), {"images.size", "clustering.num_neighbors"}),
        (("fits/c00010-r0.json",), set(OTHERS)),
        (("trials/c00010/checkpoints/new",), set(OTHERS)),
        (("clusterings/kmeans-c00010.parquet",), set(OTHERS)),
        # A task may be at work that has not written anything yet.
        (("ray/run-001/new",), set(OTHERS)),
    ],
)
def test_settings_may_change_until_something_was_made_by_them(study, there, fixed):
    study.settle(SETTLED)
    for name in there:
        (study.path / name).parent.mkdir(parents=True, exist_ok=True)
        (study.path / name).touch()
    for key, other in OTHERS.items():
        if key in fixed:
            for refused in (study.settle, study.check_settled):
                with pytest.raises(ConfigurationError, match=f"begun with another space: {key} was"):
                    refused(other)
            assert study.settled() == SETTLED
        else:
            # What only looks does not write.
            assert study.check_settled(other) == (key,)
            assert study.settled() == SETTLED
            study.settle(other)
            assert study.settled() == other
            study.settle(SETTLED)
    assert study.settled() == SETTLED


def test_reports_go_around_unchanged_and_come_by_rung(study):
    study.write_report(REPORT)
    study.write_report(DIVERGED)
    assert study.reports("c00007") == [DIVERGED, REPORT]
    assert study.trials() == ["c00007"]


def test_decisions_go_around_unchanged_and_come_by_number(study):
    written = [decision(number, cutoff=None if number == 3 else number / 7) for number in range(1, 13)]
    for item in reversed(written):
        study.write_decision(item)
    assert study.decisions() == written


def test_a_fit_goes_around_unchanged_with_its_tensors(study):
    fit = FitRecord(num_clusters=7, repeat=1, num_used=6, loss=-0.1, seconds=1.25)
    tensors = {"labels": np.arange(5, dtype=np.int32), "head_losses": np.array([0.5, 0.25])}
    study.write_fit(fit, "c00007-r1", tensors, {"method": "temi"})
    assert study.fits() == {"c00007-r1": fit}
    found, provenance = durable.read_tensors(study.fit("c00007-r1"))
    assert provenance == {"method": "temi"}
    assert {name: array.tolist() for name, array in found.items()} == {
        "labels": [0, 1, 2, 3, 4],
        "head_losses": [0.5, 0.25],
    }


def test_tensors_of_a_fit_without_its_record_are_no_fit(study):
    durable.write_tensors(study.fit("c00007-r0"), {"labels": np.zeros(3, dtype=np.int32)}, {})
    assert study.fits() == {}


def test_failures_candidates_result_and_exit_go_around_unchanged(study):
    study.write_failure("c00007-r0", "out of memory\nline 2")
    assert study.failures() == {"c00007-r0": "out of memory\nline 2"}
    study.write_candidates([5, 2, 9])
    study.write_candidates((5, 2, 9))
    assert durable.read_record(study.path / "candidates.json") == {"order": [5, 2, 9]}
    with pytest.raises(IntegrityError, match="records never change"):
        study.write_candidates([2, 5, 9])
    assert study.refinements() == []
    study.write_candidates((3, 7), 1)
    study.write_candidates((4,), 2)
    assert study.refinements() == [(3, 7), (4,)]
    with pytest.raises(IntegrityError, match="records never change"):
        study.write_candidates((3, 8), 1)
    for code in (0, 5):
        study.write_exit(code, "text")
        study.write_result({"c_max": code})
    assert durable.read_record(study.path / "exit.json") == {"code": 5, "text": "text"}
    assert durable.read_record(study.path / "result.json") == {"c_max": 5}


def test_seconds_of_a_stage_add_up_over_runs_in_order_of_first_appearance(study):
    for stage, seconds in (("images", 1.0), ("bound", 2.5), ("images", 0.25), ("bound", 1.5)):
        study.write_timing(stage, seconds)
    assert list(study.stage_s().items()) == [("images", 1.25), ("bound", 4.0)]


@pytest.mark.parametrize("missing", [1, 2])
def test_a_missing_decision_is_named(study, missing):
    for number in (1, 2, 3):
        study.write_decision(decision(number))
    (study.path / "decisions" / f"{missing:06d}.json").unlink()
    with pytest.raises(IntegrityError, match=f"record {missing} is missing before 00000{missing + 1}.json"):
        study.decisions()


def test_a_record_is_never_changed(study):
    study.write_decision(decision(1))
    study.write_decision(decision(1))
    with pytest.raises(IntegrityError, match="records never change"):
        study.write_decision(decision(1, status="stopped"))
    assert study.decisions() == [decision(1)]


@pytest.mark.parametrize("kind", ["decisions", "reports", "fits", "failures"])
def test_a_damaged_record_is_named(study, kind):
    study.write_decision(decision(1))
    study.write_report(REPORT)
    study.write_failure("c00007", "text")
    study.write_fit(FitRecord(num_clusters=7, repeat=0, num_used=6, loss=0, seconds=0), "c00007-r0", {}, {})
    (path,) = [p for p in study.path.rglob("*.json") if p.parent.name == kind]
    data = path.read_bytes()
    for damaged in (b"", data[: len(data) // 2], data[:-4] + b'x"}\n'):
        path.write_bytes(damaged)
        with pytest.raises(IntegrityError, match=path.name):
            study.reports("c00007") if kind == "reports" else getattr(study, kind)()


def test_temporary_files_are_ignored(study):
    study.write_decision(decision(1))
    study.write_report(REPORT)
    study.write_failure("c00007", "text")
    study.write_fit(FitRecord(num_clusters=7, repeat=0, num_used=6, loss=0, seconds=0), "c00007-r0", {}, {})
    study.write_timing("bound", 1.0)
    before = (study.decisions(), study.reports("c00007"), study.failures(), study.fits(), study.stage_s())
    for path in list(study.path.rglob("*.json")):
        durable.temporary_path(path).write_bytes(b"half of a rec")
        # The name that a write of JSON would leave, were its ending not .tmp.
        path.with_name(f".{path.name}.1-ab.tmp").write_bytes(b"")
    (study.path / "trials" / ".c00009.1-ab.tmp").mkdir()
    assert (study.decisions(), study.reports("c00007"), study.failures(), study.fits(), study.stage_s()) == before
    assert study.trials() == ["c00007"]


def test_no_two_places_of_a_study_are_one(study):
    # The showcase lies in the folder of the best model, on purpose; else nothing lies in anything.
    places: dict[str, Path] = {
        "lock": study.lock,
        "images": study.images,
        "features": study.features("a" * 64),
        "neighbors": study.neighbors,
        "reference": study.reference("b" * 64),
        "fit": study.fit("c00002-r0"),
        "checkpoints": study.checkpoints("c00002"),
        "best": study.best,
        "ray": study.ray,
        "report": study.report,
        "table": study.table,
        "sample_grid": study.sample_grid,
    }
    assert len(set(places.values())) == len(places)
    assert all(study.path in place.parents for place in places.values())
    assert study.showcase.parent == study.best


def test_a_study_is_begun_once_and_its_space_cannot_change(study):
    settled = {"seed": 0, "bound": {"alpha": 0.96, "c_limit": None}, "rungs": {"rungs_kimg": [1, 2.0]}}
    assert not study.exists
    study.settle(settled)
    assert study.exists
    assert study.settled() == settled
    study.settle({"rungs": {"rungs_kimg": [1.0, 2]}, "bound": {"c_limit": None, "alpha": 0.96}, "seed": 0})
    study.ray.mkdir()
    changed = {**settled, "seed": 1, "bound": {"alpha": 0.9, "c_limit": None}}
    with pytest.raises(ConfigurationError) as caught:
        study.settle(changed)
    assert "bound.alpha was 0.96 and is 0.9; seed was 0 and is 1" in str(caught.value)
    assert "--study" in caught.value.mend
    assert study.settled() == settled


def test_no_study_is_a_configuration_error_with_the_command_that_begins_one(study):
    with pytest.raises(ConfigurationError, match="is not a study") as caught:
        study.settled()
    assert "cedm-ray search" in caught.value.mend


def test_evaluations_of_a_model_are_not_those_of_another_seed_of_it(study):
    study.write_evaluation("c00004", "a" * 64, {"name": "c00004", "images_seen": 1})
    study.write_evaluation("c00004", "b" * 64, {"name": "c00004", "images_seen": 2})
    study.write_evaluation("c00004-s1", "a" * 64, {"name": "c00004-s1", "images_seen": 3})
    assert [one["images_seen"] for one in study.evaluations("c00004")] == [1, 2]
    assert [one["images_seen"] for one in study.evaluations("c00004-s1")] == [3]
    assert study.evaluations("c00005") == []


def test_proposals_are_read_by_their_numbers_and_none_may_be_missing(tmp_path):
    study = Study(tmp_path)
    assert study.proposals() == []
    written = [
        Proposal(number=number, num_clusters=9, settings=(("network.channel_mult", (1, number)),), changes=())
        for number in (1, 2, 3)
    ]
    for one in written:
        study.write_proposal(one)
    assert study.proposals() == written
    (tmp_path / "proposals" / "0002.json").unlink()
    with pytest.raises(IntegrityError, match="record 2 is missing"):
        study.proposals()


def test_a_fits_changes_are_kept_and_older_records_have_none(tmp_path):
    study = Study(tmp_path)
    task = FitTask(num_clusters=9, repeat=0, changes=(("clustering.gamma", 0.8),))
    record = FitRecord(num_clusters=9, repeat=0, num_used=9, loss=0.0, seconds=1.0, changes=dict(task.changes))
    study.write_fit(record, task.name, {}, {})
    assert study.fits()[task.name].task == task
    old = {"num_clusters": 8, "repeat": 1, "num_used": 8, "loss": 0.0, "seconds": 1.0}
    durable.write_record(tmp_path / "fits" / "c00008-r1.json", old)
    assert study.fits()["c00008-r1"].task == FitTask(num_clusters=8, repeat=1)
