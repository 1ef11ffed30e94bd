"""run_fit: one TEMI fit of a study, from features to record. A generator: the driver decides whether it goes on."""

import time
from collections.abc import Iterator

from cedm_ray import durable
from cedm_ray.clustering.temi import TemiProgress, fit_temi
from cedm_ray.features.store import open_features
from cedm_ray.search.agenda import FitTask
from cedm_ray.search.space import SearchSpace
from cedm_ray.search.study import FitRecord, Study


def run_fit(study: Study, space: SearchSpace, task: FitTask, *, device: str) -> Iterator[TemiProgress]:
    """Fit, and write tensors and record. A fit that is already recorded yields nothing.

    The seed of repeat r is space.seed + r. Raises ValueError on unusable features, StorageError.
    """
    if task.name in study.fits():
        return
    neighbors, provenance = durable.read_tensors(study.neighbors)
    features = open_features(study.features(provenance["features"]))
    # Fewer than asked for where there are few images, of which the user was told when they were found.
    config = space.clustering.model_copy(update={"num_neighbors": neighbors["neighbors"].shape[1]})
    started = time.monotonic()
    fit = yield from fit_temi(
        features,
        neighbors["neighbors"],
        task.num_clusters,
        config,
        seed=space.seed + task.repeat,
        device=device,
    )
    record = FitRecord(
        num_clusters=task.num_clusters,
        repeat=task.repeat,
        num_used=fit.assignment.num_used,
        loss=float(fit.head_losses[fit.best_head]),
        seconds=round(time.monotonic() - started, 3),
    )
    head = {f"head.{name}": array for name, array in fit.head.items()}
    tensors = {"labels": fit.assignment.labels, "head_losses": fit.head_losses, **head}
    about = {"method": fit.assignment.method, **fit.assignment.provenance, **provenance}
    study.write_fit(record, task.name, tensors, about)
