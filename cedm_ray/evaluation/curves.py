"""Learning curves of a study's trials, as their rungs recorded them, and what they say about each other."""

import dataclasses
from typing import Any

from cedm_ray.metrics.efficiency import sample_efficiency
from cedm_ray.search.results import UNCONDITIONAL
from cedm_ray.search.study import Study


def efficiency(study: Study, trial: str) -> dict[str, Any] | None:
    """How many times fewer training images a trial needs than the unconditional model, as plain values of `Efficiency`
    (the factor of the paper's Fig. 2), from the distances at their rungs.

    None for the unconditional model itself, and where either has no usable distance.
    """
    curves = []
    for name in (trial, UNCONDITIONAL):
        usable = [report for report in study.reports(name) if report.distance is not None and not report.collapsed]
        if not usable or trial == UNCONDITIONAL:
            return None
        curves += [[report.images_seen for report in usable], [report.distance for report in usable]]
    return dataclasses.asdict(sample_efficiency(*curves))
