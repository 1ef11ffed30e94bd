"""How sure a number is: the spread over disjoint sets of seeds, and an interval for the difference of two models.

K blocks of images, n images of a model, D feature width.

Two models that start from the same noise make like images, so that their distances rise and fall together: the
difference is known far better than either (in an ideal case its variance was 560 to 1,030 times smaller, performance.md
3.4). The interval below keeps that by resampling blocks of images that belong to the same seeds together.

Its biases, and what is done about them. A resample of K blocks holds each image of some blocks twice, and so has the
distance of fewer images: it lies too high by about as much as n images already lie above infinitely many. In the
difference most of that cancels, since both sides are resampled alike; the rest is taken off by reading the quantiles
around the mean of the resampled differences, not around the measured one. And K blocks show too little scatter, by
√((K - 1) / K), and too light tails; both are undone by a factor of √(K / (K - 1)) t / z, with the quantiles t of
Student's distribution of K - 1 degrees of freedom and z of the normal one (Hesterberg 2015, section 5.3). What does not
go is the bias of n images itself: it is the same for both models only as far as their 1 / n terms are.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.special
import torch
from torch import Tensor

from cedm_ray.metrics.frechet import ReferenceFactor, frechet_distance, frechet_reference
from cedm_ray.metrics.statistics import FeatureStatistics

# Matrices [D, D] that are worked on at once; at D = 2,048 one is 32 MiB.
BATCH_ELEMENTS = 2**22


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """The distance of one model minus that of another, with its interval.

    value: below 0 where the first is better. low, high: ends of the interval. level: its confidence, in (0, 1).
    replicates: resamples behind it.
    """

    value: float
    low: float
    high: float
    level: float
    replicates: int

    @property
    def resolved(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.low > 0 or self.high < 0


def bootstrap_difference(
    blocks_a: Sequence[FeatureStatistics],
    blocks_b: Sequence[FeatureStatistics],
    reference: FeatureStatistics | ReferenceFactor,
    *,
    replicates: int = 200,
    level: float = 0.95,
    seed: int = 0,
) -> Difference:
    """Bootstrap interval for the difference of two models' Fréchet distances to one reference, which is kept fixed.

    blocks_a, blocks_b: statistics of disjoint shares of each model's images, at least 5 of equally many; blocks_a[i]
    and blocks_b[i] must come from the same seeds. level: confidence, in (0, 1). replicates: at least 20. seed: of the
    resamples. Costs the eigenvalues of two D x D matrices a replicate, which at D = 2,048 is minutes for 200 on one
    core; works on the reference's device and holds the blocks twice.
    Raises ValueError for arguments that break these rules, and as `frechet_distance`.
    """
    return bootstrap_mean_difference([blocks_a], [blocks_b], reference, replicates=replicates, level=level, seed=seed)


def bootstrap_mean_difference(
    sets_a: Sequence[Sequence[FeatureStatistics]],
    sets_b: Sequence[Sequence[FeatureStatistics]],
    reference: FeatureStatistics | ReferenceFactor,
    *,
    replicates: int = 200,
    level: float = 0.95,
    seed: int = 0,
) -> Difference:
    """As `bootstrap_difference`, for the mean over S disjoint sets of the differences at the images of one set.

    sets_a, sets_b: blocks of each set, as many of both models. Each set is resampled by itself and the resamples are
    averaged, so that value and interval are about the mean that is told of the sets, and not about the distance of
    all images together, whose bias is a smaller one.
    """
    if len(sets_a) != len(sets_b) or not sets_a:
        raise ValueError(f"both sides must have the same sets, at least 1, got {len(sets_a)} and {len(sets_b)}")
    if len({len(blocks) for blocks in sets_a}) != 1:
        raise ValueError(f"all sets must have as many blocks, got {[len(blocks) for blocks in sets_a]}")
    if replicates < 20:
        raise ValueError(f"replicates must be at least 20, got {replicates}")
    if not 0 < level < 1:
        raise ValueError(f"level must lie in (0, 1), got {level}")
    factor = reference if isinstance(reference, ReferenceFactor) else frechet_reference(reference)
    random = np.random.default_rng(seed)
    found = [_resampled_difference(a, b, factor, replicates, random) for a, b in zip(sets_a, sets_b, strict=True)]
    value = float(np.mean([one for one, _ in found]))
    resampled = np.mean([of_set for _, of_set in found], axis=0)
    total = len(sets_a[0])
    freedom = len(sets_a) * (total - 1)
    tail = (1 - level) / 2
    widening = (total / (total - 1)) ** 0.5 * scipy.special.stdtrit(freedom, tail) / scipy.special.ndtri(tail)
    low, high = value + widening * (np.quantile(resampled, [tail, 1 - tail]) - resampled.mean())
    return Difference(value=value, low=float(low), high=float(high), level=level, replicates=replicates)


def _resampled_difference(
    blocks_a: Sequence[FeatureStatistics],
    blocks_b: Sequence[FeatureStatistics],
    factor: ReferenceFactor,
    replicates: int,
    random: np.random.Generator,
) -> tuple[float, np.ndarray]:
    """The difference of one set, and of its resamples, float64 [replicates]."""
    if len(blocks_a) != len(blocks_b) or len(blocks_a) < 5:
        raise ValueError(f"both sides must have the same blocks, at least 5, got {len(blocks_a)} and {len(blocks_b)}")
    counts = [[block.count for block in blocks] for blocks in (blocks_a, blocks_b)]
    if len({count for side in counts for count in side}) != 1:
        raise ValueError(f"all blocks must hold equally many images, got {counts[0]} and {counts[1]}")
    value = frechet_distance(_joined(blocks_a), factor) - frechet_distance(_joined(blocks_b), factor)
    total = len(blocks_a)
    drawn = random.integers(0, total, size=(replicates, total))
    # How often each block is in each resample, [replicates, K].
    weights = torch.from_numpy((drawn[:, :, None] == np.arange(total)).sum(axis=1).astype(np.float64))
    return value, _resampled_distances(blocks_a, weights, factor) - _resampled_distances(blocks_b, weights, factor)


def _joined(blocks: Sequence[FeatureStatistics]) -> FeatureStatistics:
    total = blocks[0]
    for block in blocks[1:]:
        total = total + block
    return total


def _resampled_distances(blocks: Sequence[FeatureStatistics], weights: Tensor, factor: ReferenceFactor) -> np.ndarray:
    """The Fréchet distance of each resample, float64 [replicates].

    With R the reference's root, R S R is as linear in the sums as S is, so the two products with R are made once a
    block and not once a resample.
    """
    device, dim = factor.root.device, blocks[0].dim
    sums = torch.stack([block.sum for block in blocks]).to(device)
    turned = torch.stack([factor.root @ block.outer.to(device) @ factor.root for block in blocks])
    squares = torch.stack([block.outer.trace() for block in blocks]).to(device)
    distances = []
    for chunk in weights.to(device).split(max(1, BATCH_ELEMENTS // dim**2)):
        number = chunk.sum(dim=1) * blocks[0].count
        mean = chunk @ sums / number[:, None]
        turned_mean = mean @ factor.root
        product = (chunk @ turned.flatten(1)).reshape(-1, dim, dim)
        product -= number[:, None, None] * turned_mean[:, :, None] * turned_mean[:, None, :]
        product /= (number - 1)[:, None, None]
        roots = torch.linalg.eigvalsh((product + product.mT) / 2).clamp(min=0).sqrt()
        # A block drawn twice adds no dimension: the rank is that of the distinct images (see frechet.py).
        rank = (chunk > 0).sum(dim=1) * blocks[0].count - 1
        if factor.count is not None:
            rank = rank.clamp(max=factor.count - 1)
        kept = torch.arange(dim, 0, -1, device=device) <= rank[:, None]
        spread = (chunk @ squares - number * mean.square().sum(dim=1)) / (number - 1)
        shared = (roots * kept).sum(dim=1)
        distances.append((mean - factor.mean).square().sum(dim=1) + spread + factor.spread - 2 * shared)
    return torch.cat(distances).cpu().numpy()


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedSets:
    """Disjoint sets of image seeds for repeated measurements of one model.

    first_seed: at least 0. num_samples: seeds in each set, at least 2 (50,000 in the paper). num_sets: at least 1
    (3 in the paper).
    """

    first_seed: int = 0
    num_samples: int = 50_000
    num_sets: int = 3

    def __post_init__(self) -> None:
        for name, least in (("first_seed", 0), ("num_samples", 2), ("num_sets", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")

    @property
    def ranges(self) -> tuple[range, ...]:
        """The seeds of each set."""
        starts = [self.first_seed + number * self.num_samples for number in range(self.num_sets)]
        return tuple(range(start, start + self.num_samples) for start in starts)


@dataclass(frozen=True, slots=True, kw_only=True)
class SetSummary:
    """A number measured on several sets.

    values: of each set. mean: over the sets, which the paper reports. std: sample standard deviation (division by
    their number - 1), None for one set. lowest: the smallest, which EDM reports; it is no estimate of anything.
    """

    values: tuple[float, ...]
    mean: float
    std: float | None
    lowest: float

    @property
    def standard_error(self) -> float | None:
        """Of the mean; None for one set."""
        return None if self.std is None else self.std / len(self.values) ** 0.5


def summarize_sets(values: Sequence[float]) -> SetSummary:
    """Mean, deviation and minimum over disjoint sets. values: finite, at least 1. Raises ValueError for others."""
    numbers = tuple(float(value) for value in values)
    if not numbers or not all(math.isfinite(number) for number in numbers):
        raise ValueError(f"values must be at least one finite number, got {list(numbers)}")
    std = float(np.std(numbers, ddof=1)) if len(numbers) > 1 else None
    return SetSummary(values=numbers, mean=float(np.mean(numbers)), std=std, lowest=min(numbers))
