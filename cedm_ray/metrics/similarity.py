"""Exact cosine search between two sets of features, in tiles, so that no n x N matrix is ever held.

n queries, N keys, D feature width, k neighbors of each query.

The measures built on it are the k-nearest-neighbor accuracy (agreement.py) and the distance of generated images from
the training images (novelty.py).
"""

import torch
from torch import Tensor

from cedm_ray.metrics.statistics import check_features


def most_similar(
    queries: Tensor,
    keys: Tensor,
    count: int = 1,
    *,
    own_rows: Tensor | None = None,
    tile_rows: int = 1024,
    tile_columns: int = 4096,
) -> tuple[Tensor, Tensor]:
    """The `count` keys of the highest cosine to each query: (cosines [n, k], their rows in `keys`, int64 [n, k]).

    Most similar first; both on the device of `keys`. queries [n, D], keys [N, D]: any floating type, finite. The
    products are computed in float64 where both are float64 and in float32 otherwise. A row of zeros has the cosine 0
    with everything; which of several equally similar keys takes a place is left to `torch.topk`.
    own_rows: int64 [n], a row of `keys` that a query must not find, which is how an image of the set is kept from
    finding itself (by its row, and not by its similarity, so that duplicates are still found); None = all may be found.
    tile_rows, tile_columns: the block of cosines held at once; one normalized copy of both sides is held too.
    Raises ValueError for features of the wrong shape or type or that are not finite, and for `count` out of range.
    """
    check_features(queries, "queries")
    check_features(keys, "keys")
    if queries.shape[1] != keys.shape[1]:
        raise ValueError(f"queries and keys must have the same width, got D = {queries.shape[1]} and {keys.shape[1]}")
    most = len(keys) - (own_rows is not None)
    if not 1 <= count <= most:
        raise ValueError(f"the number of neighbors must lie in [1, {most}], got {count}")
    if own_rows is not None and own_rows.shape != (len(queries),):
        raise ValueError(f"own_rows must have the shape [{len(queries)}], got {list(own_rows.shape)}")
    both = torch.promote_types(queries.dtype, keys.dtype)
    dtype = torch.float64 if both == torch.float64 else torch.float32
    with torch.no_grad():
        unit_keys = _unit_rows(keys, dtype)
        unit_queries = _unit_rows(queries.to(keys.device), dtype)
        own = None if own_rows is None else own_rows.to(keys.device)
        found = [
            _best_of_tiles(
                unit_queries[start : start + tile_rows],
                unit_keys,
                count,
                None if own is None else own[start : start + tile_rows],
                tile_columns,
            )
            for start in range(0, len(queries), tile_rows)
        ]
    return torch.cat([cosines for cosines, _ in found]), torch.cat([rows for _, rows in found])


def _unit_rows(features: Tensor, dtype: torch.dtype, block_rows: int = 8192) -> Tensor:
    """Rows scaled to length 1; lengths are taken in float64, where no square of a float32 overflows or vanishes."""
    unit = torch.empty(features.shape, dtype=dtype, device=features.device)
    for start in range(0, len(features), block_rows):
        block = features[start : start + block_rows].to(torch.float64)
        length = torch.linalg.vector_norm(block, dim=1, keepdim=True)
        unit[start : start + block_rows] = block / torch.where(length > 0, length, 1.0)
    return unit


def _best_of_tiles(
    queries: Tensor, keys: Tensor, count: int, own: Tensor | None, tile_columns: int
) -> tuple[Tensor, Tensor]:
    """The best of each tile, merged into the best so far."""
    best = queries.new_empty((len(queries), 0))
    rows = torch.empty((len(queries), 0), dtype=torch.int64, device=queries.device)
    for left in range(0, len(keys), tile_columns):
        cosines = queries @ keys[left : left + tile_columns].T
        if own is not None:
            inside = (own >= left) & (own < left + cosines.shape[1])
            cosines[inside.nonzero()[:, 0], own[inside] - left] = -torch.inf
        of_tile, columns = cosines.topk(min(count, cosines.shape[1]), dim=1)
        best, rows = torch.cat([best, of_tile], dim=1), torch.cat([rows, columns + left], dim=1)
        if best.shape[1] > count:
            best, kept = best.topk(count, dim=1)
            rows = rows.gather(1, kept)
    return best, rows
