"""run_fit: one TEMI fit of a study, from features to record. A generator: the driver decides whether it goes on."""

import time
from collections.abc import Iterator
from importlib.metadata import version

import numpy as np
import torch

from cedm_ray import durable
from cedm_ray.clustering.pairs import TemiData, load_temi_data
from cedm_ray.clustering.recipe import TemiConfig
from cedm_ray.clustering.temi import TemiProgress, fit_temi
from cedm_ray.features.store import open_features
from cedm_ray.search.goals import FitTask
from cedm_ray.search.space import SearchSpace
from cedm_ray.search.study import FitRecord, Study

# The data of this process's last fit and what they are: the next C of a study is fitted to the same ones.
_last: tuple[tuple, TemiData] | None = None


def run_fit(study: Study, space: SearchSpace, task: FitTask, *, device: str) -> Iterator[TemiProgress]:
    """Fit, and write tensors and record. A fit that is already recorded yields nothing.

    space: of the task, with its changes in it.

    The seed of repeat r is space.seed + r. Raises ValueError on unusable features, StorageError.
    """
    if task.name in study.fits():
        return
    neighbors, provenance = durable.read_tensors(study.neighbors)
    # Fewer than asked for where there are few images, of which the user was told when they were found.
    changes = {"num_neighbors": neighbors["neighbors"].shape[1]} | ({"gamma": 1.0} if task.lower else {})
    config = space.clustering.model_copy(update=changes)
    started = time.monotonic()
    data = _temi_data(study, provenance["features"], neighbors["neighbors"], config, device)
    fit = yield from fit_temi(data, task.num_clusters, config, seed=space.seed + task.repeat)
    record = FitRecord(
        num_clusters=task.num_clusters,
        repeat=task.repeat,
        num_used=fit.assignment.num_used,
        loss=float(fit.head_losses[fit.best_head]),
        seconds=round(time.monotonic() - started, 3),
        lower=task.lower,
        changes=dict(task.changes),
    )
    head = {f"head.{name}": array for name, array in fit.head.items()}
    tensors = {"labels": fit.assignment.labels, "head_losses": fit.head_losses, **head}
    made_by = {"cedm_ray": version("cedm-ray"), "torch": torch.__version__, "device": torch.device(device).type}
    about = {"method": fit.assignment.method, **fit.assignment.provenance, **provenance, **made_by}
    study.write_fit(record, task.name, tensors, about)


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
