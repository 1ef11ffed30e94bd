"""Exact cosine nearest neighbors of every image, in tiles, so that no N x N matrix is ever held.

Shapes: N images, D feature width, m neighbors. The paper's pairs (section 3.2) are drawn from this table.
"""

import math

import numpy as np
import torch


def nearest_neighbors(
    features: np.ndarray,
    num_neighbors: int,
    *,
    device: str | torch.device = "cpu",
    tile: int = 4096,
) -> np.ndarray:
    """The `num_neighbors` images most similar to each image by cosine, most similar first, int32 [N, m].

    features: real [N, D], an array or a memory map, read in blocks. num_neighbors: m, in [1, N - 1].
    device: where the products are computed, in float32. tile: images a side of the block of similarities, which is
    held twice, `8 tile^2` bytes; the device also holds one float32 copy of the features and the best so far,
    `4 N D + 12 N m` bytes.

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
    if tile < 1:
        raise ValueError(f"tile must be at least 1, got {tile}")
    unit = _unit_rows(features, torch.device(device), block_rows=tile)
    block, turned = torch.empty(2, min(tile, num_images) ** 2, device=device)
    best = _Best(num_images, num_neighbors, unit.device)
    blocks = [slice(start, min(start + tile, num_images)) for start in range(0, num_images, tile)]
    with torch.no_grad():
        for number, rows in enumerate(blocks):
            for columns in blocks[number:]:
                similarity = torch.mm(unit[rows], unit[columns].T, out=_shaped(block, rows, columns))
                if columns == rows:
                    similarity.fill_diagonal_(-torch.inf)
                else:
                    # The block below the diagonal is this one transposed, which halves the products.
                    best.merge(columns, _shaped(turned, columns, rows).copy_(similarity.T), rows.start)
                best.merge(rows, similarity, columns.start)
        return np.concatenate([best.ordered(rows).cpu().numpy() for rows in blocks])


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


class _Best:
    """The most similar images of every image so far."""

    def __init__(self, num_images: int, num_neighbors: int, device: torch.device) -> None:
        self.similarity = torch.full((num_images, num_neighbors), -torch.inf, device=device)
        self.index = torch.zeros((num_images, num_neighbors), dtype=torch.int64, device=device)

    def merge(self, rows: slice, similarity: torch.Tensor, first: int) -> None:
        """Take in the similarities of the images `rows` to those from `first` on."""
        num_neighbors = self.similarity.shape[1]
        column = _candidates(similarity, min(num_neighbors, similarity.shape[1]))
        found = torch.cat([self.similarity[rows], similarity.gather(1, column)], dim=1)
        index = torch.cat([self.index[rows], column.add_(first)], dim=1)
        self.similarity[rows], kept = found.topk(num_neighbors, dim=1, sorted=False)
        self.index[rows] = index.gather(1, kept)

    def ordered(self, rows: slice) -> torch.Tensor:
        """The neighbors of the images `rows`, int32, most similar first and equally similar ones by index."""
        index, by_index = self.index[rows].sort(dim=1)
        similarity = self.similarity[rows].gather(1, by_index)
        order = similarity.argsort(dim=1, descending=True, stable=True)
        return index.gather(1, order).to(torch.int32)


def _shaped(buffer: torch.Tensor, rows: slice, columns: slice) -> torch.Tensor:
    """The beginning of a buffer as a block. New memory for each block would be cleared by the system each time."""
    shape = rows.stop - rows.start, columns.stop - columns.start
    return buffer[: math.prod(shape)].view(shape)


def _candidates(values: torch.Tensor, count: int) -> torch.Tensor:
    """Columns of every row among which its `count` largest values are, int64 [n, a few times count].

    values: [n, k], count at most k. Columns are dealt to groups, and the `count` groups with the largest maxima hold
    what is wanted: maxima are found some ten times as fast as `topk` finds the largest.
    """
    rows, columns = values.shape
    size = max(1, math.isqrt(columns // count))
    groups = columns // size
    dealt = size * groups
    maxima = values[:, :dealt].unflatten(1, (size, groups)).amax(dim=1)
    group = maxima.topk(count, dim=1, sorted=False).indices
    members = group[:, None, :] + torch.arange(0, dealt, groups, device=values.device)[:, None]
    rest = torch.arange(dealt, columns, device=values.device).expand(rows, -1)
    return torch.cat([members.flatten(1), rest], dim=1)
