"""A measured number with everything that it depends on, so that only like is compared with like.

A distance is a property of a model, a detector, a number of images and a reference set. Half of the numbers that people
could not reproduce were compared across one of the last three (method.md 6); here that raises an error.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from cedm_ray.metrics.uncertainty import SetSummary, summarize_sets

_KEYS = {"metric", "detector", "num_samples", "reference", "values", "seeds", "mean", "std"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One metric of one model, measured on one or more disjoint sets of its images.

    metric: its name, such as "FID". detector: key of the network that saw the images. num_samples: images in each set,
    at least 1. reference: digest of the set they were compared with; "" for a metric that has none (the inception
    score). values: of each set, at least one, finite. seeds: of each set's images, disjoint; None = images that did not
    come from seeds of ours.
    """

    metric: str
    detector: str
    num_samples: int
    reference: str
    values: tuple[float, ...]
    seeds: tuple[range, ...] | None

    def __post_init__(self) -> None:
        if not self.metric or not self.detector:
            raise ValueError("metric and detector must have a name")
        if self.num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {self.num_samples}")
        summarize_sets(self.values)
        if self.seeds is None:
            return
        if len(self.seeds) != len(self.values):
            raise ValueError(f"each set must have its seeds, got {len(self.seeds)} for {len(self.values)} values")
        for seeds in self.seeds:
            if seeds.step != 1 or seeds.start < 0 or len(seeds) != self.num_samples:
                raise ValueError(f"a set must hold num_samples = {self.num_samples} seeds from 0 on, got {seeds}")
        ordered = sorted(self.seeds, key=lambda seeds: seeds.start)
        for one, next_one in pairwise(ordered):
            if next_one.start < one.stop:
                raise ValueError(f"sets must be disjoint, got {one} and {next_one}")

    @property
    def summary(self) -> SetSummary:
        """Mean, deviation, error and minimum over the sets."""
        return summarize_sets(self.values)

    @property
    def mean(self) -> float:
        """Mean over the sets."""
        return self.summary.mean

    @property
    def std(self) -> float | None:
        """Sample standard deviation over the sets; None for one set."""
        return self.summary.std

    def to_json(self) -> dict[str, Any]:
        """Plain values for a JSON file; `mean` and `std` are there to be read and are not read back."""
        seeds = None if self.seeds is None else [[one.start, one.stop] for one in self.seeds]
        return {
            "metric": self.metric,
            "detector": self.detector,
            "num_samples": self.num_samples,
            "reference": self.reference,
            "values": list(self.values),
            "seeds": seeds,
            "mean": self.mean,
            "std": self.std,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Measurement":
        """What `to_json` wrote. Raises ValueError for anything else."""
        if set(value) != _KEYS:
            raise ValueError(f"a measurement must have the keys {sorted(_KEYS)}, got {sorted(value)}")
        try:
            seeds = None if value["seeds"] is None else tuple(range(start, stop) for start, stop in value["seeds"])
            values = tuple(float(one) for one in value["values"])
            return cls(
                metric=str(value["metric"]),
                detector=str(value["detector"]),
                num_samples=int(value["num_samples"]),
                reference=str(value["reference"]),
                values=values,
                seeds=seeds,
            )
        except TypeError as error:
            raise ValueError(f"a measurement has a value of the wrong type: {error}") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredDifference:
    """Mean of one measurement minus that of another.

    value: below 0 where the first is lower. standard_error: of it, from the scatter over the sets; None where a side
    has one set. paired: whether both sides have the same seeds, so that the error is that of their differences.
    """

    value: float
    standard_error: float | None
    paired: bool


def comparable(a: Measurement, b: Measurement, *, any_count: bool = False) -> None:
    """Raise ValueError, naming all that differs, unless both are the same metric under the same conditions.

    Metric, detector, images of a set and reference must agree. The number of sets may differ: their mean is no other
    quantity for being better known. any_count: whether the metric estimates the same whatever the number of images, so
    that this may differ too.
    """
    differ = [
        f"{what} ({getattr(a, name)} and {getattr(b, name)})"
        for name, what in (
            ("metric", "the metric"),
            ("detector", "the detector"),
            ("num_samples", "the number of images"),
            ("reference", "the reference set"),
        )
        if getattr(a, name) != getattr(b, name) and not (any_count and name == "num_samples")
    ]
    if differ:
        raise ValueError(f"these numbers do not compare: they differ in {', '.join(differ)}")


def difference(a: Measurement, b: Measurement, *, any_count: bool = False) -> MeasuredDifference:
    """`a` minus `b`, with its error over the sets. any_count, and ValueError: as `comparable`."""
    comparable(a, b, any_count=any_count)
    paired = a.seeds is not None and a.seeds == b.seeds
    if a.std is None or b.std is None:
        error = None
    elif paired:
        error = summarize_sets(np.subtract(a.values, b.values).tolist()).standard_error
    else:
        error = (a.summary.standard_error**2 + b.summary.standard_error**2) ** 0.5
    return MeasuredDifference(value=a.mean - b.mean, standard_error=error, paired=paired)
