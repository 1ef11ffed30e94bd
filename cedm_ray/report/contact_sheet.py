"""The contact sheet of a source: some of its images, and the copies among them side by side.

R rows, T side of a tile.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from cedm_ray.data.inspection import SHOWN_OF_GROUP, TILE_SIDE, Inspection, Tile
from cedm_ray.report.grids import labelled_grid

NAME_LENGTH = 28


def contact_sheet(inspection: Inspection) -> Image.Image:
    """Images at even distances in the order of the source, then the largest groups of exact and of near copies.

    A row of copies has the number of images in its group and the name of the first one before it; a place without an
    image is white. Raises ValueError where there is no image to show.
    """
    if not inspection.samples:
        raise ValueError("inspection must have at least one image, got none")
    samples = inspection.samples
    starts = range(0, len(samples), SHOWN_OF_GROUP)
    rows = [(_short(samples[start].name), samples[start : start + SHOWN_OF_GROUP]) for start in starts]
    bands = [len(rows)]
    for what, groups, shown in (
        ("equal", inspection.exact, inspection.exact_shown),
        ("alike", inspection.near, inspection.near_shown),
    ):
        # A file may have gone since it was first read.
        pictured = [
            (f"{len(group):,} {what}\n{_short(group[0])}", tiles)
            for group, tiles in zip(groups, shown, strict=False)
            if tiles
        ]
        rows += pictured
        bands += [len(pictured)] if pictured else []
    return labelled_grid(
        np.stack([_row(tiles) for _, tiles in rows]),
        rows=[name for name, _ in rows],
        columns=[""] * SHOWN_OF_GROUP,
        bands=bands,
        min_tile_px=TILE_SIDE,
    )


def _row(tiles: Sequence[Tile]) -> np.ndarray:
    """uint8 [SHOWN_OF_GROUP, 3, T, T]"""
    row = np.full((SHOWN_OF_GROUP, 3, TILE_SIDE, TILE_SIDE), 255, np.uint8)
    for place, tile in zip(row, tiles, strict=False):
        place[:] = tile.pixels
    return row


def _short(name: str) -> str:
    return name if len(name) <= NAME_LENGTH else f"…{name[1 - NAME_LENGTH :]}"
