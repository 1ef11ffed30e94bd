"""Sample efficiency: how many times fewer training images a model needs for what a baseline reaches (paper, Fig. 2).

The paper compares snapshots, taken every 20 million images: C-EDM at 40 million beats the unconditional model at 200
million, hence 5; on FFHQ-64 it does so at 60 million, hence 3.3. Such a factor is rounded down to the spacing of the
snapshots. Beside it stands the factor with the crossing interpolated linearly in images, as the axes of Fig. 2 are
linear; it is at least as large.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class Efficiency:
    """Training images of the baseline over those of the other model, for the baseline's best distance.

    target: that distance. baseline_images: training images at which the baseline first has it, in the unit given.
    images: training images at which the other curve first comes down to it, interpolated; None = never. factor:
    baseline_images / images; None = never reached. snapshot_images, snapshot_factor: the same at the first snapshot at
    or below the target, without interpolation, as in the paper. at_first: whether the other model's first snapshot is
    below the target already, so that both factors are lower bounds.
    """

    target: float
    baseline_images: float
    images: float | None
    factor: float | None
    snapshot_images: float | None
    snapshot_factor: float | None
    at_first: bool


def sample_efficiency(
    images: Sequence[float],
    distances: Sequence[float],
    baseline_images: Sequence[float],
    baseline_distances: Sequence[float],
) -> Efficiency:
    """Compare two learning curves.

    images, baseline_images: training images seen at each snapshot, above 0, strictly ascending, in one unit for both.
    distances, baseline_distances: finite, lower is better, of like measurements (see measurement.py). The baseline's
    best distance is the target and not its last, which may be worse by chance; for a curve that falls to its end they
    are one. Raises ValueError for curves that break these rules.
    """
    seen, reached = _checked_curve("", images, distances)
    baseline_seen, baseline_reached = _checked_curve("baseline_", baseline_images, baseline_distances)
    best = int(baseline_reached.argmin())
    target, needed = float(baseline_reached[best]), float(baseline_seen[best])
    below = np.flatnonzero(reached <= target)
    if not len(below):
        crossing = snapshot = None
    else:
        first = int(below[0])
        snapshot = crossing = float(seen[first])
        if first > 0:
            above, under = reached[first - 1], reached[first]
            crossing -= float((seen[first] - seen[first - 1]) * (target - under) / (above - under))
    return Efficiency(
        target=target,
        baseline_images=needed,
        images=crossing,
        factor=None if crossing is None else needed / crossing,
        snapshot_images=snapshot,
        snapshot_factor=None if snapshot is None else needed / snapshot,
        at_first=bool(reached[0] <= target),
    )


def _checked_curve(prefix: str, images: Sequence[float], distances: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    seen, reached = np.asarray(images, dtype=np.float64), np.asarray(distances, dtype=np.float64)
    if seen.ndim != 1 or seen.shape != reached.shape or not len(seen):
        shapes = f"{seen.shape} and {reached.shape}"
        raise ValueError(f"{prefix}images and {prefix}distances must be as many, at least one, got {shapes}")
    if not np.isfinite(seen).all() or not np.isfinite(reached).all():
        raise ValueError(f"{prefix}images and {prefix}distances must be finite")
    if seen[0] <= 0 or (np.diff(seen) <= 0).any():
        raise ValueError(f"{prefix}images must be above 0 and strictly ascending, got {seen.tolist()}")
    return seen, reached
