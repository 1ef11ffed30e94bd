"""Pictures of images in rows and columns with names on them: the same noise under several conditions.

R rows, K columns, S image side.
"""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cedm_ray.report.figures import INK, PAPER, printable

_TEXT_PX, _LINE_PX, _PAD_PX = 13, 17, 8
_GAP_PX, _WIDE_GAP_PX = 3, 16


def labelled_grid(
    images: np.ndarray,
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    groups: Sequence[tuple[str, int]] = (),
    bands: Sequence[int] = (),
    min_tile_px: int = 48,
) -> Image.Image:
    """Images with a name before every row and above every column; small ones enlarged without smoothing.

    images: uint8 [R, K, 3, S, S]. rows, columns: R and K names, which may have several lines. groups: (name, number of
    columns) of neighboring columns, wide gaps between them; they make K columns together. bands: numbers of
    neighboring rows, likewise. min_tile_px: S is multiplied by the smallest whole number that makes a tile at least
    this wide. Returns an RGB image on white. Raises ValueError for shapes that do not fit.
    """
    if images.dtype != np.uint8 or images.ndim != 5 or images.shape[2] != 3 or 0 in images.shape:
        raise ValueError(f"images must be uint8 [R, K, 3, S, S], got {images.dtype} {list(images.shape)}")
    num_rows, num_columns, _, _, side = images.shape
    for name, names, count in (("rows", rows, num_rows), ("columns", columns, num_columns)):
        if len(names) != count:
            raise ValueError(f"{name} must be {count} names, got {len(names)}")
    for name, total, count in (("groups", sum(n for _, n in groups), num_columns), ("bands", sum(bands), num_rows)):
        if total not in (0, count):
            raise ValueError(f"{name} must have {count} together, got {total}")
    rows, columns = ([_shown(name) for name in names] for names in (rows, columns))
    groups = [(_shown(name), count) for name, count in groups]
    scale = math.ceil(min_tile_px / side)
    tile = side * scale
    # A column is as wide as its name, and a group as its heading.
    pitch = max(tile, *(_width(name) + _PAD_PX for name in columns))
    for name, count in groups:
        pitch = max(pitch, math.ceil((_width(name) + _PAD_PX) / count) - _GAP_PX)
    row_height = max(tile, *(_lines(name) * _LINE_PX for name in rows))
    lefts = _places(max(map(_width, rows)) + 2 * _PAD_PX, pitch, num_columns, [count for _, count in groups])
    heading = max(map(_lines, columns)) * _LINE_PX if any(columns) else 0
    top = _PAD_PX + (max(_lines(name) for name, _ in groups) * _LINE_PX + 4 if groups else 0) + heading
    tops = _places(top + 4, row_height, num_rows, bands)
    canvas = Image.new("RGB", (lefts[-1] + pitch + _PAD_PX, tops[-1] + row_height + _PAD_PX), PAPER)
    draw = ImageDraw.Draw(canvas)
    start = 0
    for name, count in groups:
        middle = (lefts[start] + lefts[start + count - 1] + pitch) / 2
        _write(draw, (middle, _PAD_PX + _lines(name) * _LINE_PX / 2), name, "mm")
        start += count
    for name, left in zip(columns, lefts, strict=True):
        _write(draw, (left + pitch / 2, top - heading / 2), name, "mm")
    tiles = images.transpose(0, 1, 3, 4, 2).repeat(scale, axis=2).repeat(scale, axis=3)
    for name, down, row in zip(rows, tops, tiles, strict=True):
        _write(draw, (lefts[0] - _PAD_PX, down + row_height / 2), name, "rm")
        for left, image in zip(lefts, row, strict=True):
            canvas.paste(Image.fromarray(image), (left + (pitch - tile) // 2, down + (row_height - tile) // 2))
    return canvas


def _places(start: int, size: int, count: int, groups: Sequence[int]) -> list[int]:
    """Where `count` tiles begin that are `size` wide, with a wide gap after each group of them."""
    ends = set(np.cumsum(groups).tolist())
    places, at = [], start
    for index in range(count):
        if index:
            at += size + (_WIDE_GAP_PX if index in ends else _GAP_PX)
        places.append(at)
    return places


def _shown(name: str) -> str:
    return "\n".join(printable(line) for line in name.split("\n"))


def _font() -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(_TEXT_PX)


def _width(name: str) -> int:
    return math.ceil(max(_font().getlength(line) for line in name.split("\n")))


def _lines(name: str) -> int:
    return name.count("\n") + 1


def _write(draw: ImageDraw.ImageDraw, at: tuple[float, float], name: str, anchor: str) -> None:
    align = "right" if anchor == "rm" else "center"
    draw.multiline_text(at, name, fill=INK, font=_font(), anchor=anchor, align=align, spacing=_LINE_PX - _TEXT_PX)
