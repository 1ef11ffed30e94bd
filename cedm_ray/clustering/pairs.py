"""What one device holds for any number of TEMI fits, and the pairs that are drawn from it.

Shapes: N images, D feature width, m neighbors.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch

from cedm_ray.clustering.recipe import TemiConfig

_TILE_ROWS = 4096
_FIRST_ROWS_NAMED = 5


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TemiData:
    """Features and neighbors on one device; fits read them and change nothing, so any number may share them.

    rows: what the heads see, float32 [N, D]. partners: the m neighbors that an image's partners are drawn from, int32
    [N, m]. feature_norm: how the rows were made of the features. normalization: `feature_mean` and `feature_scale`
    [D], what a new row must be shifted and divided by, where that is "standardize"; else empty.
    """

    rows: torch.Tensor
    partners: torch.Tensor
    feature_norm: str
    normalization: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        return self.rows.device


def load_temi_data(
    features: np.ndarray, neighbors: np.ndarray, config: TemiConfig, *, device: str | torch.device = "cpu"
) -> TemiData:
    """Check features and neighbors and bring them to the device, as `config.feature_norm` and `num_neighbors` say.

    features: real [N, D]. neighbors: integer [N, at least m] from `nearest_neighbors`, of which the first
    `config.num_neighbors` are used. On a CPU, float32 features that cannot be written to (a read-only memory map, an
    array of Ray's object store) and are fed as they are serve without a copy, so that several processes share their
    memory.

    Raises ValueError for arguments that break these rules and for features that are not finite or all equal.
    """
    _check(features, neighbors, config.num_neighbors)
    device = torch.device(device)
    partners = torch.from_numpy(neighbors[:, : config.num_neighbors].astype(np.int32)).to(device)
    shared = device.type == "cpu" and features.dtype == np.float32 and not features.flags.writeable
    if config.feature_norm == "none" and shared and features.flags.c_contiguous:
        with warnings.catch_warnings():
            # torch has no read-only tensors and warns that writing to this one would be an error. Nothing does.
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            rows = torch.from_numpy(features)
        return TemiData(rows=rows, partners=partners, feature_norm=config.feature_norm)
    mean, scale = np.zeros(features.shape[1]), np.ones(features.shape[1])
    normalization = {}
    if config.feature_norm == "standardize":
        mean, scale = _mean_and_deviation(features)
        mean, scale = mean.astype(np.float32), scale.astype(np.float32)
        normalization = {"feature_mean": mean, "feature_scale": scale}
    rows = torch.empty(features.shape, device=device)
    for start, tile in _tiles(features):
        tile = np.array(tile, dtype=np.float32)
        if config.feature_norm == "standardize":
            tile = (tile - mean) / scale
        block = torch.from_numpy(tile).to(device)
        rows[start : start + len(tile)] = torch.nn.functional.normalize(block) if config.feature_norm == "l2" else block
    return TemiData(rows=rows, partners=partners, feature_norm=config.feature_norm, normalization=normalization)


def draw_pairs(partners: torch.Tensor, *, stream: int) -> torch.Tensor:
    """The pairs of an epoch, int64 [N, 2]: all images in a new order, each with one of its m neighbors [N, m].

    stream: the seed of this epoch's own random numbers, which depend on the kind of device too.
    """
    num_images, num_neighbors = partners.shape
    generator = torch.Generator(partners.device).manual_seed(stream)
    anchors = torch.randperm(num_images, generator=generator, device=partners.device)
    column = torch.randint(num_neighbors, (num_images,), generator=generator, device=partners.device)
    return torch.stack([anchors, partners[anchors, column].long()], dim=1)


def _mean_and_deviation(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each dimension, float64 [D]; the deviation is the unbiased one, and 1 where a dimension is constant."""
    num_images = len(features)
    mean = sum(tile.sum(axis=0, dtype=np.float64) for _, tile in _tiles(features)) / num_images
    squares = sum(np.square(tile - mean).sum(axis=0) for _, tile in _tiles(features))
    # Where a dimension is the same everywhere, it says nothing and becomes 0; rounding must not make noise of it.
    constant = np.logical_and.reduce([(tile == features[0]).all(axis=0) for _, tile in _tiles(features)])
    return mean, np.where(constant, 1.0, np.sqrt(squares / max(1, num_images - 1)))


def _check(features: np.ndarray, neighbors: np.ndarray, num_neighbors: int) -> None:
    if features.ndim != 2:
        raise ValueError(f"features must have shape [N, D], got {features.shape}")
    num_images = len(features)
    if neighbors.ndim != 2 or len(neighbors) != num_images or neighbors.shape[1] < num_neighbors:
        raise ValueError(f"neighbors must have shape [{num_images}, at least {num_neighbors}], got {neighbors.shape}")
    if neighbors.min() < 0 or neighbors.max() >= num_images:
        raise ValueError(f"neighbors must lie in [0, {num_images}), got {neighbors.min()} to {neighbors.max()}")
    finite = np.concatenate([np.isfinite(tile).all(axis=1) for _, tile in _tiles(features)])
    if not finite.all():
        bad = np.flatnonzero(~finite)
        raise ValueError(
            f"features must be finite, got NaN or infinity in {len(bad)} of {num_images} rows,"
            f" first {bad[:_FIRST_ROWS_NAMED].tolist()}"
        )
    if all((tile == features[0]).all() for _, tile in _tiles(features)):
        raise ValueError(f"features must differ between images, got {num_images} equal rows, first {features[0][:5]}")


def _tiles(features: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    for start in range(0, len(features), _TILE_ROWS):
        yield start, features[start : start + _TILE_ROWS]
