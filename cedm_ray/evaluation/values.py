"""The values of measures, from what was gathered of images. One function a kind of measure, and no other decision.

Every function gives columns: for each name of its measure one (value, standard error or None) a set.

Shapes: n generated images of a set, N reference images, D feature width, R kept rows, B blocks.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from cedm_ray.evaluation.gathering import Network, Summary
from cedm_ray.evaluation.scores import Measure
from cedm_ray.metrics.extrapolation import frechet_infinity
from cedm_ray.metrics.frechet import ReferenceFactor, collapsed, frechet_distance
from cedm_ray.metrics.kernel import kernel_distance
from cedm_ray.metrics.manifold import inception_score, manifold
from cedm_ray.metrics.novelty import confidence, memorization, nearest_training, novelty_auroc
from cedm_ray.metrics.statistics import FeatureStatistics
from cedm_ray.metrics.uncertainty import Difference, bootstrap_mean_difference
from cedm_ray.search.clustering_head import ClusteringHead

Column = list[tuple[float, float | None]]

_KERNEL_SUBSET = 1000
_NEIGHBORS = 5
_SPLITS = 10


@dataclass(slots=True, kw_only=True)
class Material:
    """What was gathered, by network.

    sets: of the generated images, set by set. factors: of the reference. rows: of the reference's sample, float32
    [R, D]. unconditional, versus: as `sets`, of the other model. test: rows of the test images. training: features of
    all training images, float32 [N, D]. head: of the clustering that the model is conditioned on.
    """

    sets: list[dict[Network, Summary]] = field(default_factory=list)
    factors: dict[Network, ReferenceFactor] = field(default_factory=dict)
    rows: dict[Network, np.ndarray] = field(default_factory=dict)
    unconditional: list[dict[Network, Summary]] = field(default_factory=list)
    versus: list[dict[Network, Summary]] = field(default_factory=list)
    test: dict[Network, np.ndarray] = field(default_factory=dict)
    training: dict[Network, np.ndarray] = field(default_factory=dict)
    head: ClusteringHead | None = None


def values(measure: Measure, network: Network, material: Material) -> list[Column]:
    """The columns of a measure, one for each of its names."""
    return _KINDS[measure.kind](network, material)


def difference(network: Network, material: Material) -> Difference:
    """The Fréchet distance less that of the model beside it, with its interval, as the mean over the sets."""
    mine, other = ([summaries[network].blocks for summaries in sets] for sets in (material.sets, material.versus))
    return bootstrap_mean_difference(mine, other, material.factors[network])


def is_collapsed(network: Network, material: Material) -> bool | None:
    """Whether the images of some set are all alike, as the network sees them.

    None where nothing was kept to judge it by: neither statistics nor rows of the images and of some images that they
    are compared with.
    """
    reference: ReferenceFactor | FeatureStatistics | torch.Tensor | None = material.factors.get(network)
    if reference is None:
        rows = next((of[network] for of in (material.rows, material.training) if len(of.get(network, ())) > 1), None)
        reference = None if rows is None else _tensor(rows)
    if reference is None and material.unconditional:
        reference = material.unconditional[0][network].statistics if network in material.unconditional[0] else None
    found = [summaries[network] for summaries in material.sets if network in summaries]
    images = [
        _tensor(one.rows) if one.statistics is None else one.statistics
        for one in found
        if one.statistics is not None or len(one.rows) > 1
    ]
    return any(collapsed(one, reference) for one in images) if images and reference is not None else None


def _tensor(features: np.ndarray) -> torch.Tensor:
    # A copy: features are read-only where they are mapped, and torch knows no such tensors.
    return torch.from_numpy(np.array(features))


def _frechet(network: Network, material: Material) -> list[Column]:
    factor = material.factors[network]
    return [[(frechet_distance(found[network].statistics, factor), None) for found in material.sets]]


def _kernel(network: Network, material: Material) -> list[Column]:
    reference = torch.from_numpy(material.rows[network])
    column: Column = []
    for found in material.sets:
        rows = torch.from_numpy(found[network].rows)
        size = min(_KERNEL_SUBSET, len(rows), len(reference))
        result = kernel_distance(rows, reference, subset_size=size)
        column.append((result.value, result.standard_error))
    return [column]


def _infinity(network: Network, material: Material) -> list[Column]:
    factor = material.factors[network]
    found = [frechet_infinity(one[network].blocks, factor) for one in material.sets]
    return [[(one.value, one.standard_error) for one in found]]


def _unconditional(network: Network, material: Material) -> list[Column]:
    pairs = zip(material.sets, material.unconditional, strict=True)
    return [[(frechet_distance(found[network].statistics, other[network].statistics), None) for found, other in pairs]]


def _manifold(network: Network, material: Material) -> list[Column]:
    reference = torch.from_numpy(material.rows[network])
    found = []
    for summaries in material.sets:
        rows = torch.from_numpy(summaries[network].rows)
        k = min(_NEIGHBORS, len(rows) - 1, len(reference) - 1)
        found.append(manifold(reference, rows, k=k))
    return [[(getattr(one, name), None) for one in found] for name in ("precision", "recall", "density", "coverage")]


def _inception(network: Network, material: Material) -> list[Column]:
    found = [
        inception_score(torch.from_numpy(one[network].rows), splits=min(_SPLITS, len(one[network].rows)))
        for one in material.sets
    ]
    # What is usually written behind the score; it is no standard error of it.
    return [[(one.value, None) for one in found], [(one.std, None) for one in found]]


def _auroc(network: Network, material: Material) -> list[Column]:
    training = _tensor(material.training[network])
    test, _ = nearest_training(torch.from_numpy(material.test[network]), training)
    column: Column = []
    for found in material.sets:
        similarity, _ = nearest_training(torch.from_numpy(found[network].rows), training)
        column.append((novelty_auroc(similarity, test), None))
    return [column]


def _copies(network: Network, material: Material) -> list[Column]:
    training = _tensor(material.training[network])
    found = [memorization(torch.from_numpy(one[network].rows), training) for one in material.sets]
    columns: list[Column] = [
        [(one.share, None) for one in found],
        [(float(one.similarity.mean()), None) for one in found],
    ]
    if network in material.test:
        # The same for every set; what the first column is to be held against.
        share = memorization(torch.from_numpy(material.test[network]), training).share
        columns.append([(share, None)] * len(found))
    return columns


def _msp(network: Network, material: Material) -> list[Column]:
    head = material.head
    rows = [torch.from_numpy(one[network].rows) for one in material.sets]
    found = [confidence(head(features), head.temperature) for features in rows]
    return [[(float(one.mean()), None) for one in found]]


_KINDS: dict[str, Callable[[Network, Material], list[Column]]] = {
    "frechet": _frechet,
    "kernel": _kernel,
    "infinity": _infinity,
    "manifold": _manifold,
    "inception": _inception,
    "unconditional": _unconditional,
    "auroc": _auroc,
    "copies": _copies,
    "msp": _msp,
}
