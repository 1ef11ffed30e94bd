"""What a study says of a clustering: how full its clusters are and, where labels exist, how well they agree with them.

N images, C clusters. Labels are for evaluation only: nothing here is read by a search.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cedm_ray import durable
from cedm_ray.clustering.assignment import ClusterAssignment
from cedm_ray.clustering.assignment_file import read_assignment, write_assignment
from cedm_ray.clustering.bound import passes
from cedm_ray.data.image_set import ImageSet
from cedm_ray.errors import InputDataError
from cedm_ray.features.store import open_features
from cedm_ray.metrics.agreement import agreement, cluster_sizes
from cedm_ray.search.goals import FitTask
from cedm_ray.search.results import ClusteringSummary
from cedm_ray.search.settings import KMEANS, METHOD
from cedm_ray.search.space import SearchSpace
from cedm_ray.search.study import Study

FOLDERS = "folders"
"""The word that takes an image's label from the folder that it lies in."""
OWN = "own"
"""The word that takes the labels that came with the images, if any did."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clustering:
    """An assignment with its line in a table."""

    summary: ClusteringSummary
    assignment: ClusterAssignment


def fitted(study: Study, task: FitTask) -> ClusterAssignment:
    """The assignment of a fit that is on record, with its provenance. Raises IntegrityError."""
    return read_fit(study, task.name, task.num_clusters)


def read_fit(study: Study, name: str, num_clusters: int) -> ClusterAssignment:
    """The assignment of the fit of that name, which is of `num_clusters` clusters. Raises IntegrityError."""
    tensors, provenance = durable.read_tensors(study.fit(name))
    return ClusterAssignment(
        labels=tensors["labels"],
        num_clusters=num_clusters,
        method=provenance["method"],
        provenance={name: value for name, value in provenance.items() if name != "method"},
    )


def features_shape(study: Study, extractor: str | None = None) -> tuple[int, int] | None:
    """(N, D) of the features that are clustered; None where they are not there yet. extractor: as `neighbors_in`."""
    key = neighbors_features(study, extractor)
    return None if key is None else open_features(study.features(key)).shape


def neighbors_features(study: Study, extractor: str | None = None) -> str | None:
    """The key of the features that the study's neighbors were found in; None where they are not there yet. extractor:
    as `neighbors_in`."""
    place = study.neighbors_in(extractor)
    return durable.read_tensors(place)[1]["features"] if place.exists() else None


def summarize(
    name: str,
    assignment: ClusterAssignment,
    labels: np.ndarray | None,
    *,
    seconds: float | None = None,
    passed: bool | None = None,
) -> ClusteringSummary:
    """The line of an assignment. labels: integers [N], None without any."""
    return ClusteringSummary(
        name=name,
        method=assignment.method,
        num_clusters=assignment.num_clusters,
        num_used=assignment.num_used,
        sizes=cluster_sizes(assignment.counts),
        agreement=None if labels is None else agreement(assignment.labels, labels),
        seconds=seconds,
        passed=passed,
    )


def fit_summary(
    study: Study, space: SearchSpace, task: FitTask, seconds: float, labels: np.ndarray | None
) -> ClusteringSummary:
    """The line of a fit that is on record. Whether it passed says the search's threshold, exactly; one with other
    settings than the space's is not asked that."""
    assignment = fitted(study, task)
    passed = (
        None if task.lower or task.changes else passes(assignment.num_used, assignment.num_clusters, space.bound.alpha)
    )
    return summarize(clustering_name(task), assignment, labels, seconds=seconds, passed=passed)


def clustering_name(task: FitTask) -> str:
    """What a fit's clustering is called among all clusterings of a study."""
    return f"{KMEANS if (METHOD, KMEANS) in task.changes else 'temi'}-{task.name}"


def read_labels(source: str | None, images: ImageSet) -> np.ndarray | None:
    """The labels of the images, int32 [N]; None where there is no source.

    source: a file as `read_assignment` takes it; "own": those that the images' source carried, None where it had none;
    or "folders": images of one folder have one label, folders in the order of their names. Raises InputDataError.
    """
    if source is None:
        return None
    if source == OWN:
        return images.labels
    if source != FOLDERS:
        return read_assignment(source, num_images=len(images), names=images.names).labels
    parents = [str(Path(name).parent) for name in images.names]
    names = sorted(set(parents))
    if len(names) < 2:
        raise InputDataError(
            f"all {len(images):,} images lie in one folder, which labels nothing",
            mend="name a file with one integer label for each image: --labels FILE.npz",
        )
    label_of = {name: label for label, name in enumerate(names)}
    return np.array([label_of[parent] for parent in parents], dtype=np.int32)


def keep_clustering(study: Study, clustering: Clustering, images: ImageSet) -> Path:
    """Write a clustering into the study as Parquet, with its full provenance; one that is there stays. Its path."""
    path = study.clustering(clustering.summary.name)
    if not path.exists():
        about = {"images": images.digest, "names": images.names_digest, **clustering.assignment.provenance}
        write_assignment(path, dataclasses.replace(clustering.assignment, provenance=about), images.names)
    return path
