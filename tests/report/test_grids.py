"""The picture of a grid: every tile is the image, where it belongs, enlarged and not smoothed."""

import numpy as np
import pytest

from cedm_ray.report.grids import labelled_grid


def tiles_of(picture, side):
    """Top left corners of all squares of that side and one color, by rows. The images of these tests are such."""
    pixels = np.asarray(picture).astype(int)
    found = []
    for top in range(pixels.shape[0] - side + 1):
        for left in range(pixels.shape[1] - side + 1):
            block = pixels[top : top + side, left : left + side]
            if block[0, 0, 0] == 200 and block[0, 0, 1] < 100 and (block == block[0, 0]).all():
                found.append((top, left, tuple(block[0, 0].tolist())))
    return found


def colored(rows, columns):
    """Images of one color each, all different: the second value says the row, the third the column."""
    images = np.zeros((rows, columns, 3, 4, 4), dtype=np.uint8)
    images[:, :, 0] = 200
    for row in range(rows):
        for column in range(columns):
            images[row, column, 1], images[row, column, 2] = 10 * row, 10 * column
    return images


def test_every_image_stands_in_its_row_and_column():
    picture = labelled_grid(colored(3, 2), rows=["a", "b", "c"], columns=["x", "y"], min_tile_px=18)
    found = tiles_of(picture, 20)
    assert [color for *_, color in found] == [(200, 10 * r, 10 * c) for r in range(3) for c in range(2)]
    assert len({top for top, *_ in found}) == 3
    assert len({left for _, left, _ in found}) == 2


def test_names_make_room_for_themselves():
    narrow = labelled_grid(colored(1, 3), rows=["a"], columns=["1", "2", "3"], min_tile_px=16)
    wide = labelled_grid(colored(1, 3), rows=["a much longer name"], columns=["1", "a long name", "3"], min_tile_px=16)
    assert wide.width > narrow.width + 100
    # However wide the column, the tile is as it was and in the middle of it.
    lefts = [left for _, left, _ in tiles_of(wide, 16)]
    assert len(lefts) == 3
    assert lefts[1] - lefts[0] == lefts[2] - lefts[1] > 60


def test_groups_and_bands_stand_apart():
    names = {"rows": list("abcd"), "columns": list("1234")}
    picture = labelled_grid(colored(4, 4), **names, groups=[("left", 2), ("right", 2)], bands=[3, 1], min_tile_px=30)
    found = tiles_of(picture, 32)
    lefts, tops = sorted({left for _, left, _ in found}), sorted({top for top, *_ in found})
    assert lefts[1] - lefts[0] == lefts[3] - lefts[2] == lefts[2] - lefts[1] - 13
    assert tops[1] - tops[0] == tops[2] - tops[1] == tops[3] - tops[2] - 13


def test_text_is_drawn_and_control_characters_are_not_obeyed():
    plain = labelled_grid(colored(1, 1), rows=["a"], columns=["b"])
    other = labelled_grid(colored(1, 1), rows=["a"], columns=["\x1b[31m"])
    assert (np.asarray(plain).sum(axis=2) == 0).sum() < (np.asarray(plain).sum(axis=2) < 300).sum()
    assert other.width > plain.width


@pytest.mark.parametrize(
    ("images", "names", "message"),
    [
        (colored(2, 2).astype(float), {}, "images must be uint8"),
        (colored(2, 2)[0], {}, "images must be uint8"),
        (colored(2, 2), {"rows": ["a"]}, "rows must be 2 names, got 1"),
        (colored(2, 2), {"columns": ["a"]}, "columns must be 2 names, got 1"),
        (colored(2, 2), {"groups": [("a", 1)]}, "groups must have 2 together, got 1"),
        (colored(2, 2), {"bands": [3]}, "bands must have 2 together, got 3"),
    ],
)
def test_what_does_not_fit_is_refused(images, names, message):
    with pytest.raises(ValueError, match=message):
        labelled_grid(images, **({"rows": ["a", "b"], "columns": ["1", "2"]} | names))
