"""How much of the labels lies in the features: what a vote of an image's nearest neighbors makes of it.

N images, D feature width, k neighbors.

Labels are for evaluation only.
"""

import numpy as np
import torch
from torch import Tensor

from cedm_ray.metrics.similarity import most_similar


def knn_accuracy(
    features: Tensor,
    truth: np.ndarray,
    test_features: Tensor | None = None,
    test_truth: np.ndarray | None = None,
    *,
    k: int = 20,
    temperature: float = 0.02,
) -> float:
    """Share of images, in [0, 1], whose class a weighted vote of their nearest neighbors gets right.

    Each of the `k` training images of the highest cosine votes for its own class with the weight exp(cosine /
    temperature) (Caron et al. 2021; the ACC of the paper's Table 3).

    features: [N, D] training features of any floating type. truth: their classes, integers [N] of at least 0.
    test_features, test_truth: the images to classify; None = the training images themselves, each with itself left
    out. k: in [1, N], or [1, N - 1] with itself left out. temperature: above 0.
    Raises ValueError for arguments that break these rules or shapes that do not fit.
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    if (test_features is None) != (test_truth is None):
        raise ValueError("test_features and test_truth must be given together")
    own_rows = torch.arange(len(features)) if test_features is None else None
    queries, expected = (features, truth) if test_features is None else (test_features, test_truth)
    classes, wanted = (
        _checked_classes(array, len(side), name)
        for array, side, name in ((truth, features, "truth"), (expected, queries, "test_truth"))
    )
    cosines, rows = most_similar(queries, features, k, own_rows=own_rows)
    # A common factor changes no vote; this one keeps the exponential from overflowing.
    weights = ((cosines - cosines[:, :1]) / temperature).exp()
    votes = weights.new_zeros(len(queries), int(max(classes.max(), wanted.max())) + 1)
    votes.scatter_add_(1, classes.to(rows.device)[rows], weights)
    return float((votes.argmax(dim=1).cpu() == wanted).double().mean())


def _checked_classes(truth: np.ndarray, count: int, name: str) -> Tensor:
    array = np.asarray(truth)
    if array.shape != (count,) or count < 1 or not np.issubdtype(array.dtype, np.integer) or array.min() < 0:
        raise ValueError(f"{name} must hold one integer of at least 0 for each image, got {array.dtype} {array.shape}")
    return torch.from_numpy(array.astype(np.int64))
