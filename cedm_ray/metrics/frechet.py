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

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cedm_ray.durable import BROKEN_ARRAY, write_bytes
from cedm_ray.errors import InputDataError, SecurityError
from cedm_ray.metrics.statistics import FeatureStatistics, check_features

# Features of images that differ at all vary by percents of the training images' spread; what a network with broken
# weights paints (one gray for all seeds) varies by rounding. A thousandth lies far from both.
COLLAPSED_SPREAD = 1e-3
# How far a covariance from a file may be from a symmetric one without negative eigenvalues, as a share of its largest
# element or eigenvalue. Files of float32 numbers are off by some 1e-6.
MOMENT_ROUNDING = 1e-4
# A covariance of D = 16,384 in float64.
MAX_REFERENCE_BYTES = 2**31 + 2**20


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReferenceFactor:
    """The reference side of a Fréchet distance, as far as it can be computed in advance.

    count: number of reference images, at least 2; None = unknown, so that no eigenvalue is left out on this side.
    mean: float64 [D]. root: the symmetric square root of the covariance, float64 [D, D]. spread: trace of the
    covariance, in squared units of the features.
    """

    count: int | None
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
    root = _symmetric_root(values[-rank:].clamp(min=0), vectors[:, -rank:])
    return ReferenceFactor(count=reference.count, mean=mean, root=root, spread=float(covariance.trace()))


def reference_from_moments(mu: np.ndarray, sigma: np.ndarray, count: int | None = None) -> ReferenceFactor:
    """Factor a mean and a covariance that came from elsewhere, such as the usual `.npz` of a reference set; on the CPU.

    mu: [D], sigma: [D, D], real, finite; sigma symmetric and without a negative eigenvalue, both up to the rounding of
    float32 numbers. count: images they were computed from, at least 2; None = unknown, full rank assumed, which is
    right for any reference of more images than D. Raises ValueError for anything else.
    """
    mean, covariance = np.asarray(mu), np.asarray(sigma)
    for name, array in (("mu", mean), ("sigma", covariance)):
        if not np.issubdtype(array.dtype, np.floating):
            raise ValueError(f"{name} must be of a floating type, got {array.dtype}")
        if not np.isfinite(array).all():
            raise ValueError(f"{name} must be finite, got NaN or infinity")
    if mean.ndim != 1 or not len(mean) or covariance.shape != (len(mean), len(mean)):
        raise ValueError(f"mu and sigma must have the shapes [D] and [D, D], got {mean.shape} and {covariance.shape}")
    if count is not None and count < 2:
        raise ValueError(f"a reference needs at least 2 images, got {count}")
    covariance = covariance.astype(np.float64)
    largest = np.abs(covariance).max()
    if np.abs(covariance - covariance.T).max() > MOMENT_ROUNDING * largest:
        raise ValueError("sigma must be symmetric")
    values, vectors = torch.linalg.eigh(torch.from_numpy((covariance + covariance.T) / 2))
    if values[0] < -MOMENT_ROUNDING * max(float(values[-1]), 0.0):
        raise ValueError(f"sigma must be a covariance, got an eigenvalue of {float(values[0]):.3g}")
    rank = len(mean) if count is None else min(len(mean), count - 1)
    # The spread is that of the root, so that what rounding took below zero is missing from both.
    values = values[-rank:].clamp(min=0)
    root = _symmetric_root(values, vectors[:, -rank:])
    mean = torch.from_numpy(mean.astype(np.float64))
    return ReferenceFactor(count=count, mean=mean, root=root, spread=float(values.sum()))


def read_reference(path: str | Path) -> ReferenceFactor:
    """Read `mu` and `sigma`, and `count` where it is there, of a reference set from an `.npz`.

    It is the file of pytorch-fid, clean-fid and EDM; nothing in it is unpickled. That its features are of the same
    detector is for the user to know: the file does not say. Raises InputDataError for a file that is missing or broken
    or holds something else, SecurityError for pickled objects.
    """
    path = Path(path)
    mend = "name an .npz with the arrays mu [D] and sigma [D, D] of the reference features"
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > MAX_REFERENCE_BYTES:
            raise SecurityError(f"{path} would unpack to {size:,} bytes and was not read", mend=mend)
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in ("mu", "sigma", "count") if key in file}
            names = sorted(file)
    except FileNotFoundError:
        raise InputDataError(f"there is no file {path}", mend=mend) from None
    except BROKEN_ARRAY as error:
        if "pickle" in str(error):
            raise SecurityError(f"{path} holds pickled Python objects and was not read", mend=mend) from None
        raise InputDataError(f"{path} is no .npz that can be read: {error}", mend=mend) from None
    if not {"mu", "sigma"} <= set(arrays):
        raise InputDataError(f"{path} holds {', '.join(names)}, not mu and sigma", mend=mend)
    try:
        count = arrays.get("count")
        if count is not None and (count.shape != () or not np.issubdtype(count.dtype, np.integer)):
            raise ValueError("count must be one integer")
        return reference_from_moments(arrays["mu"], arrays["sigma"], None if count is None else int(count))
    except ValueError as error:
        raise InputDataError(f"{path}: {error}", mend=mend) from None


def write_reference(path: str | Path, statistics: FeatureStatistics) -> None:
    """Write `mu`, `sigma` (float64) and `count` as an `.npz` that pytorch-fid, clean-fid and `read_reference` read.

    Raises ValueError for fewer than 2 images or sums that are not finite, StorageError as durable.write_bytes.
    """
    mean, covariance = _moments(statistics)
    buffer = io.BytesIO()
    np.savez(buffer, mu=mean.cpu().numpy(), sigma=covariance.cpu().numpy(), count=np.int64(statistics.count))
    write_bytes(Path(path), buffer.getvalue())


def frechet_distance(statistics: FeatureStatistics, reference: FeatureStatistics | ReferenceFactor) -> float:
    """The Fréchet distance (squared, as is the custom), in squared units of the features, at least 0; lower is better.

    It is symmetric; give the side that stays the same as a `ReferenceFactor`. Computed on the reference's device.
    Raises ValueError for different D, fewer than 2 images on a side, or sums that are not finite.
    """
    factor = _factor(reference, statistics.dim)
    mean, covariance = _moments(statistics)
    mean, covariance = mean.to(factor.root.device), covariance.to(factor.root.device)
    product = factor.root @ covariance @ factor.root
    rank = min(statistics.dim, statistics.count - 1)
    if factor.count is not None:
        rank = min(rank, factor.count - 1)
    shared = torch.linalg.eigvalsh((product + product.T) / 2)[-rank:].clamp(min=0).sqrt().sum()
    return _distance(mean, covariance.trace(), shared, factor)


def frechet_distance_low_rank(features: Tensor, reference: FeatureStatistics | ReferenceFactor) -> float:
    """The same distance from the features [n, D] themselves: faster, and exact to rounding, where n is less than D.

    With the centered features Y [n, D], S = Yᵀ Y / (n - 1), so that the eigenvalues of R S R are the squared singular
    values of Y R / √(n - 1): no D x D problem is solved and nothing small is squared.

    features: any floating type, finite; moved to the reference's device. Any n of at least 2 gives the right value.
    Raises ValueError as `frechet_distance` does.
    """
    check_features(features, at_least=2)
    factor = _factor(reference, features.shape[1])
    exact = features.detach().to(device=factor.root.device, dtype=torch.float64)
    mean = exact.mean(dim=0)
    scaled = (exact - mean) / (len(exact) - 1) ** 0.5
    shared = torch.linalg.svdvals(scaled @ factor.root).sum()
    return _distance(mean, scaled.square().sum(), shared, factor)


def collapsed(images: FeatureStatistics | Tensor, reference: FeatureStatistics | ReferenceFactor | Tensor) -> bool:
    """Whether the images are all alike: their spread, tr S, is below a thousandth of the reference's.

    images, reference: their statistics, or their features [n, D] of any floating type, of at least 2 images. Such a
    set still has a finite distance, which may be lower than that of a model early in training; it is no result.
    Raises ValueError as `frechet_distance` does.
    """
    width, reference_width = _width(images), _width(reference)
    if width != reference_width:
        raise ValueError(f"both sides must have the same width, got D = {width} and {reference_width}")
    return _spread(images) < COLLAPSED_SPREAD * _spread(reference)


def _width(side: FeatureStatistics | ReferenceFactor | Tensor) -> int:
    return side.shape[-1] if isinstance(side, Tensor) else len(side.mean)


def _spread(side: FeatureStatistics | ReferenceFactor | Tensor) -> float:
    """The trace of the covariance."""
    if isinstance(side, ReferenceFactor):
        return side.spread
    if isinstance(side, FeatureStatistics):
        return float(_moments(side)[1].trace())
    check_features(side, at_least=2)
    return float(side.double().var(dim=0).sum())


def _factor(reference: FeatureStatistics | ReferenceFactor, dim: int) -> ReferenceFactor:
    _check_width(reference, dim)
    return reference if isinstance(reference, ReferenceFactor) else frechet_reference(reference)


def _symmetric_root(values: Tensor, vectors: Tensor) -> Tensor:
    return (vectors * values.sqrt()) @ vectors.T


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
