"""k-means, against scikit-learn's own n_init and against brute force."""

import sys
import types

import numpy as np
import pydantic
import pytest
from sklearn.cluster import KMeans

from cedm_ray.clustering.kmeans import KMeansConfig, fit_kmeans
from cedm_ray.errors import ConfigurationError

SKLEARN, FAISS = KMeansConfig(n_init=3, backend="sklearn"), KMeansConfig(n_init=3, backend="faiss")


class IndexFlatL2:
    """The part of faiss that is used, by brute force: squared distances to what was added."""

    def __init__(self, width):
        self.rows = np.zeros((0, width), np.float32)

    def add(self, rows):
        assert rows.dtype == np.float32
        assert rows.flags.c_contiguous
        self.rows = np.concatenate([self.rows, rows])

    def search(self, queries, count):
        assert count == 1
        distances = ((queries[:, None].astype(np.float64) - self.rows[None]) ** 2).sum(2)
        nearest = distances.argmin(1)[:, None]
        return np.take_along_axis(distances, nearest, 1).astype(np.float32), nearest.astype(np.int64)


@pytest.fixture
def faiss(monkeypatch):
    """faiss is an extra and need not be installed; its place is taken by brute force."""
    module = types.SimpleNamespace(IndexFlatL2=IndexFlatL2, __version__="0")
    monkeypatch.setitem(sys.modules, "faiss", module)


def blobs(num_images=300, num_blobs=6, width=5, seed=0, spread=1.0):
    rng = np.random.default_rng(seed)
    truth = np.arange(num_images) % num_blobs
    return (6 * rng.normal(size=(num_blobs, width))[truth] + spread * rng.normal(size=(num_images, width))).astype("f4")


def finish(fit):
    progress = []
    while True:
        try:
            progress.append(next(fit))
        except StopIteration as end:
            return progress, end.value


def same_partition(left, right):
    return (
        len(set(zip(left.tolist(), right.tolist(), strict=True))) == len(set(left.tolist())) == len(set(right.tolist()))
    )


def test_the_result_is_scikit_learns_with_the_same_seed():
    features = blobs(spread=3.0)
    progress, fit = finish(fit_kmeans(features, 9, SKLEARN, seed=7))
    oracle = KMeans(9, n_init=3, random_state=7).fit(features)
    assert fit.assignment.labels.tolist() == oracle.labels_.tolist()
    assert np.allclose(fit.centers, oracle.cluster_centers_, atol=1e-5)
    assert fit.inertia == pytest.approx(oracle.inertia_, rel=1e-6)
    assert [(p.run, p.of) for p in progress] == [(1, 3), (2, 3), (3, 3)]
    assert fit.inertia == min(p.inertia for p in progress)


def test_faiss_finds_the_partition_that_scikit_learn_finds(faiss):
    features = blobs(spread=3.0) + 100
    _, ours = finish(fit_kmeans(features, 6, FAISS, seed=7))
    _, theirs = finish(fit_kmeans(features, 6, SKLEARN, seed=7))
    assert same_partition(ours.assignment.labels, theirs.assignment.labels)
    assert ours.inertia == pytest.approx(theirs.inertia, rel=1e-4)


@pytest.mark.parametrize("config", [SKLEARN, FAISS])
def test_centers_are_the_means_of_their_images_and_labels_the_nearest_centers(config, faiss, monkeypatch):
    monkeypatch.setattr("cedm_ray.clustering.kmeans._TILE_ROWS", 70)
    features = blobs()
    _, fit = finish(fit_kmeans(features, 6, config, seed=1))
    labels = fit.assignment.labels
    assert (fit.centers.shape, fit.centers.dtype) == ((6, 5), np.float32)
    for cluster in range(6):
        assert np.allclose(fit.centers[cluster], features[labels == cluster].mean(0), atol=1e-4)
    distances = ((features[:, None] - fit.centers[None]) ** 2).sum(2)
    assert labels.tolist() == distances.argmin(1).tolist()
    assert fit.inertia == pytest.approx(distances.min(1).sum(), rel=1e-5)


@pytest.mark.parametrize("config", [SKLEARN, FAISS])
def test_fewer_distinct_images_than_clusters_show_in_the_number_used(config, faiss):
    features = np.repeat(np.eye(3, dtype=np.float32), 10, axis=0)
    _, fit = finish(fit_kmeans(features, 5, config, seed=0))
    assert (fit.assignment.num_clusters, fit.assignment.num_used) == (5, 3)
    assert fit.inertia == pytest.approx(0, abs=1e-9)


def test_a_center_without_images_is_put_on_the_farthest_one(faiss, monkeypatch):
    """Two centers on one point: one of them gets nothing, and takes the image that is far from its own center."""
    features = np.array([[0.0], [0.1], [10.0], [10.1], [50.0]], np.float32)
    starts = features[[0, 2, 2]] - features.mean()
    monkeypatch.setattr("sklearn.cluster.kmeans_plusplus", lambda *a, **k: (starts, None))
    _, fit = finish(fit_kmeans(features, 3, KMeansConfig(n_init=1, backend="faiss"), seed=0))
    assert np.sort(fit.centers[:, 0]).tolist() == pytest.approx([0.05, 10.05, 50.0], rel=1e-4)


def test_provenance_says_how(faiss):
    config = KMeansConfig(n_init=1)
    _, fit = finish(fit_kmeans(blobs(), 6, config, seed=3))
    provenance = fit.assignment.provenance
    assert fit.assignment.method == "kmeans"
    assert provenance["config"] == {"n_init": 1, "max_iter": 300, "tol": 1e-4, "backend": "auto"}
    assert (provenance["seed"], provenance["inertia"]) == (3, fit.inertia)
    assert provenance["backend"].startswith("sklearn ")
    _, other = finish(fit_kmeans(blobs(), 6, FAISS, seed=3))
    assert other.assignment.provenance["backend"] == "faiss 0"


def test_half_precision_features_and_read_only_ones_are_taken():
    features = blobs().astype(np.float16)
    features.flags.writeable = False
    _, fit = finish(fit_kmeans(features, 6, SKLEARN, seed=1))
    _, exact = finish(fit_kmeans(features.astype(np.float32), 6, SKLEARN, seed=1))
    assert fit.assignment.labels.tolist() == exact.assignment.labels.tolist()


def test_without_faiss_the_message_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ConfigurationError, match="faiss is not installed") as caught:
        next(fit_kmeans(blobs(), 2, FAISS, seed=0))
    assert "cedm-ray[faiss]" in caught.value.mend


def with_nan():
    features = blobs()
    features[41, 2] = np.nan
    return features


@pytest.mark.parametrize(
    ("features", "num_clusters", "seed", "message"),
    [
        (blobs(), 0, 0, r"num_clusters must lie in \[1, N\] = \[1, 300\], got 0"),
        (blobs(), 301, 0, "got 301"),
        (blobs().astype(int), 3, 0, r"features must be floating point \[N, D\], got int64"),
        (blobs()[0], 3, 0, "must be floating point"),
        (blobs(), 3, -1, r"seed must lie in \[0, 2\^32\), got -1"),
        (with_nan(), 3, 0, r"NaN or infinity in 1 of 300 rows, first \[41\]"),
    ],
)
def test_arguments_out_of_range_are_refused(features, num_clusters, seed, message):
    with pytest.raises(ValueError, match=message):
        next(fit_kmeans(features, num_clusters, SKLEARN, seed=seed))


@pytest.mark.parametrize("wrong", [{"n_init": 0}, {"max_iter": 0}, {"tol": -1e-9}, {"backend": "cuda"}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(pydantic.ValidationError):
        KMeansConfig(**wrong)
