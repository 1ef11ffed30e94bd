"""What the bound's search found, from records alone."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from cedm_ray import durable
from cedm_ray.data.image_set import open_image_set
from cedm_ray.features.store import open_features
from cedm_ray.search.findings import bound_findings, bound_json
from cedm_ray.search.goals import Goal
from cedm_ray.search.study import FitRecord, Study


@pytest.fixture(scope="module")
def with_lower_end(prepared, tiny_space, study_tools, tmp_path_factory):
    """A study whose goal was the bound, its lower end and two seeds of each."""
    study = Study(tmp_path_factory.mktemp("bound") / "study")
    shutil.copytree(prepared.path, study.path)
    lower = tiny_space.lower_bound.model_copy(update={"num_clusters": (20, 30), "repeats": 2})
    space = tiny_space.model_copy(update={"lower_bound": lower})
    study_tools.drive(study, space, Goal(kind="bound"))
    return study, space


def test_every_fit_that_counts_is_listed_and_the_largest_passing_one_is_the_bounds(with_lower_end):
    study, space = with_lower_end
    images = open_image_set(study.images)
    found = bound_findings(study, space, images, None)
    sizes = [c.summary.num_clusters for c in found.clusterings if "lower" not in c.summary.name]
    assert sizes == sorted(point.num_clusters for point in found.bound.points)
    assert found.largest.summary.num_clusters == found.bound.c_max
    for clustering in found.clusterings:
        assert clustering.assignment.num_used == clustering.summary.num_used
    assert found.knn_accuracy is None


def test_fits_that_were_asked_ahead_and_never_needed_are_told_apart(with_lower_end, tmp_path):
    study, space = with_lower_end
    copy = Study(tmp_path / "study")
    shutil.copytree(study.path, copy.path)
    images = open_image_set(copy.images)
    before = bound_findings(copy, space, images, None)
    ahead = before.bound.c_max + 101
    record = FitRecord(num_clusters=ahead, repeat=0, num_used=ahead, loss=0.0, seconds=1.0)
    labels = (np.arange(300) % ahead).astype(np.int32)
    copy.write_fit(record, f"c{ahead:05d}-r0", {"labels": labels}, {"method": "temi"})
    found = bound_findings(copy, space, images, None)
    assert found.bound == before.bound
    assert [s.num_clusters for s in found.ahead] == [*(s.num_clusters for s in before.ahead), ahead]
    assert ahead in found.passed_ahead
    assert len(bound_json(found)["ahead"]) == len(found.ahead)


def test_fits_of_the_lower_end_are_made_with_gamma_1_and_told_apart(with_lower_end):
    study, space = with_lower_end
    found = bound_findings(study, space, open_image_set(study.images), None)
    lower = [c for c in found.clusterings if "lower" in c.summary.name]
    assert [c.summary.name for c in lower] == [f"temi-c000{c}-lower-r{r}" for c in (20, 30) for r in (0, 1)]
    assert all(c.assignment.provenance["config"]["gamma"] == 1 for c in lower)
    assert all(c.summary.passed is None for c in lower)
    used = [c.summary.num_used for c in lower]
    assert found.lower.num_used == {20: tuple(used[:2]), 30: tuple(used[2:])}
    assert {record.lower for record in study.fits().values()} == {False, True}


def test_labels_change_what_is_said_and_nothing_else(with_lower_end, tmp_path):
    study, space = with_lower_end
    images = open_image_set(study.images)
    labels = np.arange(300) % 10
    np.savez(tmp_path / "labels.npz", labels=labels)
    found = bound_findings(study, space, images, str(tmp_path / "labels.npz"))
    plain = bound_findings(study, space, images, None)
    assert all(c.summary.agreement is not None for c in found.clusterings)
    assert [dataclasses.replace(c.summary, agreement=None) for c in found.clusterings] == [
        c.summary for c in plain.clusterings
    ]
    _, provenance = durable.read_tensors(study.neighbors)
    features = np.array(open_features(study.features(provenance["features"])))
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    hits = 0
    for row in range(300):
        rest = np.arange(300) != row
        vote = KNeighborsClassifier(20, metric="cosine", weights=lambda d: np.exp((1 - d) / 0.02))
        hits += vote.fit(unit[rest], labels[rest]).predict(unit[row : row + 1])[0] == labels[row]
    assert found.knn_accuracy == pytest.approx(hits / 300)


def test_the_json_is_plain_and_complete(with_lower_end):
    study, space = with_lower_end
    found = bound_findings(study, space, open_image_set(study.images), None)
    plain = json.loads(json.dumps(bound_json(found)))
    assert plain["c_max"] == found.bound.c_max
    assert len(plain["points"]) == len(found.bound.points)
    assert plain["lower"]["c_min"] == found.lower.c_min
    assert [line["utilization"] for line in plain["clusterings"]] == [c.summary.utilization for c in found.clusterings]
