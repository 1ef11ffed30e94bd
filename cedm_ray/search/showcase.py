"""The images of the report: for some clusters of the best model, training images beside samples.

R rows (clusters), k images each side, S image side.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cedm_ray import durable
from cedm_ray.data.image_set import ImageSet
from cedm_ray.search.model import open_model
from cedm_ray.search.study import Study
from cedm_ray.search.trial import load_assignment

ROWS, PER_ROW, GRID = 10, 8, 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Showcase:
    """clusters: original ids, int64 [R]. shares: q(c), float64 [R]. training, samples: uint8 [R, k, 3, S, S]; a cluster
    of fewer than k images repeats them. grid: samples from q(c), uint8 [64, 3, S, S], seeds 0 to 63."""

    clusters: np.ndarray
    shares: np.ndarray
    training: np.ndarray
    samples: np.ndarray
    grid: np.ndarray


def make_showcase(study: Study, images: ImageSet, device: str) -> None:
    """Sample the best model for the report and write the images beside it.

    The clusters are spread over the sizes, from the largest to the smallest. Column j of every row has the seed j, so
    that what differs between rows is the condition and not the noise.
    """
    model = open_model(durable.read_checkpoint(study.best), device, study)
    meaning = model.meaning
    labels = load_assignment(study, meaning.num_clusters, meaning.fit).labels
    rows = spread_over_sizes(meaning.counts, ROWS)
    clusters = np.asarray(meaning.class_ids)[rows]
    rng = np.random.default_rng(0)
    training = []
    for cluster in clusters:
        members = np.flatnonzero(labels == cluster)
        chosen = rng.permutation(members)[:PER_ROW]
        training.append(images.pixels[np.sort(np.resize(chosen, PER_ROW))])
    classes = np.repeat(rows, PER_ROW)
    seeds = np.tile(np.arange(PER_ROW), len(rows))
    samples = np.concatenate(list(model.sample(seeds.tolist(), classes=classes.tolist())))
    tensors = {
        "clusters": clusters,
        "shares": np.asarray(meaning.counts)[rows] / len(labels),
        "training": np.stack(training),
        "samples": samples.reshape(len(rows), PER_ROW, *samples.shape[1:]),
        "grid": np.concatenate(list(model.sample(range(GRID)))),
    }
    durable.write_tensors(study.showcase, tensors, {"trial": meaning.trial, "images_seen": model.images_seen})


def spread_over_sizes(counts: Sequence[int], rows: int) -> np.ndarray:
    """At most `rows` of K classes, int64, from the largest to the smallest, evenly spaced by rank. counts: images of
    every class, [K]."""
    by_size = np.argsort(-np.asarray(counts), kind="stable")
    return by_size[np.unique(np.linspace(0, len(by_size) - 1, min(rows, len(by_size))).round().astype(int))]


def read_showcase(study: Study) -> Showcase | None:
    """The images for the report, None where there is no best model."""
    if not study.showcase.exists():
        return None
    tensors, _ = durable.read_tensors(study.showcase)
    return Showcase(**tensors)
