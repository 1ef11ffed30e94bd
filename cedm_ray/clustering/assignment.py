"""The result of every clustering: which cluster each image belongs to, and how many clusters are in use.

Shapes: N images, C clusters asked for, C^u clusters with at least one image. Source: Eq. 2 of the paper (c*(x) and
q(c)) and its section 3.3 (C^u, r_C = C^u / C).
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ClusterAssignment:
    """One cluster for each image. The arrays cannot be written to; what is derived is computed when it is read.

    labels: int32 [N], row i is the cluster of image i, in [0, C); ids keep the clustering's own numbering, with
    gaps. num_clusters: C, at least 1. method: what made the labels ("temi", "kmeans", ...). provenance: plain JSON
    values that say how (configuration, seed, ...).
    Raises ValueError where the labels are not such an array.
    """

    labels: np.ndarray
    num_clusters: int
    method: str
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.labels, np.ndarray) or self.labels.dtype != np.int32:
            got = getattr(self.labels, "dtype", type(self.labels).__name__)
            raise ValueError(f"labels must be a NumPy array of int32, got {got}")
        if self.labels.ndim != 1 or self.labels.size == 0:
            raise ValueError(f"labels must be a non-empty vector [N], got shape {self.labels.shape}")
        if self.num_clusters < 1:
            raise ValueError(f"num_clusters must be at least 1, got {self.num_clusters}")
        outside = (self.labels < 0) | (self.labels >= self.num_clusters)
        if outside.any():
            row = int(outside.argmax())
            raise ValueError(
                f"labels must lie in [0, {self.num_clusters}), got {self.labels[row]} at row {row}"
                f" ({int(outside.sum())} such rows)"
            )
        # A copy, because a read-only view would still change with the caller's array.
        object.__setattr__(self, "labels", _read_only(self.labels.copy()))

    @property
    def counts(self) -> np.ndarray:
        """Images in each cluster, int64 [C]."""
        return _read_only(np.bincount(self.labels, minlength=self.num_clusters).astype(np.int64, copy=False))

    @property
    def distribution(self) -> np.ndarray:
        """q(c), the share of the images in each cluster, float64 [C], sums to 1."""
        return _read_only(self.counts / self.labels.size)

    @property
    def used_ids(self) -> np.ndarray:
        """The ids that have at least one image, ascending, int64 [C^u]. Compact label k stands for used_ids[k]."""
        return _read_only(np.flatnonzero(self.counts))

    @property
    def num_used(self) -> int:
        """C^u, the number of clusters with at least one image."""
        return int(np.count_nonzero(self.counts))

    @property
    def utilization(self) -> float:
        """r_C = C^u / C, in (0, 1]."""
        return self.num_used / self.num_clusters

    @property
    def compact_labels(self) -> np.ndarray:
        """The labels renumbered without gaps, int64 [N] in [0, C^u): what a class-conditional network is given."""
        new_id = np.zeros(self.num_clusters, dtype=np.int64)
        used = self.used_ids
        new_id[used] = np.arange(used.size)
        return _read_only(new_id[self.labels])

    @property
    def compact_counts(self) -> np.ndarray:
        """Images in each used cluster, int64 [C^u], all at least 1."""
        counts = self.counts
        return _read_only(counts[counts > 0])


def _read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array
