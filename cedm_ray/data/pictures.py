"""Images side by side as one picture, and a picture as a file. n images, S image side."""

import io
import math

import numpy as np
from PIL import Image


def sample_grid(images: np.ndarray, columns: int, min_tile_px: int = 32) -> Image.Image:
    """Images side by side, row by row, small ones enlarged without smoothing.

    images: uint8 [n, 3, S, S], n at least 1. columns: images in a row, at least 1; fewer images make a narrower grid.
    min_tile_px: S is multiplied by the smallest whole number that makes a tile at least this wide.
    Returns an RGBA image; the gaps are transparent. Raises ValueError for another type or shape.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or len(images) < 1 or images.shape[1] != 3:
        raise ValueError(f"images must be uint8 [n, 3, S, S] with n at least 1, got {images.dtype} {images.shape}")
    if columns < 1:
        raise ValueError(f"columns must be at least 1, got {columns}")
    scale = max(1, math.ceil(min_tile_px / images.shape[3]))
    tiles = images.transpose(0, 2, 3, 1).repeat(scale, axis=1).repeat(scale, axis=2)
    count, height, width, _ = tiles.shape
    columns, gap = min(columns, count), 2
    rows = math.ceil(count / columns)
    canvas = np.zeros((rows * (height + gap) - gap, columns * (width + gap) - gap, 4), dtype=np.uint8)
    for index, tile in enumerate(tiles):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        canvas[top : top + height, left : left + width, :3] = tile
        canvas[top : top + height, left : left + width, 3] = 255
    return Image.fromarray(canvas)


def png(image: Image.Image) -> bytes:
    """The image as a PNG file, without a date or any other metadata."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
