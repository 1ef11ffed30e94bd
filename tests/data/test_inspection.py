"""What is said of a source against what was put into it."""

import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from cedm_ray.data import inspection
from cedm_ray.data.decoding import Refusal
from cedm_ray.data.images_config import ImagesConfig
from cedm_ray.data.inspection import inspect_images
from cedm_ray.errors import InputDataError, StorageError


def encode(image: Image.Image, image_format: str = "PNG", **options) -> bytes:
    data = io.BytesIO()
    image.save(data, image_format, **options)
    return data.getvalue()


def noise(seed: int, width: int = 16, height: int = 16) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


FILES = {
    "a/one.png": encode(noise(1)),
    "a/same as one.bmp": encode(noise(1), "BMP"),
    "b/grey.png": encode(noise(2).convert("L")),
    "b/grey.jpg": encode(noise(3).convert("L"), "JPEG"),
    "b/wide.tiff": encode(noise(4, 20, 12), "TIFF"),
    "c/clear.webp": encode(Image.merge("RGBA", [*noise(5).split(), noise(6).getchannel(0)]), "WEBP", lossless=True),
    "c/black.png": encode(Image.new("P", (8, 8))),
    "bad/page.jpg": b"<html>",
    "bad/empty.png": b"",
    "bad/short.png": encode(noise(6))[:-20],
    "bad/large.png": encode(Image.new("1", (500, 500))),
    "bad/larger.png": encode(Image.new("1", (600, 600))),
    "bad/moving.gif": b"GIF89a",
    "notes.txt": b"not an image",
}
NUM_IMAGES = 13


@pytest.fixture(params=["folder", "zip"])
def source(request, tmp_path):
    """(kind, path) of the same files."""
    path = tmp_path / ("files" if request.param == "folder" else "files.zip")
    if request.param == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in FILES.items():
                archive.writestr(name, content)
    else:
        for name, content in FILES.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(content)
    return request.param, path


def test_everything_is_counted_and_every_bad_image_named(source, study_tools):
    kind, path = source
    said, found = study_tools.exhaust(inspect_images(ImagesConfig(source=str(path), max_pixels=100_000)))
    assert [step.done for step in said] == list(range(1, NUM_IMAGES + 1))
    assert (said[-1].total, said[-1].refused) == (NUM_IMAGES, 6)
    assert (found.kind, found.location) == (kind, str(path))
    assert (found.num_images, found.labelled) == (7, False)
    assert found.formats == {"PNG": 3, "BMP": 1, "JPEG": 1, "TIFF": 1, "WebP": 1}
    assert found.modes == {"RGB": 3, "L": 2, "RGBA": 1, "P": 1}
    assert found.sizes == {(16, 16): 5, (20, 12): 1, (8, 8): 1}
    assert next(iter(found.sizes)) == (16, 16)
    assert (found.smallest_side, found.largest_side, found.num_not_square, found.num_other_sizes) == (8, 20, 1, 0)
    assert found.common_side == 16
    assert (found.num_smaller_than(16), found.num_smaller_than(13), found.num_smaller_than(8)) == (2, 2, 0)
    assert found.exact == (("a/one.png", "a/same as one.bmp"),)
    assert found.near == ()
    assert found.num_flat == 1
    assert {refusal.name for refusal in found.refused} == {name for name in FILES if name.startswith("bad/")}
    reasons = found.reasons
    assert next(iter(reasons.values())) == ["bad/large.png", "bad/larger.png"]
    assert next(iter(reasons)) == "NxN is more than images.max_pixels (N)"
    assert reasons["an HTML page, not an image"] == ["bad/page.jpg"]
    assert reasons["the file is empty"] == ["bad/empty.png"]
    assert sum(map(len, reasons.values())) == 6


def test_pictures_for_the_sheet_are_central_squares_of_good_images(source, study_tools):
    _, path = source
    _, found = study_tools.exhaust(inspect_images(ImagesConfig(source=str(path), max_pixels=100_000)))
    good = {name for name in FILES if not name.startswith(("bad/", "notes"))}
    assert {sample.name for sample in found.samples} == good
    pixels = {sample.name: sample.pixels for sample in found.samples}
    assert np.array_equal(pixels["a/one.png"][:, ::4, ::4], np.asarray(noise(1)).transpose(2, 0, 1))
    center = noise(4, 20, 12).crop((4, 0, 16, 12)).resize((64, 64), Image.Resampling.LANCZOS)
    assert np.array_equal(pixels["b/wide.tiff"], np.asarray(center).transpose(2, 0, 1))
    ((first, second),) = found.exact_shown
    assert (first.name, second.name) == ("a/one.png", "a/same as one.bmp")
    assert np.array_equal(first.pixels, second.pixels)


def test_samples_lie_at_even_distances(tmp_path, study_tools):
    with zipfile.ZipFile(tmp_path / "many.zip", "w") as archive:
        for index in range(640):
            archive.writestr(f"{index:03d}.png", encode(Image.new("L", (4, 4), index % 256)))
    _, found = study_tools.exhaust(inspect_images(ImagesConfig(source=str(tmp_path / "many.zip"))))
    assert [sample.name for sample in found.samples] == [f"{index:03d}.png" for index in range(0, 640, 10)]
    # 256 grey levels, the last of them twice as often as the others... all of them in one group each.
    assert sum(map(len, found.exact)) == 640
    assert len(found.exact) == 256


def test_the_background_decides_what_is_equal(tmp_path, study_tools):
    drawing = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    drawing.putpixel((3, 3), (0, 0, 0, 255))
    with zipfile.ZipFile(tmp_path / "clear.zip", "w") as archive:
        archive.writestr("drawn.png", encode(drawing))
        archive.writestr("empty.png", encode(Image.new("RGBA", (8, 8), (0, 0, 0, 0))))
    for background, groups in (("black", (("drawn.png", "empty.png"),)), ("white", ())):
        config = ImagesConfig(source=str(tmp_path / "clear.zip"), background=background)
        assert study_tools.exhaust(inspect_images(config))[1].exact == groups


def test_many_different_sizes_are_counted_without_being_kept(tmp_path, monkeypatch, study_tools):
    monkeypatch.setattr(inspection, "MAX_SIZES", 3)
    with zipfile.ZipFile(tmp_path / "sizes.zip", "w") as archive:
        for index, side in enumerate((4, 5, 6, 7, 8, 4)):
            archive.writestr(f"{index}.png", encode(Image.new("L", (side, side))))
    _, found = study_tools.exhaust(inspect_images(ImagesConfig(source=str(tmp_path / "sizes.zip"))))
    assert (found.sizes, found.num_other_sizes) == ({(4, 4): 2, (5, 5): 1, (6, 6): 1}, 2)
    assert (found.smallest_side, found.largest_side) == (4, 8)


def test_a_source_of_bad_images_alone_is_described_too(tmp_path, study_tools):
    (tmp_path / "a.png").write_bytes(b"")
    _, found = study_tools.exhaust(inspect_images(ImagesConfig(source=str(tmp_path))))
    assert (found.num_images, found.samples, found.common_side, found.smallest_side) == (0, (), 0, 0)
    assert found.refused == (Refusal(name="a.png", reason="the file is empty"),)


def test_arrays_have_no_format(study_tools):
    _, found = study_tools.exhaust(inspect_images(ImagesConfig(source="sklearn:digits")))
    assert (found.kind, found.num_images, found.formats) == ("digits", 1797, {"pixels": 1797})
    assert found.sizes == {(8, 8): 1797}


def test_what_is_no_source_is_an_error_and_a_full_disk_another(tmp_path, monkeypatch, study_tools):
    with pytest.raises(InputDataError, match="No such file"):
        study_tools.exhaust(inspect_images(ImagesConfig(source=str(tmp_path / "nowhere"))))
    (tmp_path / "a.png").write_bytes(encode(noise(1)))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(inspection.DuplicateFinder, "add", full)
    with pytest.raises(StorageError, match="full"):
        study_tools.exhaust(inspect_images(ImagesConfig(source=str(tmp_path))))
