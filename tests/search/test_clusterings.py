"""Lines of clusterings, the labels they are compared with, and the Parquet files that others read."""

import dataclasses

import numpy as np
import pyarrow.parquet as pq
import pytest

from cedm_ray.clustering.assignment import ClusterAssignment
from cedm_ray.clustering.assignment_file import read_assignment
from cedm_ray.data.image_set import ImageSet, open_image_set
from cedm_ray.errors import InputDataError
from cedm_ray.search.clusterings import (
    Clustering,
    clustering_name,
    features_shape,
    fit_summary,
    fitted,
    keep_clustering,
    read_labels,
    summarize,
)
from cedm_ray.search.goals import FitTask
from cedm_ray.search.study import Study

TASK = FitTask(num_clusters=4, repeat=0)


def images(*names):
    pixels = np.zeros((len(names), 3, 2, 2), dtype=np.uint8)
    return ImageSet(name="x", names=names, pixels=pixels, digest="0" * 64)


def test_a_line_holds_sizes_and_agreement():
    assignment = ClusterAssignment(labels=np.array([0, 0, 0, 2, 2], dtype=np.int32), num_clusters=4, method="kmeans")
    line = summarize("kmeans-c00004", assignment, np.array([7, 7, 7, 1, 7]), seconds=2.0)
    assert (line.num_clusters, line.num_used, line.utilization) == (4, 2, 0.5)
    assert (line.sizes.smallest, line.sizes.largest) == (2, 3)
    assert line.agreement.accuracy == pytest.approx(0.8)
    assert summarize("x", assignment, None).agreement is None


def test_a_recorded_fit_is_read_with_its_provenance(prepared, tiny_space):
    assignment = fitted(prepared, TASK)
    assert (assignment.method, assignment.num_clusters) == ("temi", 4)
    assert assignment.provenance["config"]["gamma"] == 0.6
    assert {"seed", "features", "extractor"} <= set(assignment.provenance)
    line = fit_summary(prepared, tiny_space, TASK, 1.5, None)
    assert (line.name, line.seconds) == ("temi-c00004-r0", 1.5)
    assert line.passed == (line.num_used == 4)
    lower = FitTask(num_clusters=4, repeat=0, lower=True)
    assert clustering_name(lower) == "temi-c00004-lower-r0"


def test_the_width_of_features_is_known_once_they_are_there(prepared, tmp_path):
    assert features_shape(prepared) == (300, 16)
    assert features_shape(Study(tmp_path)) is None


def test_a_clustering_is_kept_once_as_parquet_with_all_that_made_it(fresh, tiny_space):
    found = open_image_set(fresh.images)
    clustering = Clustering(summary=fit_summary(fresh, tiny_space, TASK, 1.0, None), assignment=fitted(fresh, TASK))
    path = keep_clustering(fresh, clustering, found)
    table = pq.read_table(path)
    assert table["name"].to_pylist() == list(found.names)
    assert (table["cluster"].to_numpy() == clustering.assignment.labels).all()
    again = read_assignment(path, num_images=300)
    assert (again.labels == clustering.assignment.labels).all()
    assert again.num_clusters == 4
    assert again.provenance["images"] == found.digest
    assert again.provenance["config"] == clustering.assignment.provenance["config"]
    written = path.stat().st_mtime_ns
    keep_clustering(fresh, clustering, found)
    assert path.stat().st_mtime_ns == written


def test_labels_come_from_folders_only_where_that_is_said():
    found = images("dog/b.png", "cat/a.png", "dog/c.png")
    assert read_labels("folders", found).tolist() == [1, 0, 1]
    assert read_labels(None, found) is None
    assert read_labels("own", found) is None
    labelled = dataclasses.replace(found, labels=np.array([5, 0, 5], dtype=np.int32))
    assert read_labels("own", labelled).tolist() == [5, 0, 5]
    assert read_labels(None, labelled) is None
    with pytest.raises(InputDataError, match="all 2 images lie in one folder"):
        read_labels("folders", images("a.png", "b.png"))


def test_labels_come_from_a_file_of_as_many_as_there_are_images(tmp_path):
    np.savez(tmp_path / "labels.npz", y=np.array([3, 1, 1], dtype=np.uint8))
    assert read_labels(str(tmp_path / "labels.npz"), images("a", "b", "c")).tolist() == [3, 1, 1]
    with pytest.raises(InputDataError, match="3"):
        read_labels(str(tmp_path / "labels.npz"), images("a", "b"))
