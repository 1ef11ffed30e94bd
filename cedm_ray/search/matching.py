"""Which cluster stands for which class: the one-to-one mapping that puts most images right (Figs. 7 and 10).

Shapes: N images, C clusters, K classes.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """A cluster and the class that it stands for. shared: images in both. share: their part of the cluster."""

    cluster: int
    label: int
    shared: int
    share: float


def match_clusters(clusters: np.ndarray, labels: np.ndarray) -> tuple[Match, ...]:
    """The pairs of the Hungarian algorithm, by class: no cluster and no class twice, most images shared in all.

    clusters, labels: integer [N], at least 0. With more clusters than classes each class has one, with fewer each
    cluster; a pair without a common image is left out. Raises ValueError for other shapes.
    """
    from scipy.optimize import linear_sum_assignment  # Half a second to import, and rarely needed.

    if clusters.ndim != 1 or clusters.shape != labels.shape or not len(clusters):
        raise ValueError(f"clusters and labels must be [N] each, got {clusters.shape} and {labels.shape}")
    table = contingency(clusters, labels)
    rows, columns = linear_sum_assignment(table, maximize=True)
    sizes = table.sum(axis=1)
    pairs = sorted(zip(columns.tolist(), rows.tolist(), strict=True))
    return tuple(
        Match(cluster=row, label=column, shared=int(table[row, column]), share=float(table[row, column] / sizes[row]))
        for column, row in pairs
        if table[row, column]
    )


def contingency(clusters: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How many images each cluster and class share, int64 [C, K]."""
    table = np.zeros((int(clusters.max()) + 1, int(labels.max()) + 1), dtype=np.int64)
    np.add.at(table, (clusters, labels), 1)
    return table
