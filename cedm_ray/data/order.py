"""The endless seeded order in which training visits the images, addressed by images seen.

Position p of the order belongs to epoch p // N, and the permutation of an epoch is a pure function of (seed, epoch).
Nothing is remembered between calls: a run that resumes at `images_seen`, with any batch size and on any number of
processes, reads the images that an uninterrupted run would have read.

Shapes: N images, B rows asked for at once.
Source: architecture.md, house rule 5. Within an epoch every image comes exactly once, which a windowed shuffle
(method.md 3.4) does not promise.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingOrder:
    """The order of `num_images` images under `seed`.

    num_images: N, at least 1.
    seed: any integer >= 0.
    """

    num_images: int
    seed: int

    def __post_init__(self) -> None:
        if self.num_images < 1:
            raise ValueError(f"num_images must be at least 1, got {self.num_images}")
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed}")

    def rows(self, images_seen: int, count: int) -> np.ndarray:
        """Rows at positions images_seen .. images_seen + count - 1, int64 [count]; count may exceed N.

        Raises ValueError for a negative images_seen or count.
        """
        if images_seen < 0:
            raise ValueError(f"images_seen must be at least 0, got {images_seen}")
        if count < 0:
            raise ValueError(f"count must be at least 0, got {count}")
        rows = np.empty(count, dtype=np.int64)
        filled = 0
        while filled < count:
            epoch, start = divmod(images_seen + filled, self.num_images)
            piece = _permutation(self.num_images, self.seed, epoch)[start : start + count - filled]
            rows[filled : filled + len(piece)] = piece
            filled += len(piece)
        return rows


# Consecutive batches share an epoch, or two at its border; more permutations than that are not worth their memory.
@lru_cache(maxsize=4)
def _permutation(num_images: int, seed: int, epoch: int) -> np.ndarray:
    """The visiting order of one epoch, int64 [N], read-only because the cache shares it."""
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch])))
    permutation = generator.permutation(num_images)
    permutation.flags.writeable = False
    return permutation
