"""What was written is what TensorBoard's own reader reads, and no point is there twice whatever happened in between."""

import io

import numpy as np
import pytest
from PIL import Image

from cedm_ray.data.pictures import sample_grid
from cedm_ray.errors import StorageError
from cedm_ray.watching.event_files import EventFile, last_steps


def test_curves_come_out_as_they_were_told(points, tmp_path):
    with EventFile(tmp_path) as file:
        file.scalars(64, {"loss": 0.5, "rate": 1.0, "norm": None})
        file.scalars(128, {"loss": 0.25, "norm": 3.0})
    assert points(tmp_path, "loss") == [(64, 0.5), (128, 0.25)]
    assert points(tmp_path, "rate") == [(64, 1.0)]
    assert points(tmp_path, "norm") == [(128, 3.0)]
    assert last_steps(tmp_path) == {"loss": 128, "rate": 64, "norm": 128}


def test_a_point_is_readable_while_the_file_is_still_open(points, tmp_path):
    with EventFile(tmp_path) as file:
        file.scalars(1, {"loss": 0.5})
        assert points(tmp_path, "loss") == [(1, 0.5)]


def test_a_run_that_is_taken_up_again_goes_on_with_what_is_new(points, tmp_path):
    for first in (0, 2, 3):
        with EventFile(tmp_path) as file:
            for step in range(first, first + 4):
                file.scalars(step, {"loss": float(step)})
    assert points(tmp_path, "loss") == [(step, float(step)) for step in range(7)]
    assert len(list(tmp_path.iterdir())) == 3


def test_more_runs_than_nine_are_read_in_their_order(points, tmp_path):
    for step in range(12):
        with EventFile(tmp_path) as file:
            file.scalars(step, {"loss": 1.0})
    assert [step for step, _ in points(tmp_path, "loss")] == list(range(12))


def test_nothing_is_made_where_nothing_is_new(tmp_path):
    with EventFile(tmp_path / "run") as file:
        file.scalars(5, {"loss": None})
    assert not (tmp_path / "run").exists()
    for _ in range(2):
        with EventFile(tmp_path / "run") as file:
            file.scalars(5, {"loss": 1.0})
    assert len(list((tmp_path / "run").iterdir())) == 1


@pytest.mark.parametrize("cut", [1, 11, 30])
def test_what_a_killed_process_left_half_written_is_passed_over(points, tmp_path, cut):
    with EventFile(tmp_path) as file:
        file.scalars(1, {"loss": 1.0})
        file.scalars(2, {"loss": 2.0})
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-cut])
    assert last_steps(tmp_path) == {"loss": 1}
    with EventFile(tmp_path) as file:
        file.scalars(1, {"loss": 1.0})
        file.scalars(2, {"loss": 2.0})
        file.scalars(3, {"loss": 3.0})
    assert points(tmp_path, "loss") == [(1, 1.0), (2, 2.0), (3, 3.0)]


def test_a_grid_is_the_picture_of_the_images(read, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, size=(5, 3, 8, 8), dtype=np.uint8)
    with EventFile(tmp_path) as file:
        file.grid("samples", 512, images, columns=3)
    (event,) = read(tmp_path).Images("samples")
    picture = sample_grid(images, 3)
    assert (event.step, event.width, event.height) == (512, *picture.size)
    with Image.open(io.BytesIO(event.encoded_image_string)) as shown:
        assert (np.asarray(shown) == np.asarray(picture)).all()


def test_a_place_where_nothing_can_be_written_is_an_error_of_ours(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with EventFile(tmp_path / "file" / "run") as file, pytest.raises(StorageError, match="cannot write"):
        file.scalars(1, {"loss": 1.0})
