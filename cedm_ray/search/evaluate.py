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
from cedm_ray.errors import InputDataError
from cedm_ray.features.extractors import Extractor
from cedm_ray.metrics.frechet import (
    ReferenceFactor,
    collapsed,
    frechet_distance,
    frechet_distance_low_rank,
    frechet_reference,
)
from cedm_ray.metrics.statistics import FeatureStatistics


class EvaluationConfig(Config):
    """What is measured at every rung, and of a finished model.

    detector: network whose features are compared; grammar as features.extractor. The distance is called FID only with
    `inception` and FDD only with `dinov2`. weights: a file with the detector's weights; None = the published ones,
    downloaded once. num_samples: images generated at each rung, the same number for all trials (10,000 is the usual
    proxy, 50,000 the published count). num_steps: noise levels of the sampler at rungs, where models are only compared
    with each other; None = sampling.num_steps. first_seed: their seeds are first_seed and on, the same at all rungs for
    all trials, so that two trials differ by their models and not by their noise. final_samples: images of each set that
    `cedm-ray evaluate` measures a model with, by sampling.num_steps.
    """

    detector: str = "inception"
    weights: Path | None = None
    num_samples: int = Field(default=10_000, ge=2)
    num_steps: int | None = Field(default=None, ge=2)
    first_seed: int = Field(default=0, ge=0)
    final_samples: int = Field(default=50_000, ge=2)

    @property
    def seeds(self) -> range:
        return range(self.first_seed, self.first_seed + self.num_samples)


CPU_IMAGES = 64
"""Images that a network sees at once on a CPU. Of 32 pixels and more, more of them fall out of its cache: a ResNet-56
was seen to take up to a third longer for 256."""


def features_of(extractor: Extractor, pixels: np.ndarray | torch.Tensor) -> torch.Tensor:
    """Features of uint8 images [B, 3, S, S], float32 [B, D] on the extractor's device, where a model's images are too.

    Raises InputDataError for features that are not finite. Convolutions are faster with the channels last, on tensor
    cores and (measured, by 1.2 to 1.5) on a CPU.
    """
    # A copy, because torch does not take the read-only memory of an image set.
    images = pixels if isinstance(pixels, torch.Tensor) else torch.from_numpy(np.array(pixels))
    images = images.to(extractor.device).contiguous(memory_format=torch.channels_last)
    if images.device.type != "cpu" or len(images) <= CPU_IMAGES:
        features = extractor(images)
    else:
        features = torch.cat([extractor(part) for part in images.split(CPU_IMAGES)])
    if not torch.isfinite(features).all():
        mend = "its weights, or numbers too large for its precision, are the usual cause"
        raise InputDataError(f"{extractor.name} makes features of images that are not finite", mend=mend)
    return features


def image_statistics(batches: Iterable[np.ndarray | torch.Tensor], extractor: Extractor) -> FeatureStatistics:
    """Statistics of the features of uint8 batches [B, 3, S, S], added up as they come; no image is kept."""
    features = (features_of(extractor, batch) for batch in batches)
    return FeatureStatistics.over(features, extractor.dim, extractor.device)


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


def distance_to(reference: FeatureStatistics | ReferenceFactor, generated: FeatureStatistics) -> tuple[float, bool]:
    """(Fréchet distance, whether the generated images are all alike). Raises ValueError for features that do not fit.

    Give the reference as a factor where it is used more than once. Computed on the CPU, where the eigenvalues of a
    2048 x 2048 matrix take a second and are the same on every cluster.
    """
    generated = FeatureStatistics.from_arrays(generated.to_arrays())
    factor = reference if isinstance(reference, ReferenceFactor) else frechet_reference(reference)
    return frechet_distance(generated, factor), collapsed(generated, factor)


def low_rank_distance(
    batches: Iterable[np.ndarray | torch.Tensor], extractor: Extractor, reference: ReferenceFactor
) -> tuple[float, bool]:
    """As `distance_to` of the images' statistics, for fewer images n than features D: then the features themselves are
    smaller than their sums, [n, D] against [D, D], and the distance is found without an eigenvalue of a D x D matrix.

    Raises ValueError as `frechet_distance_low_rank`.
    """
    features = torch.cat([features_of(extractor, batch) for batch in batches]).cpu()
    return frechet_distance_low_rank(features, reference), collapsed(features, reference)


def own_share(seeds: Sequence[int]) -> Sequence[int]:
    """The seeds that this data-parallel worker generates; all of them where there is one process."""
    if not torch.distributed.is_initialized():
        return seeds
    return seeds[torch.distributed.get_rank() :: torch.distributed.get_world_size()]
