"""Measuring the models of a study against its training images: the detector, its reference, and a model's distance."""

from collections.abc import Iterator

import numpy as np
import torch

from cedm_ray import durable
from cedm_ray.data.image_set import ImageSet, open_image_set
from cedm_ray.features.extractors import Extractor, distance_name, open_extractor
from cedm_ray.metrics.statistics import FeatureStatistics
from cedm_ray.search.evaluate import distance_to, image_statistics, training_batches
from cedm_ray.search.model import find_model
from cedm_ray.search.results import Progress, Show
from cedm_ray.search.space import SearchSpace
from cedm_ray.search.study import Study


def open_detector(space: SearchSpace, images: ImageSet, device: str) -> Extractor:
    """The detector of the space's evaluation. Raises InputDataError where its weights are not to be had."""
    components = space.features.pixel_components
    config = space.evaluation
    return open_extractor(config.detector, images, pixel_components=components, weights=config.weights, device=device)


def reference_statistics(study: Study, space: SearchSpace, images: ImageSet, detector: Extractor) -> FeatureStatistics:
    """The detector's statistics of the whole training set, computed once a study and then read."""
    path = study.reference(detector.key)
    if path.exists():
        arrays, _ = durable.read_tensors(path)
        return FeatureStatistics.from_arrays(arrays)
    statistics = image_statistics(training_batches(images, space.features.batch_size), detector)
    durable.write_tensors(path, statistics.to_arrays(), {"detector": detector.name, "images": images.digest})
    return statistics


def evaluate_model(study: Study, space: SearchSpace, trial: str | None, num: int | None, *, show: Show) -> dict:
    """Generate `num` images (None: evaluation.num_samples) with a trial's model (None: the best) and measure them.

    The seeds begin at evaluation.first_seed, so that the rungs' number of samples gives the rung's own distance again.
    Returns plain values: trial, num_clusters, images_seen, metric, distance, num_samples, collapsed. Raises
    ConfigurationError for an unknown trial.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = find_model(study, trial, device, show)
    images = open_image_set(study.images)
    detector = open_detector(space, images, device)
    reference = reference_statistics(study, space, images, detector)
    first = space.evaluation.first_seed
    seeds = range(first, first + (num or space.evaluation.num_samples))

    def shown() -> Iterator[np.ndarray]:
        done = 0
        for batch in model.sample(seeds):
            yield batch
            done += len(batch)
            show(Progress(task="samples", done=done, total=len(seeds), unit="images"))

    distance, collapsed = distance_to(reference, image_statistics(shown(), detector))
    return {
        "trial": model.meaning.trial,
        "num_clusters": model.meaning.num_clusters,
        "images_seen": model.images_seen,
        "metric": distance_name(space.evaluation.detector, space.evaluation.weights),
        "distance": distance,
        "num_samples": len(seeds),
        "collapsed": collapsed,
    }
