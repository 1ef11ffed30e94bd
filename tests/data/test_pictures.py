"""Pictures hold the images' pixels."""

import io

import numpy as np
import pytest
from PIL import Image

from cedm_ray.data.pictures import png, sample_grid


def test_small_images_are_enlarged_by_whole_pixels_and_laid_out_row_by_row():
    images = np.random.default_rng(0).integers(0, 256, size=(5, 3, 8, 8), dtype=np.uint8)
    grid = np.asarray(sample_grid(images, columns=3))
    assert grid.shape == (2 * 32 + 2, 3 * 32 + 2 * 2, 4)
    fifth = grid[34 : 34 + 32, 34 : 34 + 32, :3]
    assert (fifth[::4, ::4] == images[4].transpose(1, 2, 0)).all()
    assert (fifth == np.asarray(Image.fromarray(images[4].transpose(1, 2, 0)).resize((32, 32), Image.NEAREST))).all()
    assert (grid[34:, 68:, 3] == 0).all()


def test_large_images_keep_their_size():
    images = np.zeros((2, 3, 64, 64), dtype=np.uint8)
    assert sample_grid(images, columns=10).size == (64 * 2 + 2, 64)


@pytest.mark.parametrize(
    "images", [np.zeros((1, 3, 8, 8)), np.zeros((0, 3, 8, 8), np.uint8), np.zeros((2, 8, 8, 3), np.uint8)]
)
def test_what_is_no_image_batch_is_refused(images):
    with pytest.raises(ValueError, match=r"uint8 \[n, 3, S, S\]"):
        sample_grid(images, columns=2)


def test_columns_below_one_are_refused():
    with pytest.raises(ValueError, match="columns must be at least 1, got 0"):
        sample_grid(np.zeros((1, 3, 8, 8), dtype=np.uint8), columns=0)


def test_a_picture_as_a_file_is_the_same_picture_with_no_metadata():
    picture = sample_grid(np.random.default_rng(1).integers(0, 256, size=(3, 3, 32, 32), dtype=np.uint8), columns=2)
    with Image.open(io.BytesIO(png(picture))) as read:
        assert (np.asarray(read) == np.asarray(picture)).all()
        assert read.info == {}
