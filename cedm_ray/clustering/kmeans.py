"""k-means with the same result as TEMI: what the paper compares it with.

Lloyd's algorithm on raw features (not brought to unit length) from k-means++ centers, the best of `n_init` runs by
inertia, the sum of squared distances to the nearest center. A run ends when no label changes, or when its centers move
by no more than `tol` times the mean variance of the features, or after `max_iter` rounds. A center that loses all its
images is put where the image farthest from its own center is.

Shapes: N images, D feature width, C clusters.
Source: method.md 3.6 (scikit-learn's KMeans: k-means++, n_init 10, max_iter 300, tol 1e-4).
"""

import warnings
from collections.abc import Generator
from dataclasses import dataclass
from importlib import metadata
from typing import Literal

import numpy as np
from pydantic import Field

from cedm_ray.clustering.assignment import ClusterAssignment
from cedm_ray.config import Config
from cedm_ray.errors import ConfigurationError

_TILE_ROWS = 8192
_FIRST_ROWS_NAMED = 5


class KMeansConfig(Config):
    """How k-means is run.

    n_init: runs, of which the best counts. max_iter: rounds of one run at the most. tol: movement of the centers, as a
    share of the features' mean variance, that ends a run. backend: what finds the nearest centers; sklearn, faiss (the
    extra of that name), or auto = sklearn, which on a CPU is the faster one, and which is always there, so that a
    result does not depend on what else is installed.
    """

    n_init: int = Field(default=10, ge=1)
    max_iter: int = Field(default=300, ge=1)
    tol: float = Field(default=1e-4, ge=0)
    backend: Literal["auto", "sklearn", "faiss"] = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class KMeansProgress:
    """One finished run. run: from 1 to `of` (n_init). inertia: of this run. rounds: what it took."""

    run: int
    of: int
    inertia: float
    rounds: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class KMeansFit:
    """The best run. centers: float32 [C, D]. inertia: sum over all images of the squared distance to their center."""

    assignment: ClusterAssignment
    centers: np.ndarray
    inertia: float


def fit_kmeans(
    features: np.ndarray, num_clusters: int, config: KMeansConfig, *, seed: int
) -> Generator[KMeansProgress, None, KMeansFit]:
    """Run k-means, yielding after each run and returning a KMeansFit (as the value of StopIteration).

    features: [N, D], any floating-point type, computed with in float32. num_clusters: C, in [1, N]. seed: equal seeds
    give equal results on one machine with one backend; for sklearn they are those of its own `n_init`. Fewer distinct
    images than C leave clusters empty, which the assignment's num_used shows. Raises ValueError for arguments out of
    range and for features that are not finite, ConfigurationError where the backend is not installed.
    """
    _check(features, num_clusters, seed)
    backend = "sklearn" if config.backend == "auto" else config.backend
    if backend == "faiss":
        version = _faiss().__version__
    else:
        version = metadata.version("scikit-learn")
    values = np.ascontiguousarray(features, dtype=np.float32)
    # One stream for all runs, as scikit-learn has it for its own n_init.
    stream = np.random.RandomState(seed)
    best: _Run | None = None
    for run in range(1, config.n_init + 1):
        if backend == "faiss":
            found = _run_faiss(values, num_clusters, config, stream)
        else:
            found = _run_sklearn(values, num_clusters, config, stream)
        if best is None or found.inertia < best.inertia:
            best = found
        yield KMeansProgress(run=run, of=config.n_init, inertia=found.inertia, rounds=found.rounds)
    assert best is not None
    assignment = ClusterAssignment(
        labels=best.labels,
        num_clusters=num_clusters,
        method="kmeans",
        provenance={
            "config": config.model_dump(mode="json"),
            "backend": f"{backend} {version}",
            "seed": seed,
            "inertia": best.inertia,
            "rounds": best.rounds,
        },
    )
    return KMeansFit(assignment=assignment, centers=best.centers, inertia=best.inertia)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Run:
    labels: np.ndarray
    centers: np.ndarray
    inertia: float
    rounds: int


def _run_sklearn(values: np.ndarray, num_clusters: int, config: KMeansConfig, stream: np.random.RandomState) -> _Run:
    # Here because scikit-learn takes a second to import, which every process of a search would pay for nothing.
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    model = KMeans(n_clusters=num_clusters, n_init=1, max_iter=config.max_iter, tol=config.tol, random_state=stream)
    with warnings.catch_warnings():
        # Fewer distinct images than clusters: num_used says so.
        warnings.filterwarnings("ignore", category=ConvergenceWarning)
        model.fit(values)
    return _Run(
        labels=model.labels_.astype(np.int32),
        centers=model.cluster_centers_.astype(np.float32),
        inertia=float(model.inertia_),
        rounds=int(model.n_iter_),
    )


def _run_faiss(values: np.ndarray, num_clusters: int, config: KMeansConfig, stream: np.random.RandomState) -> _Run:
    from sklearn.cluster import kmeans_plusplus  # Here as in _run_sklearn.

    # Around the mean, because faiss finds distances as differences of squared lengths in float32.
    mean = values.mean(axis=0, dtype=np.float64).astype(np.float32)
    values = values - mean
    enough = config.tol * float(values.var(axis=0, dtype=np.float64).mean())
    centers, _ = kmeans_plusplus(values, num_clusters, random_state=stream)
    labels, distances = _nearest(values, centers)
    rounds = 0
    while rounds < config.max_iter:
        rounds += 1
        moved = _means(values, labels, distances, num_clusters)
        shift = float(((moved.astype(np.float64) - centers) ** 2).sum())
        before, centers = labels, moved
        labels, distances = _nearest(values, centers)
        if np.array_equal(labels, before) or shift <= enough:
            break
    inertia = sum(
        float(((tile.astype(np.float64) - centers[own]) ** 2).sum())
        for tile, own in zip(_tiles(values), _tiles(labels), strict=True)
    )
    return _Run(labels=labels, centers=centers + mean, inertia=inertia, rounds=rounds)


def _nearest(values: np.ndarray, centers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest center of each row, int32 [N], and the squared distance to it, [N]."""
    index = _faiss().IndexFlatL2(centers.shape[1])
    index.add(np.ascontiguousarray(centers, dtype=np.float32))
    distances, labels = index.search(values, 1)
    return labels[:, 0].astype(np.int32), distances[:, 0]


def _means(values: np.ndarray, labels: np.ndarray, distances: np.ndarray, num_clusters: int) -> np.ndarray:
    """The mean of each cluster, float32 [C, D]; an empty one is given an image that is far from its own center."""
    counts = np.bincount(labels, minlength=num_clusters)
    empty = np.flatnonzero(counts == 0)
    if empty.size:
        labels = labels.copy()
        farthest = np.argsort(distances, kind="stable")[::-1][: empty.size]
        labels[farthest] = empty
        counts = np.bincount(labels, minlength=num_clusters)
    sums = np.zeros((num_clusters, values.shape[1]))
    for tile, own in zip(_tiles(values), _tiles(labels), strict=True):
        order = np.argsort(own, kind="stable")
        present, starts = np.unique(own[order], return_index=True)
        sums[present] += np.add.reduceat(tile[order], starts, axis=0, dtype=np.float64)
    # A cluster can have lost its only image to an empty one.
    return (sums / np.maximum(counts, 1)[:, None]).astype(np.float32)


def _faiss():
    try:
        import faiss
    except ImportError:
        raise ConfigurationError(
            "k-means with faiss: faiss is not installed",
            mend="pip install 'cedm-ray[faiss]', or choose the backend sklearn",
        ) from None
    return faiss


def _tiles(array: np.ndarray) -> Generator[np.ndarray, None, None]:
    for start in range(0, len(array), _TILE_ROWS):
        yield array[start : start + _TILE_ROWS]


def _check(features: np.ndarray, num_clusters: int, seed: int) -> None:
    if features.ndim != 2 or not np.issubdtype(features.dtype, np.floating):
        raise ValueError(f"features must be floating point [N, D], got {features.dtype} {features.shape}")
    if not 1 <= num_clusters <= len(features):
        raise ValueError(f"num_clusters must lie in [1, N] = [1, {len(features)}], got {num_clusters}")
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must lie in [0, 2^32), got {seed}")
    bad = np.concatenate(
        [np.flatnonzero(~np.isfinite(t).all(axis=1)) + i * _TILE_ROWS for i, t in enumerate(_tiles(features))]
    )
    if bad.size:
        raise ValueError(
            f"features must be finite, got NaN or infinity in {bad.size} of {len(features)} rows,"
            f" first {bad[:_FIRST_ROWS_NAMED].tolist()}"
        )
