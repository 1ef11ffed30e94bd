"""How well clusters agree with labels that were never used to find them, and how even their sizes are.

N images, C clusters, K classes.

Labels are for evaluation only. The figures are those of the paper's Tables 3 and 5 and of the published result files
(method.md 4.6, 4.7, 4.9); there they stand multiplied by 100, here they are shares.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Agreement of one assignment with the labels.

    accuracy: share of images whose cluster stands for their class, in [0, 1]. nmi: normalized mutual information
    (arithmetic mean of the entropies), in [0, 1]. ami: the same adjusted for chance, which the paper calls ANMI; at
    most 1, about 0 for chance. ari: adjusted Rand index; at most 1, about 0 for chance.
    """

    accuracy: float
    nmi: float
    ami: float
    ari: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSizes:
    """How even the sizes of the used clusters are.

    kl_from_uniform: KL(uniform || q) over the used clusters in nats, 0 where all are equal. perplexity: exp of the
    entropy of q, the number of equal clusters that would be as uncertain, in [1, number of used clusters]. smallest,
    largest: images in the smallest and the largest used cluster.
    """

    kl_from_uniform: float
    perplexity: float
    smallest: int
    largest: int


def agreement(labels: np.ndarray, truth: np.ndarray) -> Agreement:
    """Compare clusters with classes.

    labels: cluster of each image, integers [N]. truth: its class, integers [N]. Only equality of the numbers counts.
    The accuracy matches clusters and classes one to one so that most images agree (Hungarian method); with more used
    clusters than classes, each cluster left without a class then stands for the class of most of its images. This is
    the accuracy of the published files. It is not purity, which gives every cluster its majority class.
    Raises ValueError for shapes that differ, arrays that are not integers [N], or no image.
    """
    labels, truth = np.asarray(labels), np.asarray(truth)
    if labels.ndim != 1 or labels.shape != truth.shape or len(labels) < 1:
        raise ValueError(f"labels and truth must have the same shape [N], got {labels.shape} and {truth.shape}")
    for name, array in (("labels", labels), ("truth", truth)):
        if not np.issubdtype(array.dtype, np.integer):
            raise ValueError(f"{name} must be integers, got {array.dtype}")
    # Here because scikit-learn takes a second to import, which every process of a search would pay for nothing.
    from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score, normalized_mutual_info_score

    return Agreement(
        accuracy=_matched_accuracy(labels, truth),
        nmi=float(normalized_mutual_info_score(truth, labels)),
        ami=float(adjusted_mutual_info_score(truth, labels)),
        ari=float(adjusted_rand_score(truth, labels)),
    )


def _matched_accuracy(labels: np.ndarray, truth: np.ndarray) -> float:
    from scipy.optimize import linear_sum_assignment  # Here as scikit-learn is above.

    # Unused clusters would be rows of zeros and the padding to a square columns of zeros: neither changes the sum that
    # is maximized, so the rectangle of used clusters and present classes is matched.
    used, cluster = np.unique(labels, return_inverse=True)
    classes, true_class = np.unique(truth, return_inverse=True)
    contingency = np.zeros((len(used), len(classes)), dtype=np.int64)
    np.add.at(contingency, (cluster, true_class), 1)
    rows, columns = linear_sum_assignment(contingency, maximize=True)
    left = np.ones(len(used), dtype=bool)
    left[rows] = False
    matched = contingency[rows, columns].sum() + contingency[left].max(axis=1).sum()
    return float(matched / len(labels))


def cluster_sizes(counts: np.ndarray) -> ClusterSizes:
    """Evenness of cluster sizes. counts: images in each cluster, integers [C], at least 0; empty clusters do not count.

    Raises ValueError for anything else, or where all clusters are empty.
    """
    counts = np.asarray(counts)
    if counts.ndim != 1 or not np.issubdtype(counts.dtype, np.integer) or (counts < 0).any():
        raise ValueError("counts must be integers [C] of at least 0")
    used = counts[counts > 0].astype(np.float64)
    if not len(used):
        raise ValueError("at least one cluster must hold an image")
    share = used / used.sum()
    return ClusterSizes(
        # Equal sizes can round to a hair below zero.
        kl_from_uniform=max(0.0, float(-np.log(len(used)) - np.log(share).mean())),
        perplexity=float(np.exp(-(share * np.log(share)).sum())),
        smallest=int(used.min()),
        largest=int(used.max()),
    )
