"""What a Fréchet distance needs to know about a set of images: sums over their features that add.

N images, B batch, D feature width.

Generated images are never collected. Each batch of features becomes a `FeatureStatistics`, and those are added, over
batches and over workers alike; mean and covariance are formed once, at the end (method.md 4.1). Memory is one vector
and one matrix, whatever N is.

The sums are plain float64 without a shift. Against a two-pass covariance this loses about (mean / deviation)² · 2e-16
in relative precision: 5e-14 was measured on 20,000 features of width 2,048 (performance.md 3.3), and a detector whose
features lie a hundred deviations away from zero would still keep eleven digits. A shift would have to be agreed on by
all workers before the first image; it is not worth that.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


def check_features(features: Tensor, name: str = "features", *, at_least: int = 0) -> None:
    """Raise ValueError unless `features` is [B, D] of a floating type, finite, with D >= 1 and B >= `at_least`.

    One NaN would silently spoil whatever is computed from all of them. name: what the message calls them.
    """
    if features.ndim != 2 or features.shape[1] < 1:
        raise ValueError(f"{name} must have the shape [B, D], got {list(features.shape)}")
    if len(features) < at_least:
        raise ValueError(f"{name} must hold at least {at_least} images, got {len(features)}")
    if not features.is_floating_point():
        raise ValueError(f"{name} must be of a floating type, got {features.dtype}")
    bad_rows = ~torch.isfinite(features).all(dim=1)
    if bad_rows.any():
        raise ValueError(f"{name} must be finite, got NaN or infinity in {int(bad_rows.sum())} of {len(features)}")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FeatureStatistics:
    """The sums over the features x of a set of images; `a + b` are the sums over both sets.

    count: N, the number of images, at least 0. sum: Σ x, float64 [D]. outer: Σ x xᵀ, float64 [D, D], on the device of
    `sum`. Which device that is does not matter; what is added must share it.
    """

    count: int
    sum: Tensor
    outer: Tensor

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ValueError(f"count must be at least 0, got {self.count}")
        if self.sum.ndim != 1 or self.outer.shape != (len(self.sum), len(self.sum)):
            shapes = f"{list(self.sum.shape)} and {list(self.outer.shape)}"
            raise ValueError(f"sum and outer must have the shapes [D] and [D, D], got {shapes}")
        if self.sum.dtype != torch.float64 or self.outer.dtype != torch.float64:
            raise ValueError(f"sum and outer must be float64, got {self.sum.dtype} and {self.outer.dtype}")

    @classmethod
    def empty(cls, dim: int, device: torch.device | str = "cpu") -> "FeatureStatistics":
        """The statistics of no image, what a merge starts from. dim: D, at least 1."""
        if dim < 1:
            raise ValueError(f"dim must be at least 1, got {dim}")
        zeros = torch.zeros(dim + 1, dim, dtype=torch.float64, device=device)
        return cls(count=0, sum=zeros[0], outer=zeros[1:])

    @classmethod
    def of(cls, features: Tensor) -> "FeatureStatistics":
        """The statistics of a batch of features [B, D] of any floating type, on their device.

        Raises ValueError where a feature is NaN or infinite: one such image would silently spoil all others.
        """
        check_features(features)
        exact = features.detach().to(torch.float64)
        return cls(count=len(exact), sum=exact.sum(dim=0), outer=exact.T @ exact)

    @classmethod
    def over(cls, batches: Iterable[Tensor], dim: int, device: torch.device | str = "cpu") -> "FeatureStatistics":
        """The statistics of all batches [B, D] together, added up on `device` as they come; none is kept.

        The same sums as adding up `of` of each, to rounding, without a D x D matrix made anew for every batch: at
        D = 2048 and B = 64 that takes a quarter of the CPU time. dim: D, which an empty stream cannot tell.
        Raises ValueError as `of`, and for another D.
        """
        count, total = 0, cls.empty(dim, device)
        for features in batches:
            check_features(features)
            if features.shape[1] != dim:
                raise ValueError(f"features must have the width D = {dim}, got {features.shape[1]}")
            exact = features.detach().to(device=device, dtype=torch.float64)
            count += len(exact)
            # In place, which no one sees: the tensors are handed out when the stream has ended.
            total.sum.add_(exact.sum(dim=0))
            total.outer.addmm_(exact.T, exact)
        return cls(count=count, sum=total.sum, outer=total.outer)

    def __add__(self, other: "FeatureStatistics") -> "FeatureStatistics":
        if not isinstance(other, FeatureStatistics):
            return NotImplemented
        if self.dim != other.dim:
            raise ValueError(f"statistics of different widths do not add, got D = {self.dim} and {other.dim}")
        return FeatureStatistics(
            count=self.count + other.count, sum=self.sum + other.sum, outer=self.outer + other.outer
        )

    @property
    def dim(self) -> int:
        """D, the width of the features."""
        return len(self.sum)

    @property
    def mean(self) -> Tensor:
        """The mean feature, float64 [D]. Raises ValueError for no image."""
        if self.count < 1:
            raise ValueError("a mean needs at least 1 image, got 0")
        return self.sum / self.count

    @property
    def covariance(self) -> Tensor:
        """The unbiased covariance (division by N - 1), float64 [D, D], exactly symmetric.

        Raises ValueError for fewer than 2 images.
        """
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 images, got {self.count}")
        covariance = (self.outer - torch.outer(self.sum, self.mean)) / (self.count - 1)
        # A matrix product need not round both triangles alike, and an eigensolver reads only one of them.
        return (covariance + covariance.T) / 2

    def to_arrays(self) -> dict[str, np.ndarray]:
        """The sums as arrays for a file: `count` int64 [], `sum` float64 [D], `outer` float64 [D, D]."""
        return {
            "count": np.array(self.count, dtype=np.int64),
            "sum": self.sum.cpu().numpy(),
            "outer": self.outer.cpu().numpy(),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "FeatureStatistics":
        """The statistics that `to_arrays` wrote, on the CPU. Raises ValueError for anything else."""
        if set(arrays) != {"count", "sum", "outer"}:
            raise ValueError(f"arrays must be count, sum and outer, got {sorted(arrays)}")
        if np.shape(arrays["count"]) != () or not np.issubdtype(arrays["count"].dtype, np.integer):
            raise ValueError("count must be one integer")
        total, outer = (torch.from_numpy(np.array(arrays[key])) for key in ("sum", "outer"))
        if not (torch.isfinite(total).all() and torch.isfinite(outer).all()):
            raise ValueError("sum and outer must be finite")
        return cls(count=int(arrays["count"]), sum=total, outer=outer)
