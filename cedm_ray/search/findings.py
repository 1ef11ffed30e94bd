"""What the search for the bound of C found out, rebuilt from a study's records: both ends, and every clustering."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from cedm_ray.clustering.bound import BoundResult
from cedm_ray.clustering.lower_bound import LowerBoundResult
from cedm_ray.data.image_set import ImageSet
from cedm_ray.features.store import open_features
from cedm_ray.metrics.neighbor_vote import knn_accuracy
from cedm_ray.search.clusterings import Clustering, fit_summary, fitted, neighbors_features, read_labels
from cedm_ray.search.goals import Goal
from cedm_ray.search.outcome import restore
from cedm_ray.search.results import ClusteringSummary
from cedm_ray.search.space import SearchSpace
from cedm_ray.search.study import Study

_VOTES = 20
"""Neighbors that vote, as in the paper's Table 3."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundFindings:
    """What the search for the bound found out.

    lower: None where no fit with gamma = 1 is done. clusterings: every fit that counts, by C, those with gamma = 1
    last. ahead: fits that were asked ahead and that the search, one question at a time, never came to: they count for
    nothing. knn_accuracy: share of the labels, in [0, 1], that a vote of 20 neighbors in the features gets right,
    without the image itself; None without labels.
    """

    bound: BoundResult
    lower: LowerBoundResult | None
    clusterings: tuple[Clustering, ...]
    ahead: tuple[ClusteringSummary, ...]
    knn_accuracy: float | None

    @property
    def largest(self) -> Clustering | None:
        """The first fit of C_max; None where no C passes."""
        at_bound = (c for c in self.clusterings if c.summary.num_clusters == self.bound.c_max)
        return next(at_bound, None)

    @property
    def passed_ahead(self) -> tuple[int, ...]:
        """The C above C_max that pass and do not count, ascending."""
        c_max = self.bound.c_max or 0
        return tuple(sorted({s.num_clusters for s in self.ahead if s.passed and s.num_clusters > c_max}))


def bound_findings(study: Study, space: SearchSpace, images: ImageSet, labels: str | None) -> BoundFindings:
    """The findings of a study whose bound is known, from its records. labels: as `read_labels`."""
    truth = read_labels(labels, images)
    agenda = restore(study, space, len(images), Goal(kind="bound")).agenda
    counted = {point.num_clusters for point in agenda.bound.points}
    clusterings, ahead = [], []
    for fit in sorted(study.fits().values(), key=lambda fit: (fit.lower, fit.num_clusters, fit.repeat)):
        if fit.changes:
            # Of a trial with settings of its own, which are not those that the bound is of.
            continue
        task = fit.task
        summary = fit_summary(study, space, task, fit.seconds, truth)
        if fit.lower or (fit.num_clusters in counted and fit.repeat < space.bound.repeats):
            clusterings.append(Clustering(summary=summary, assignment=fitted(study, task)))
        else:
            ahead.append(summary)
    return BoundFindings(
        bound=agenda.bound,
        lower=agenda.lower,
        clusterings=tuple(clusterings),
        ahead=tuple(ahead),
        knn_accuracy=None if truth is None else _knn_accuracy(study, truth),
    )


def bound_json(findings: BoundFindings) -> dict[str, Any]:
    """The findings as plain values, without the assignments, which are files of their own."""
    lines = [summary_json(clustering.summary) for clustering in findings.clusterings]
    return {
        **dataclasses.asdict(findings.bound),
        "lower": None if findings.lower is None else dataclasses.asdict(findings.lower),
        "knn_accuracy": findings.knn_accuracy,
        "clusterings": lines,
        "ahead": [summary_json(summary) for summary in findings.ahead],
    }


def summary_json(summary: ClusteringSummary) -> dict[str, Any]:
    """A clustering's line as plain values, r_C included."""
    return {**dataclasses.asdict(summary), "utilization": summary.utilization}


def _knn_accuracy(study: Study, labels: np.ndarray) -> float:
    features = np.array(open_features(study.features(neighbors_features(study))))
    return knn_accuracy(torch.from_numpy(features), labels, k=min(_VOTES, len(features) - 1))
