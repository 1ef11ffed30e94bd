"""What a rung is measured by: the detector of a study, and its statistics of the training images."""

from cedm_ray import durable
from cedm_ray.data.image_set import ImageSet
from cedm_ray.features.extractors import Extractor, open_extractor
from cedm_ray.metrics.statistics import FeatureStatistics
from cedm_ray.search.evaluate import image_statistics, training_batches
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
