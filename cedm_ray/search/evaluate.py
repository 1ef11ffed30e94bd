"""How good a model is: its images, through a detector, against the training images, without a file in between.

N training images, n generated images, D detector features.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from pydantic import Field

from cedm_ray.config import Config
from cedm_ray.data.image_set import ImageSet
from cedm_ray.features.extractors import Extractor
from cedm_ray.metrics.frechet import collapsed, frechet_distance, frechet_reference
from cedm_ray.metrics.statistics import FeatureStatistics


class EvaluationConfig(Config):
    """What is measured at every rung.

    detector: network whose features are compared; grammar as features.extractor. The distance is called FID only with
    `inception` and FDD only with `dinov2`. weights: a file with the detector's weights; None = the published ones,
    downloaded once. num_samples: images generated at each rung, the same number for all trials (10,000 is the usual
    proxy, 50,000 the published count). first_seed: their seeds are first_seed and on, the same at all rungs for all
    trials, so that two trials differ by their models and not by their noise.
    """

    detector: str = "inception"
    weights: Path | None = None
    num_samples: int = Field(default=10_000, ge=2)
    first_seed: int = Field(default=0, ge=0)

    @property
    def seeds(self) -> range:
        return range(self.first_seed, self.first_seed + self.num_samples)


def image_statistics(batches: Iterable[np.ndarray], extractor: Extractor) -> FeatureStatistics:
    """Statistics of the features of uint8 batches [B, 3, S, S], added up as they come; no image is kept."""
    total = FeatureStatistics.empty(extractor.dim, extractor.device)
    for batch in batches:
        # A copy, because torch does not take the read-only memory of an image set.
        features = extractor(torch.from_numpy(np.array(batch)).to(extractor.device))
        total = total + FeatureStatistics.of(features)
    return total


def training_batches(images: ImageSet, batch_size: int) -> Iterable[np.ndarray]:
    """The images of a set in row order, uint8 [B, 3, S, S]."""
    for start in range(0, len(images.pixels), batch_size):
        yield images.pixels[start : start + batch_size]


def merged_over_workers(statistics: FeatureStatistics) -> FeatureStatistics:
    """The sum of all data-parallel workers' statistics; of one process, its own."""
    if not torch.distributed.is_initialized():
        return statistics
    count = torch.tensor(statistics.count, dtype=torch.float64, device=statistics.sum.device)
    parts = [count, statistics.sum.clone(), statistics.outer.clone()]
    for part in parts:
        torch.distributed.all_reduce(part)
    return FeatureStatistics(count=int(parts[0].item()), sum=parts[1], outer=parts[2])


def distance_to(reference: FeatureStatistics, generated: FeatureStatistics) -> tuple[float, bool]:
    """(Fréchet distance, whether the generated images are all alike). Raises ValueError for features that do not fit.

    Computed on the CPU, where the eigenvalues of a 2048 x 2048 matrix take a second and are the same on every cluster.
    """
    generated = FeatureStatistics.from_arrays(generated.to_arrays())
    factor = frechet_reference(reference)
    return frechet_distance(generated, factor), collapsed(generated, factor)


def own_share(seeds: Sequence[int]) -> Sequence[int]:
    """The seeds that this data-parallel worker generates; all of them where there is one process."""
    if not torch.distributed.is_initialized():
        return seeds
    return seeds[torch.distributed.get_rank() :: torch.distributed.get_world_size()]
