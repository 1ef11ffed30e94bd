"""How faithful and how diverse generated images are: precision, recall, density, coverage; and the inception score.

n generated images, N reference images, D feature width, k neighbors, K classes.

The manifold of a set is the union of balls around its images, each as wide as the distance to the k-th nearest other
image of the set (Kynkäänniemi et al. 2019; Naeem et al. 2020). Distances are Euclidean and taken in float64, because
each figure counts strict comparisons; they are computed in tiles, so that no n x N matrix is ever held.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from cedm_ray.metrics.statistics import check_features

TILE_ROWS = 1024
TILE_COLUMNS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifold:
    """Four shares; higher is better.

    precision: generated images inside the reference's manifold, in [0, 1]. recall: reference images inside the
    generated images' manifold, in [0, 1]. density: reference balls around a generated image over k, at least 0, about
    1 for equal distributions and above it where generated images crowd where the reference is dense. coverage:
    reference images whose ball holds a generated image, in [0, 1].
    """

    precision: float
    recall: float
    density: float
    coverage: float


@dataclass(frozen=True, slots=True, kw_only=True)
class InceptionScore:
    """value: mean over the splits, in [1, K], higher is better. std: standard deviation over them (division by their
    number, as is the custom)."""

    value: float
    std: float


def manifold(reference: Tensor, generated: Tensor, *, k: int = 5) -> Manifold:
    """Precision, recall, density and coverage, on the device of `reference`.

    reference: features [N, D], generated: [n, D], of any floating type. The paper's comparisons use 10,000 of each: all
    four depend on the numbers of images. k: in [1, min(n, N) - 1].
    Raises ValueError for k outside its range, different D, or features that are not finite.
    """
    check_features(reference, "reference")
    check_features(generated, "generated")
    if reference.shape[1] != generated.shape[1]:
        raise ValueError(f"both sides must have the same width, got D = {reference.shape[1]} and {generated.shape[1]}")
    fewest = min(len(reference), len(generated))
    if not 1 <= k < fewest:
        raise ValueError(f"k must lie in [1, {fewest - 1}], below the images of the smaller side, got {k}")
    with torch.no_grad():
        # Distances do not change with the origin, and near it less is lost when squares are subtracted.
        real = reference.double()
        center = real.mean(dim=0)
        real, fake = real - center, generated.to(reference.device).double() - center
        real_radius, fake_radius = _radii(real, k), _radii(fake, k)
        in_real_balls = torch.zeros(len(fake), dtype=torch.int64, device=real.device)
        in_fake_ball = torch.zeros(len(real), dtype=torch.bool, device=real.device)
        holds_fake = torch.zeros(len(real), dtype=torch.bool, device=real.device)
        for rows, columns, distance in _distances(real, fake):
            inside = distance < real_radius[rows, None]
            in_real_balls[columns] += inside.sum(dim=0)
            holds_fake[rows] |= inside.any(dim=1)
            in_fake_ball[rows] |= (distance < fake_radius[columns]).any(dim=1)
    return Manifold(
        precision=float((in_real_balls > 0).double().mean()),
        recall=float(in_fake_ball.double().mean()),
        density=float(in_real_balls.double().mean() / k),
        coverage=float(holds_fake.double().mean()),
    )


def _distances(a: Tensor, b: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
    """Tiles of the squared distances: (rows of a, rows of b, block). What is compared need not be rooted."""
    squares_a, squares_b = a.square().sum(dim=1), b.square().sum(dim=1)
    for top in range(0, len(a), TILE_ROWS):
        rows = slice(top, top + TILE_ROWS)
        for left in range(0, len(b), TILE_COLUMNS):
            columns = slice(left, left + TILE_COLUMNS)
            block = torch.addmm(squares_b[columns].expand(len(a[rows]), -1), a[rows], b[columns].T, alpha=-2)
            # Equal images come out a hair off zero.
            yield rows, columns, block.add_(squares_a[rows, None]).clamp_(min=0)


def _radii(features: Tensor, k: int) -> Tensor:
    """Squared distance of each image to the k-th nearest other image of its set, float64 [N]."""
    nearest = torch.full((len(features), k), torch.inf, dtype=torch.float64, device=features.device)
    for rows, columns, distance in _distances(features, features):
        # An image is left out by its row, not by its distance: a duplicate is a neighbor at distance 0.
        distance.diagonal(rows.start - columns.start).fill_(torch.inf)
        of_tile = distance.topk(min(k, distance.shape[1]), dim=1, largest=False).values
        nearest[rows] = torch.cat([nearest[rows], of_tile], dim=1).topk(k, dim=1, largest=False).values
    return nearest.max(dim=1).values


def inception_score(probabilities: Tensor, *, splits: int = 10) -> InceptionScore:
    """exp of the mean KL(p(y | x) || p(y)), over `splits` equal shares of the images in order (Salimans et al. 2016).

    probabilities: p(y | x) of the generated images, [n, K] of any floating type, rows that add to 1. It is an inception
    score only where the classifier is Inception-v3 over ImageNet. splits: in [1, n].
    Raises ValueError for rows that are no probabilities, or splits outside their range.
    """
    check_features(probabilities, "probabilities", at_least=1)
    if not 1 <= splits <= len(probabilities):
        raise ValueError(f"splits must lie in [1, {len(probabilities)}], got {splits}")
    p = probabilities.detach().double()
    if (p < 0).any() or ((p.sum(dim=1) - 1).abs() > 1e-2).any():
        raise ValueError("probabilities must be at least 0 and add to 1 in each row")
    ends = [split * len(p) // splits for split in range(splits + 1)]
    scores = torch.stack([_score(p[start:stop]) for start, stop in pairwise(ends)])
    return InceptionScore(value=float(scores.mean()), std=float(scores.std(correction=0)))


def _score(p: Tensor) -> Tensor:
    # xlogy gives 0 log 0 = 0; where the mean is 0, so is every p.
    divergence = torch.xlogy(p, p) - torch.xlogy(p, p.mean(dim=0))
    return divergence.sum(dim=1).mean().exp()
