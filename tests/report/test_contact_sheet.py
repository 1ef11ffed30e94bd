"""The contact sheet: what was found is on it, at its place."""

import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from cedm_ray.data.images_config import ImagesConfig
from cedm_ray.data.inspection import inspect_images
from cedm_ray.report.contact_sheet import contact_sheet


def png(color: tuple[int, int, int]) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (64, 64), color).save(data, "PNG")
    return data.getvalue()


def inspected(path, files: dict[str, bytes], study_tools):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return study_tools.exhaust(inspect_images(ImagesConfig(source=str(path))))[1]


def count(sheet: Image.Image, color: tuple[int, int, int]) -> int:
    """Tiles of 64x64 pixels in this color."""
    return int((np.asarray(sheet) == color).all(-1).sum()) // 64**2


def test_every_sample_and_every_copy_is_on_it(tmp_path, study_tools):
    files = {f"{level:02d}.png": png((level, 0, 99)) for level in range(10)}
    files |= {f"copy {number}.png": png((7, 0, 99)) for number in range(3)}
    sheet = contact_sheet(inspected(tmp_path / "a.zip", files, study_tools))
    assert count(sheet, (4, 0, 99)) == 1
    # Four samples, and four in the row of the group.
    assert count(sheet, (7, 0, 99)) == 8


def test_a_group_of_many_shows_eight(tmp_path, study_tools):
    sheet = contact_sheet(
        inspected(tmp_path / "a.zip", {f"{i:02d}.png": png((9, 9, 9)) for i in range(40)}, study_tools)
    )
    assert count(sheet, (9, 9, 9)) == 48


def test_names_from_outside_are_cut_and_escaped_and_do_not_widen_it(tmp_path, study_tools):
    name = "very/" * 40 + "\x1b[31m<script>.png"
    sheets = [
        contact_sheet(inspected(tmp_path / f"{number}.zip", {name: png((1, 2, 3))}, study_tools))
        for number, name in enumerate((name, "plain.png"))
    ]
    assert sheets[0].width < sheets[1].width + 300
    assert count(sheets[0], (1, 2, 3)) == 1


def test_without_an_image_there_is_no_sheet(tmp_path, study_tools):
    with pytest.raises(ValueError, match="at least one image"):
        contact_sheet(inspected(tmp_path / "a.zip", {"a.png": b""}, study_tools))
