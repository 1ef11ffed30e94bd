"""Names at line ends neither overlap nor leave the axes."""

from itertools import pairwise

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from cedm_ray.report.labels import LineEnd, name_ends, spaced


def end(y, name="C = 2", keep=False, left=False):
    return LineEnd(x=1.0, y=y, name=name, color="blue", bold=False, keep=keep, left=left)


def drawn(ends):
    """The names as drawn, bottom up, each with its box in pixels, and the box of the axes."""
    figure = Figure(figsize=(6, 3))
    axes = figure.add_axes((0.1, 0.1, 0.7, 0.8))
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 10)
    name_ends(axes, ends, 9)
    FigureCanvasAgg(figure).draw()
    # The text's own box: an annotation's holds the leader line as well.
    boxes = [(text.get_text(), Text.get_window_extent(text)) for text in axes.texts]
    return sorted(boxes, key=lambda named: named[1].y0), axes.bbox


@pytest.mark.parametrize("heights", [[5.0] * 10, [0.0] * 10, [10.0] * 10, [0, 0.1, 4, 4.1, 4.2, 9.9, 10, 10]])
def test_names_that_crowd_move_apart_in_the_order_of_their_lines(heights):
    names, axes = drawn([end(y, name=str(index)) for index, y in enumerate(heights)])
    assert [name for name, _ in names] == [str(index) for index in range(len(heights))]
    assert all(upper.y0 >= lower.y1 for (_, lower), (_, upper) in pairwise(names))
    assert names[0][1].y1 > axes.y0
    assert names[-1][1].y0 < axes.y1


def test_names_with_room_stand_beside_their_ends():
    names, axes = drawn([end(2.0), end(8.0)])
    for (_, box), y in zip(names, (2.0, 8.0), strict=True):
        assert (box.y0 + box.y1) / 2 == pytest.approx(axes.y0 + axes.height * y / 10, abs=1.5)
        assert box.x0 > axes.x1


def test_a_name_on_the_left_ends_before_the_point():
    names, axes = drawn([end(5.0, left=True), end(5.0, name="other")])
    boxes = dict(names)
    assert boxes["C = 2"].x1 < axes.x1 < boxes["other"].x0


def test_a_full_column_keeps_the_wanted_and_the_lowest():
    names, _ = drawn([end(y / 10, name=str(y)) for y in range(99)] + [end(10.0, name="baseline", keep=True)])
    kept = [name for name, _ in names]
    assert kept[-1] == "baseline"
    assert kept[:-1] == [str(y) for y in range(len(kept) - 1)]
    assert 5 < len(kept) < 20


def test_spaced_keeps_the_first_of_those_that_stand_too_close():
    places = [(0.0, 0.0), (0.5, 0.5), (0.5, 3.0), (2.0, 0.0), (2.5, 0.9)]
    assert spaced("abcde", places, (1.0, 1.0)) == ["a", "c", "d"]
