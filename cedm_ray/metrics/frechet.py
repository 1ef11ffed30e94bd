"""The Fréchet distance of two sets of images, seen through the features of one network: FID, FDD and their kin.

N images, n generated images, D feature width.

Both sets are taken for Gaussians with the mean μ and covariance S of their features. The squared distance is

    d² = |μ - μᵣ|² + tr S + tr Sᵣ - 2 tr (S Sᵣ)^½        (Heusel et al. 2017, Eq. 6; Dowson and Landau 1982)

and it is d² that everyone calls the distance. The last trace never needs the square root of the unsymmetric S Sᵣ, on
which solvers fail: with R = Sᵣ^½ it is the sum of √λ over the eigenvalues λ of R S R, which is symmetric and has no
negative ones but by rounding. R belongs to the training images, so `frechet_reference` computes it once and each rung
of each trial then costs one `eigvalsh`.

A covariance of n images has a rank of at most n - 1. The eigenvalues beyond it are zero in exact arithmetic; what an
eigensolver returns for them is rounding of about 1e-16, whose square root of 1e-8 would be added up to D times. They
are therefore left out by count, without a tolerance.

A distance depends on the detector and on N. Two distances compare only where both agree.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from cedm_ray.metrics.statistics import FeatureStatistics

# Features of images that differ at all vary by percents of the training images' spread; what a network with broken
# weights paints (one gray for all seeds) varies by rounding. A thousandth lies far from both.
COLLAPSED_SPREAD = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReferenceFactor:
    """The reference side of a Fréchet distance, as far as it can be computed in advance.

    count: number of reference images, at least 2. mean: float64 [D]. root: the symmetric square root of the
    covariance, float64 [D, D]. spread: trace of the covariance, in squared units of the features.
    """

    count: int
    mean: Tensor
    root: Tensor
    spread: float


def frechet_reference(reference: FeatureStatistics) -> ReferenceFactor:
    """Factor the reference statistics, to be used for many distances, on the device of `reference`.

    Raises ValueError for fewer than 2 images or sums that are not finite.
    """
    mean, covariance = _moments(reference)
    values, vectors = torch.linalg.eigh(covariance)
    rank = min(reference.dim, reference.count - 1)
    values, vectors = values[-rank:].clamp(min=0), vectors[:, -rank:]
    root = (vectors * values.sqrt()) @ vectors.T
    return ReferenceFactor(count=reference.count, mean=mean, root=root, spread=float(covariance.trace()))


def frechet_distance(statistics: FeatureStatistics, reference: FeatureStatistics | ReferenceFactor) -> float:
    """The Fréchet distance (squared, as is the custom), in squared units of the features, at least 0; lower is better.

    It is symmetric; give the side that stays the same as a `ReferenceFactor`. Computed on the reference's device.
    Raises ValueError for different D, fewer than 2 images on a side, or sums that are not finite.
    """
    factor = _factor(reference, statistics.dim)
    mean, covariance = _moments(statistics)
    mean, covariance = mean.to(factor.root.device), covariance.to(factor.root.device)
    product = factor.root @ covariance @ factor.root
    rank = min(statistics.dim, statistics.count - 1, factor.count - 1)
    shared = torch.linalg.eigvalsh((product + product.T) / 2)[-rank:].clamp(min=0).sqrt().sum()
    return _distance(mean, covariance.trace(), shared, factor)


def frechet_distance_low_rank(features: Tensor, reference: FeatureStatistics | ReferenceFactor) -> float:
    """The same distance from the features [n, D] themselves: faster, and exact to rounding, where n is less than D.

    With the centered features Y [n, D], S = Yᵀ Y / (n - 1), so that the eigenvalues of R S R are the squared singular
    values of Y R / √(n - 1): no D x D problem is solved and nothing small is squared.

    features: any floating type, finite; moved to the reference's device. Any n of at least 2 gives the right value.
    Raises ValueError as `frechet_distance` does.
    """
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"features must have the shape [n, D] with n at least 2, got {list(features.shape)}")
    if not torch.isfinite(features).all():
        raise ValueError("features must be finite, got NaN or infinity")
    factor = _factor(reference, features.shape[1])
    exact = features.detach().to(device=factor.root.device, dtype=torch.float64)
    mean = exact.mean(dim=0)
    scaled = (exact - mean) / (len(exact) - 1) ** 0.5
    shared = torch.linalg.svdvals(scaled @ factor.root).sum()
    return _distance(mean, scaled.square().sum(), shared, factor)


def collapsed(statistics: FeatureStatistics, reference: FeatureStatistics | ReferenceFactor) -> bool:
    """Whether the images are all alike: their spread, tr S, is below a thousandth of the reference's.

    Such a set still has a finite distance, which may be lower than that of a model early in training; it is no result.
    Raises ValueError as `frechet_distance` does.
    """
    _check_width(reference, statistics.dim)
    spread = reference.spread if isinstance(reference, ReferenceFactor) else float(_moments(reference)[1].trace())
    return float(_moments(statistics)[1].trace()) < COLLAPSED_SPREAD * spread


def _factor(reference: FeatureStatistics | ReferenceFactor, dim: int) -> ReferenceFactor:
    _check_width(reference, dim)
    return reference if isinstance(reference, ReferenceFactor) else frechet_reference(reference)


def _check_width(reference: FeatureStatistics | ReferenceFactor, dim: int) -> None:
    if (reference_dim := len(reference.mean)) != dim:
        raise ValueError(f"both sides must have the same width, got D = {dim} and {reference_dim}")


def _moments(statistics: FeatureStatistics) -> tuple[Tensor, Tensor]:
    covariance = statistics.covariance
    # One element that is not finite makes the trace or the sum so, whichever triangle it is in.
    if not (torch.isfinite(statistics.mean).all() and torch.isfinite(covariance.sum())):
        raise ValueError("the statistics must be finite, got NaN or infinity")
    return statistics.mean, covariance


def _distance(mean: Tensor, spread: Tensor, shared: Tensor, factor: ReferenceFactor) -> float:
    distance = float((mean - factor.mean).square().sum() + spread + factor.spread - 2 * shared)
    # Rounding can leave two equal sets a hair below zero; anything more would be a mistake in this file.
    assert distance > -1e-6 * (factor.spread + float(spread) + 1e-300), distance
    return max(distance, 0.0)
