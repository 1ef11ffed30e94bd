"""run_fit: one fit of a study, from features to record. A generator: the driver decides whether it goes on.

It is TEMI's, or k-means where a trial of a search for more than C asks for that.
"""

import time
from collections.abc import Generator, Iterator
from importlib.metadata import version

import numpy as np
import torch

from cedm_ray import durable
from cedm_ray.clustering.assignment import ClusterAssignment
from cedm_ray.clustering.kmeans import KMeansProgress, fit_kmeans
from cedm_ray.clustering.pairs import TemiData, load_temi_data
from cedm_ray.clustering.recipe import TemiConfig
from cedm_ray.clustering.temi import TemiFit, TemiProgress, fit_temi
from cedm_ray.features.store import open_features
from cedm_ray.search.goals import FitTask
from cedm_ray.search.results import Notice
from cedm_ray.search.settings import EXTRACTOR, KMEANS, METHOD
from cedm_ray.search.space import SearchSpace
from cedm_ray.search.study import FitRecord, Study

_Found = tuple[ClusterAssignment, float, dict[str, np.ndarray]]
"""What a fit found: the assignment, the loss that chose it, and its tensors but the labels."""

# What fits of this process had to say: it would be the same of the next C.
_said: set[str] = set()
# The data of this process's last fit and what they are: the next C of a study is fitted to the same ones.
_last: tuple[tuple, TemiData] | None = None


def run_fit(
    study: Study, space: SearchSpace, task: FitTask, *, device: str
) -> Iterator[TemiProgress | KMeansProgress | Notice]:
    """Fit, and write tensors and record. A fit that is already recorded yields nothing; what its progress has to note
    is a Notice, once in a process.

    space: of the task, with its changes in it.

    The seed of repeat r is space.seed + r. Raises ValueError on unusable features, StorageError.
    """
    if task.name in study.fits():
        return
    neighbors, provenance = durable.read_tensors(study.neighbors_in(dict(task.changes).get(EXTRACTOR)))
    started = time.monotonic()
    if (METHOD, KMEANS) in task.changes:
        found = yield from _kmeans(study, space, task, provenance["features"])
    else:
        found = yield from _temi(study, space, task, provenance["features"], neighbors["neighbors"], device)
    assignment, loss, tensors = found
    record = FitRecord(
        num_clusters=task.num_clusters,
        repeat=task.repeat,
        num_used=assignment.num_used,
        loss=loss,
        seconds=round(time.monotonic() - started, 3),
        lower=task.lower,
        changes=dict(task.changes),
    )
    made_by = {"cedm_ray": version("cedm-ray"), "torch": torch.__version__, "device": torch.device(device).type}
    about = {"method": assignment.method, **assignment.provenance, **provenance, **made_by}
    study.write_fit(record, task.name, {"labels": assignment.labels, **tensors}, about)


def _temi(
    study: Study, space: SearchSpace, task: FitTask, features_key: str, neighbors: np.ndarray, device: str
) -> Generator[TemiProgress | Notice, None, _Found]:
    # Fewer than asked for where there are few images, of which the user was told when they were found.
    changes = {"num_neighbors": neighbors.shape[1]} | ({"gamma": 1.0} if task.lower else {})
    config = space.clustering.model_copy(update=changes)
    data = _temi_data(study, features_key, neighbors, config, device)
    fit = yield from _noticed(fit_temi(data, task.num_clusters, config, seed=space.seed + task.repeat))
    head = {f"head.{name}": array for name, array in fit.head.items()}
    return fit.assignment, float(fit.head_losses[fit.best_head]), {"head_losses": fit.head_losses, **head}


def _noticed(steps: Generator[TemiProgress, None, TemiFit]) -> Generator[TemiProgress | Notice, None, TemiFit]:
    """The same, after each note what it says as a Notice."""
    while True:
        try:
            progress = next(steps)
        except StopIteration as end:
            return end.value
        yield progress
        if progress.note is not None and progress.note not in _said:
            _said.add(progress.note)
            yield Notice(text=progress.note)


def _kmeans(
    study: Study, space: SearchSpace, task: FitTask, features_key: str
) -> Generator[KMeansProgress, None, _Found]:
    features = open_features(study.features(features_key))
    fit = yield from fit_kmeans(features, task.num_clusters, space.kmeans, seed=space.seed + task.repeat)
    return fit.assignment, fit.inertia, {"centers": fit.centers}


def _temi_data(study: Study, features_key: str, neighbors: np.ndarray, config: TemiConfig, device: str) -> TemiData:
    """The data of the study's fits on a device, those of the last fit where they are the same.

    `features_key` names the images too, and the neighbors follow from the features and their number.
    """
    global _last
    key = (features_key, config.feature_norm, config.num_neighbors, str(device))
    if _last is None or _last[0] != key:
        # Let go of first, so that a device never holds both.
        _last = None
        features = open_features(study.features(features_key))
        _last = (key, load_temi_data(features, neighbors, config, device=device))
    return _last[1]
