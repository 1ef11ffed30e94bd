"""Principal components of the image set's own pixels: features that need no network and no weights.

Shapes: N images, B batch, S image side, D feature width, P pixel values of one image (3 times side squared).
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from cedm_ray.config import digest
from cedm_ray.data.image_set import ImageSet
from cedm_ray.errors import InputDataError

# Larger images are averaged down to this side before the PCA, so that its covariance is at most 3072 x 3072.
_SIDE = 32
_TILE_ROWS = 1024
_SMALLEST_EIGENVALUE = 1e-8


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelExtractor:
    """Principal components of pixels in [-1, 1].

    size: S that it was fitted for. mean: float32 [P]. components: float32 [P, D], orthonormal columns by falling
    variance, each with its largest entry positive.
    """

    key: str
    size: int
    mean: torch.Tensor
    components: torch.Tensor
    name: str = "pixels"
    weight_bytes: int = 0

    @property
    def dim(self) -> int:
        return self.components.shape[1]

    @property
    def device(self) -> torch.device:
        return self.components.device

    @torch.inference_mode()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        if images.shape[1:] != (3, self.size, self.size):
            raise ValueError(f"images must be [B, 3, {self.size}, {self.size}], got {list(images.shape)}")
        return (_flatten_pixels(images, torch.float32) - self.mean) @ self.components


def fit_pixels(images: ImageSet, pixel_components: int = 256, device: str | torch.device = "cpu") -> PixelExtractor:
    """PCA by the covariance, summed in float64 over tiles of the memory map.

    pixel_components: the largest D; directions without variance are dropped. Raises InputDataError where all images
    are alike.
    """
    import scipy.linalg  # Here because it takes a third of a second to import, which most processes need not pay.

    if pixel_components < 1:
        raise ValueError(f"pixel_components must be at least 1, got {pixel_components}")
    total: torch.Tensor | float = 0.0
    outer: torch.Tensor | float = 0.0
    for start in range(0, len(images), _TILE_ROWS):
        # A copy: the memory map is read-only and torch knows no such tensors.
        tile = torch.from_numpy(np.array(images.pixels[start : start + _TILE_ROWS]))
        values = _flatten_pixels(tile, torch.float64)
        total = total + values.sum(0)
        outer = outer + values.T @ values
    mean = total / len(images)
    covariance = ((outer - len(images) * torch.outer(mean, mean)) / (len(images) - 1)).numpy()
    width = len(covariance)
    count = min(pixel_components, width, len(images) - 1)
    variances, components = scipy.linalg.eigh(covariance, subset_by_index=[width - count, width - 1])
    variances, components = variances[::-1], components[:, ::-1]
    # Rounding alone leaves less than this in the covariance of constant pixels, a single differing pixel leaves more.
    if variances[0] <= 1e-12:
        raise InputDataError(f"all {len(images):,} images are alike, so their pixels have no principal components")
    components = components[:, variances > _SMALLEST_EIGENVALUE * variances[0]]
    largest = components[np.abs(components).argmax(0), np.arange(components.shape[1])]
    return PixelExtractor(
        key=digest({"kind": "pixels", "components": pixel_components, "images": images.digest}),
        size=images.size,
        mean=mean.float().to(device),
        components=torch.from_numpy(np.ascontiguousarray(components * np.sign(largest))).float().to(device),
    )


def _flatten_pixels(images: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """uint8 [B, 3, S, S] -> [B, P] in [-1, 1]; sides above 32 are area-averaged to 32."""
    values = images.to(dtype)
    if images.shape[-1] > _SIDE:
        values = F.adaptive_avg_pool2d(values, _SIDE)
    return values.flatten(1) / 127.5 - 1
