"""The vote of the nearest neighbors against scikit-learn's, and against itself with one image left out at a time."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from cedm_ray.metrics.neighbor_vote import knn_accuracy


def blobs(count: int, seed: int) -> tuple[torch.Tensor, np.ndarray]:
    random = np.random.default_rng(seed)
    truth = random.integers(0, 5, count)
    centers = np.random.default_rng(1).normal(size=(5, 8))
    return torch.from_numpy(centers[truth] + random.normal(size=(count, 8)) * 1.1), truth


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_weighted_votes_are_those_of_scikit_learn(dtype):
    (train, truth), (test, test_truth) = blobs(300, 2), blobs(150, 3)
    train, test = train.to(dtype), test.to(dtype)
    # scikit-learn gives cosine distances, so that exp(cosine / T) is exp(-distance / T) up to a common factor.
    peer = KNeighborsClassifier(20, metric="cosine", algorithm="brute", weights=lambda d: np.exp(-d / 0.02))
    expected = peer.fit(train.double(), truth).score(test.double(), test_truth)
    assert 0.3 < expected < 0.95
    assert knn_accuracy(train, truth, test, test_truth) == pytest.approx(expected, abs=1e-9)


def test_leave_one_out_leaves_each_image_out():
    features, truth = blobs(80, 4)
    right = 0
    for row in range(80):
        rest = np.arange(80) != row
        right += knn_accuracy(features[rest], truth[rest], features[row : row + 1], truth[row : row + 1], k=7)
    assert knn_accuracy(features, truth, k=7) == pytest.approx(right / 80)
    assert knn_accuracy(features, truth, features, truth, k=1) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 10}, r"\[1, 9\], got 10"),
        ({"k": 0}, r"\[1, 9\], got 0"),
        ({"temperature": 0}, "temperature must be above 0"),
        ({"truth": np.zeros(9, dtype=int)}, "truth must hold one integer"),
        ({"truth": np.full(10, -1)}, "truth must hold one integer"),
        ({"test_truth": np.zeros(10, dtype=int)}, "given together"),
    ],
)
def test_votes_that_cannot_be_taken_are_refused(change, message):
    features, truth = blobs(10, 5)
    with pytest.raises(ValueError, match=message):
        knn_accuracy(**({"features": features, "truth": truth, "k": 3} | change))
