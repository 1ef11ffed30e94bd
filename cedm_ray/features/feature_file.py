"""Features that were computed elsewhere: a .npy file with a row for each image of the set, in its order.

Shapes: N images, D feature width.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from cedm_ray.config import digest
from cedm_ray.data.image_set import ImageSet
from cedm_ray.durable import BROKEN_ARRAY, sha256_file
from cedm_ray.errors import ConfigurationError, InputDataError

_MEND = "give a .npy file with one row of real numbers for each image, in the order of `index.parquet` of the image set"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FeatureFile:
    """The features of one image set, which stand where an extractor stands. rows: real [N, D], a read-only memory map.

    Calling it raises ConfigurationError: it cannot say anything of other images, and so it is no detector.
    """

    name: str
    key: str
    rows: np.ndarray
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    weight_bytes: int = 0

    @property
    def dim(self) -> int:
        return self.rows.shape[1]

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        raise ConfigurationError(
            f"{self.name} holds features of the training images and cannot compute those of others",
            mend="name a network where images are generated: evaluation.detector",
        )


def open_feature_file(path: Path, name: str, images: ImageSet) -> FeatureFile:
    """The features in `path`. Raises InputDataError where it is no such file or has another number of rows."""
    try:
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
    except BROKEN_ARRAY as error:
        raise InputDataError(f"cannot read {path}: {error}", mend=_MEND) from None
    if rows.ndim != 2 or rows.shape[0] != len(images) or rows.shape[1] < 1:
        raise InputDataError(f"{path} holds {list(rows.shape)} for {len(images):,} images, not [N, D]", mend=_MEND)
    if not np.issubdtype(rows.dtype, np.floating):
        raise InputDataError(f"{path} holds {rows.dtype}, not floating-point numbers", mend=_MEND)
    return FeatureFile(name=name, key=digest({"kind": "file", "sha256": sha256_file(path)}), rows=rows)
