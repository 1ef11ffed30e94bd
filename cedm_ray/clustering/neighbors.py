"""Exact cosine nearest neighbors of every image, in tiles, so that no N x N matrix is ever held.

Shapes: N images, D feature width, m neighbors. The paper's pairs (section 3.2) are drawn from this table.
"""

import numpy as np
import torch


def nearest_neighbors(
    features: np.ndarray,
    num_neighbors: int,
    *,
    device: str | torch.device = "cpu",
    tile_rows: int = 1024,
    tile_columns: int = 4096,
) -> np.ndarray:
    """The `num_neighbors` images most similar to each image by cosine, most similar first, int32 [N, m].

    features: real [N, D], an array or a memory map, read in blocks. num_neighbors: m, in [1, N - 1].
    device: where the products are computed, in float32. tile_rows, tile_columns: the block of similarities held at
    once; the device also holds one float32 copy of the features, `4 N D` bytes.

    An image is never its own neighbor, because its index is excluded and not its similarity: this holds with
    duplicates too. A row of zeros has similarity 0 to everything. Neighbors of equal similarity are listed by
    ascending index; which of several equally similar images takes the last place is left to `torch.topk`.
    Raises ValueError where m is out of range, the features are not [N, D], or a value is not finite.
    """
    if features.ndim != 2:
        raise ValueError(f"features must have shape [N, D], got {features.shape}")
    num_images = features.shape[0]
    if not 1 <= num_neighbors < num_images:
        raise ValueError(f"num_neighbors must lie in [1, N - 1] = [1, {num_images - 1}], got {num_neighbors}")
    if tile_rows < 1 or tile_columns < 1:
        raise ValueError(f"tile_rows and tile_columns must be at least 1, got {tile_rows} and {tile_columns}")
    unit = _unit_rows(features, torch.device(device), block_rows=tile_columns)
    neighbors = np.empty((num_images, num_neighbors), dtype=np.int32)
    with torch.no_grad():
        for start in range(0, num_images, tile_rows):
            stop = min(start + tile_rows, num_images)
            neighbors[start:stop] = _neighbors_of_rows(unit, start, stop, num_neighbors, tile_columns).cpu().numpy()
    return neighbors


def _unit_rows(features: np.ndarray, device: torch.device, block_rows: int) -> torch.Tensor:
    """Rows scaled to length 1, float32 [N, D]. Lengths are taken in float64, where no float32 square overflows."""
    unit = torch.empty(features.shape, dtype=torch.float32, device=device)
    for start in range(0, features.shape[0], block_rows):
        block = np.asarray(features[start : start + block_rows], dtype=np.float64)
        finite = np.isfinite(block).all(axis=1)
        if not finite.all():
            raise ValueError(f"features must be finite, got NaN or infinity in row {start + int(finite.argmin())}")
        length = np.linalg.norm(block, axis=1, keepdims=True)
        block = block / np.where(length > 0, length, 1.0)
        unit[start : start + block_rows] = torch.from_numpy(block.astype(np.float32))
    return unit


def _neighbors_of_rows(
    unit: torch.Tensor, start: int, stop: int, num_neighbors: int, tile_columns: int
) -> torch.Tensor:
    """Neighbors of the images `start` to `stop`: the best of each tile, merged into the best so far."""
    num_images = unit.shape[0]
    rows = unit[start:stop]
    best_similarity = unit.new_empty((stop - start, 0))
    best_index = torch.empty((stop - start, 0), dtype=torch.int64, device=unit.device)
    for left in range(0, num_images, tile_columns):
        right = min(left + tile_columns, num_images)
        similarity = rows @ unit[left:right].T
        similarity.diagonal(start - left).fill_(-torch.inf)
        tile_similarity, tile_index = similarity.topk(min(num_neighbors, right - left), dim=1, sorted=False)
        best_similarity = torch.cat([best_similarity, tile_similarity], dim=1)
        best_index = torch.cat([best_index, tile_index + left], dim=1)
        if best_similarity.shape[1] > num_neighbors:
            best_similarity, kept = best_similarity.topk(num_neighbors, dim=1, sorted=False)
            best_index = best_index.gather(1, kept)
    by_index = best_index.argsort(dim=1)
    order = best_similarity.gather(1, by_index).argsort(dim=1, descending=True, stable=True)
    return best_index.gather(1, by_index.gather(1, order))
