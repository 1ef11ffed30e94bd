"""How sure a clustering is of an image, and sampling that keeps only images it is sure of.

The confidence is that of `clustering_head.py`. Keeping only confident images is the paper's future work.

Shapes: B images at once, n seeds, S image side, D features, C clusters.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from cedm_ray.data.image_set import open_image_set
from cedm_ray.features.extractors import Extractor, open_extractor
from cedm_ray.features.store import open_features
from cedm_ray.search.clustering_head import ClusteringHead, check_extractor, open_head
from cedm_ray.search.evaluate import features_of
from cedm_ray.search.space import SearchSpace
from cedm_ray.search.study import Study

_BATCHES_AHEAD = 4
_TILE_ROWS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadConfidence:
    """A fitted TEMI head behind its extractor, both on one device."""

    extractor: Extractor
    head: ClusteringHead

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """The probability of every cluster for images uint8 [B, 3, S, S], float32 [B, C]."""
        return self.of_features(features_of(self.extractor, images))

    def of_features(self, features: torch.Tensor) -> np.ndarray:
        """As `probabilities`, of features float32 [B, D] that the extractor has made already."""
        return (self.head(features) / self.head.temperature).softmax(dim=-1).cpu().numpy()

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """The confidence of images uint8 [B, 3, S, S], float32 [B] in [1 / C, 1]."""
        return self.probabilities(images).max(axis=1)


def open_confidence(
    study: Study, space: SearchSpace, num_clusters: int | None, device: str, *, fit: str | None = None
) -> HeadConfidence:
    """The head of the clustering that trials of C = `num_clusters` are conditioned on, or of the fit of that name,
    behind the study's extractor.

    Raises ConfigurationError as `open_head`, IntegrityError where the extractor is not the one that the clustering was
    fitted on.
    """
    head = open_head(study, num_clusters, device, fit=fit)
    changes = study.fits()[fit].task.changes if fit is not None else ()
    images, config = open_image_set(study.images), (space.changed(changes) if changes else space).features
    extractor = open_extractor(
        config.extractor,
        images,
        pixel_components=config.pixel_components,
        weights=config.weights,
        device=device,
    )
    check_extractor(head, images, extractor)
    return HeadConfidence(extractor=extractor, head=head)


def training_confidence(study: Study, confidence: HeadConfidence) -> np.ndarray:
    """The confidence of every training image, from the stored features, float32 [N]: the scale to judge others by."""
    features = open_features(study.features(confidence.head.features_key))
    tiles = (features[start : start + _TILE_ROWS] for start in range(0, len(features), _TILE_ROWS))
    rows = (torch.from_numpy(np.array(tile, dtype=np.float32)).to(confidence.extractor.device) for tile in tiles)
    return np.concatenate([confidence.of_features(tile).max(axis=1) for tile in rows])


# Rejection ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What rejection made of the next seeds, in their order. positions: of the seeds that have an image, int64 [b].
    images: uint8 [b, 3, S, S]. confidence: float32 [b]. seeds: how many seeds were decided. drawn: images generated
    since the last of these."""

    positions: np.ndarray
    images: np.ndarray
    confidence: np.ndarray
    seeds: int
    drawn: int


def candidate_seed(seed: int, attempt: int) -> int:
    """The seed of a seed's candidate: itself at first (attempt 0), then others in [0, 2^32) that follow from both."""
    if attempt == 0:
        return seed
    return int(np.random.SeedSequence(seed, spawn_key=(attempt,)).generate_state(1, np.uint32)[0])


def confident_images(
    seeds: Sequence[int],
    generate: Callable[[list[int], list[int]], np.ndarray],
    confidence: Callable[[np.ndarray], np.ndarray],
    *,
    minimum: float,
    max_tries: int,
    batch_size: int,
) -> Iterator[Kept]:
    """For each of n seeds the first of its candidates whose confidence is at least `minimum`.

    generate: (candidates' seeds, positions in `seeds`) to images uint8 [B, 3, S, S]; the positions are there so that
    the condition stays that of the seed, or confident clusters would be drawn more often. max_tries: candidates of a
    seed at the most; a seed without a confident one has no image. Whatever the batch, an image is a function of its
    seed, but for a confidence that equals `minimum` to the rounding of the network. Full batches are generated as
    long as there are seeds, and only a few batches of images are held.

    Raises ValueError for a minimum outside (0, 1], or max_tries below 1.
    """
    if not 0 < minimum <= 1:
        raise ValueError(f"minimum must lie in (0, 1], got {minimum}")
    if max_tries < 1:
        raise ValueError(f"max_tries must be at least 1, got {max_tries}")
    again: deque[tuple[int, int]] = deque()
    decided: dict[int, tuple[np.ndarray, float] | None] = {}
    begun = told = 0
    while told < len(seeds):
        batch = [again.popleft() for _ in range(min(batch_size, len(again)))]
        fresh = min(batch_size - len(batch), len(seeds) - begun, told + _BATCHES_AHEAD * batch_size - begun)
        batch += [(position, 0) for position in range(begun, begun + max(0, fresh))]
        begun += max(0, fresh)
        candidates = [candidate_seed(int(seeds[position]), attempt) for position, attempt in batch]
        images = generate(candidates, [position for position, _ in batch])
        for (position, attempt), image, value in zip(batch, images, confidence(images), strict=True):
            if value >= minimum:
                decided[position] = (image.copy(), float(value))
            elif attempt + 1 < max_tries:
                again.append((position, attempt + 1))
            else:
                decided[position] = None
        first = told
        while told in decided:
            told += 1
        kept = [(position, *found) for position in range(first, told) if (found := decided.pop(position)) is not None]
        yield Kept(
            positions=np.array([position for position, _, _ in kept], dtype=np.int64),
            images=np.stack([image for _, image, _ in kept]) if kept else images[:0],
            confidence=np.array([value for _, _, value in kept], dtype=np.float32),
            seeds=told - first,
            drawn=len(batch),
        )
