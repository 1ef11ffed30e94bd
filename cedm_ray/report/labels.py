"""Names beside points, such that no two overlap.

A figure with forty lines needs no legend when each line is named where it ends, in its own color.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from matplotlib.axes import Axes
from scipy.optimize import isotonic_regression

T = TypeVar("T")


class LineEnd(NamedTuple):
    """Where a line ends, and its name there. keep: shown before others. left: the name stands to the left."""

    x: float
    y: float
    name: str
    color: str | tuple[float, ...]
    bold: bool
    keep: bool
    left: bool


def name_ends(axes: Axes, ends: Sequence[LineEnd], size_pt: float) -> None:
    """Name each line where it ends, in letters of `size_pt` points; names that crowd move apart.

    Where a column of names is full, those to keep and the lowest ends keep theirs. The limits of the axes must be set.
    """
    gap = size_pt * 1.25 / (72 * axes.figure.get_figheight() * axes.get_position().height)
    to_axes = axes.transData + axes.transAxes.inverted()
    line = {"arrowstyle": "-", "alpha": 0.5, "linewidth": 0.7, "shrinkA": 0, "shrinkB": 5}
    paper = {"boxstyle": "square,pad=0.1", "facecolor": "white", "alpha": 0.75, "linewidth": 0}
    for place in sorted({(end.x, end.left) for end in ends}):
        column = sorted((end for end in ends if (end.x, end.left) == place), key=lambda end: (not end.keep, end.y))
        column = sorted(column[: int(1 / gap)], key=lambda end: end.y)
        points = to_axes.transform([(end.x, end.y) for end in column])
        # The heights nearest to the ends (in least squares) that keep a line's distance: an isotonic regression.
        offsets = gap * np.arange(len(column))
        heights = np.clip(isotonic_regression(points[:, 1] - offsets).x, 0, 1 - offsets[-1]) + offsets
        for end, across, height in zip(column, points[:, 0], heights, strict=True):
            axes.annotate(
                end.name,
                (end.x, end.y),
                xytext=(across + (-0.017 if end.left else 0.017), height),
                textcoords="axes fraction",
                ha="right" if end.left else "left",
                va="center",
                fontsize=size_pt,
                fontweight="bold" if end.bold else "normal",
                color=end.color,
                annotation_clip=False,
                zorder=6,
                arrowprops=line | {"color": end.color},
                bbox=paper,
            )


def spaced(items: Iterable[T], places: Iterable[tuple[float, ...]], room: tuple[float, ...]) -> list[T]:
    """Those items, the earlier ones first, whose place is not within `room`, in all coordinates, of one kept before."""
    kept: list[tuple[T, tuple[float, ...]]] = []
    for item, place in zip(items, places, strict=True):
        if all(any(abs(a - b) >= r for a, b, r in zip(place, other, room, strict=True)) for _, other in kept):
            kept.append((item, place))
    return [item for item, _ in kept]
