"""`images`: what a person and a program read, and with which code it ends."""

import contextlib
import io
import json
import shutil
import zipfile

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cedm_ray.data.decoding_pool import decode_source
from cedm_ray.data.image_set import open_image_set
from cedm_ray.distributed import decoding


def picture(seed: int, width: int = 40, height: int = 40) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def folder(tmp_path):
    """20 pictures, one of them not square, an equal and a near copy of one, and two bad ones."""
    root = tmp_path / "my pictures"
    root.mkdir()
    for index in range(20):
        picture(index, width=50 if index == 3 else 40).save(root / f"{index:02d}.png")
    shutil.copy(root / "05.png", root / "05 again.png")
    picture(6).save(root / "06 smaller.jpg", quality=80)
    (root / "bad.png").write_bytes(b"")
    (root / "\x1b[31mred<script>.jpg").write_bytes(b"<html>")
    return root


def test_inspect_tells_a_person(run, folder, tmp_path):
    code, out, err = run("images", "inspect", folder, "--sheet", tmp_path / "sheet.png", "-q")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == f"{folder}: folder, 24 images"
    assert lines[1:3] == ["good        22", "refused     2"]
    assert "            1 x the file is empty: bad.png" in lines
    assert "            1 x an HTML page, not an image: \\x1b[31mred<script>.jpg" in lines
    assert "formats     21 PNG, 1 JPEG" in lines
    assert "sizes       21 40x40, 1 50x40; sides 40 to 50 pixels" in lines
    assert "equal       2 in 1 groups, 1 more than one of each" in lines
    assert "            2 x 05 again.png, 05.png" in lines
    assert "            2 x 06 smaller.jpg, 06.png" in lines
    assert f"contact sheet: {tmp_path / 'sheet.png'}" in lines
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 8 * 64
    assert lines[-1].endswith(f"cedm-ray images import '{folder}' --size 40 --crop center --out SET")


def test_inspect_tells_a_program_the_same(run, folder):
    code, out, _ = run("images", "inspect", folder, "-q", "--json")
    assert (code, "\x1b" in out) == (0, False)
    found = json.loads(out)
    assert (found["images"], found["kind"], found["not_square"]) == (22, "folder", 1)
    assert found["refused"][0] == {"name": "\x1b[31mred<script>.jpg", "reason": "an HTML page, not an image"}
    assert found["equal"] == [["05 again.png", "05.png"]]
    assert found["alike"] == [["06 smaller.jpg", "06.png"]]
    assert found["sizes"] == [
        {"width": 40, "height": 40, "images": 21},
        {"width": 50, "height": 40, "images": 1},
    ]
    assert found["sheet"] is None


def test_inspect_of_nothing_good_says_so_and_has_no_sheet(run, tmp_path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_bytes(b"")
    code, out, _ = run("images", "inspect", tmp_path / "bad", "-q")
    assert code == 0
    assert out.splitlines()[1] == "good        0"
    code, out, err = run("images", "inspect", tmp_path / "bad", "-q", "--sheet", tmp_path / "s.png")
    assert (code, out) == (3, "")
    assert "no good image" in err
    assert not (tmp_path / "s.png").exists()


@pytest.mark.parametrize("verb", [("inspect",), ("import", "--out", "set")])
def test_a_path_that_is_not_there_ends_with_3(run, tmp_path, monkeypatch, verb):
    monkeypatch.chdir(tmp_path)
    name, *more = verb
    code, out, err = run("images", name, "nowhere", "-q", *more)
    assert (code, out) == (3, "")
    assert f"cannot read images from {tmp_path / 'nowhere'}: No such file" in err
    assert not (tmp_path / "set" / "manifest.json").exists()


IMPORT = ("--size", 32, "--crop", "center", "--max-bad-fraction", 0.2, "-q")


def test_import_makes_a_set_and_names_what_it_refused(run, folder, tmp_path):
    code, out, err = run("images", "import", folder, "--out", tmp_path / "set", *IMPORT)
    assert (code, err) == (0, "")
    images = open_image_set(tmp_path / "set", verify=True)
    assert (len(images), images.size) == (22, 32)
    assert out.splitlines() == [
        "refused \\x1b[31mred<script>.jpg: an HTML page, not an image",
        "refused bad.png: the file is empty",
        f"{tmp_path / 'set'}: 22 images of 32x32, 2 refused, made",
        f"digest {images.digest}",
    ]
    index = pq.read_table(tmp_path / "set" / "index.parquet").to_pylist()
    assert sum(line["row"] is None for line in index) == 2


def test_a_second_import_checks_the_set_and_changes_nothing(run, folder, tmp_path):
    arguments = ("images", "import", folder, "--out", tmp_path / "set", *IMPORT)
    run(*arguments)
    # The lock is taken each time.
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "set").glob("[!.]*")}
    code, out, err = run(*arguments, "--json")
    assert (code, err) == (0, "")
    told = json.loads(out)
    assert (told["made"], told["images"], len(told["refused"])) == (False, 22, 2)
    assert told["digest"] == open_image_set(tmp_path / "set").digest
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "set").glob("[!.]*")} == before
    pixels = tmp_path / "set" / "pixels.npy"
    pixels.write_bytes(pixels.read_bytes()[:-1] + b"\x07")
    code, out, err = run(*arguments)
    assert (code, out) == (8, "")
    assert "pixels.npy is not the file that was written" in err


def test_an_import_that_was_cut_short_is_begun_again(run, folder, tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / ".pixels.npy.1-dead.tmp").write_bytes(b"left by a killed process")
    code, _, _ = run("images", "import", folder, "--out", tmp_path / "set", *IMPORT)
    assert code == 0
    assert len(open_image_set(tmp_path / "set")) == 22
    assert not list((tmp_path / "set").glob("*.tmp"))


def test_other_settings_end_with_2_and_other_images_with_3(run, folder, tmp_path):
    run("images", "import", folder, "--out", tmp_path / "set", *IMPORT)
    code, out, err = run("images", "import", folder, "--out", tmp_path / "set", *IMPORT, "--background", "white")
    assert (code, out) == (2, "")
    assert "made otherwise: --background was black and is white now" in err
    picture(99).save(folder / "99.png")
    code, out, err = run("images", "import", folder, "--out", tmp_path / "set", *IMPORT)
    assert (code, out) == (3, "")
    assert "was made of other images" in err
    assert f"remove {tmp_path / 'set'}" in err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--size", 32, "--max-bad-fraction", 0.2), "not square, and --crop is none"),
        (("--crop", "center"), "more than --max-bad-fraction allows"),
        (("--crop", "center", "--on-bad", "fail"), "refused image"),
        (("--crop", "center", "--size", 41, "--max-bad-fraction", 0.5), "are refused so far"),
    ],
)
def test_what_stops_an_import_is_named_with_the_option_that_mends_it(run, folder, tmp_path, arguments, told):
    code, out, err = run("images", "import", folder, "--out", tmp_path / "set", "-q", *arguments)
    assert (code, out) == (3, "")
    assert told in err
    assert "to mend it: " in err
    assert "images." not in err
    assert not (tmp_path / "set" / "manifest.json").exists()


def test_images_of_several_sizes_need_a_size(run, tmp_path):
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as archive:
        for name, side in (("a.png", 8), ("b.png", 9)):
            data = io.BytesIO()
            Image.new("RGB", (side, side)).save(data, "PNG")
            archive.writestr(name, data.getvalue())
    code, out, err = run("images", "import", tmp_path / "two.zip", "--out", tmp_path / "set", "-q")
    assert (code, out) == (3, "")
    assert "the images differ in size and --size is not set: a.png has side 8, b.png has side 9" in err
    assert "set --size to the side" in err


def test_two_imports_at_once_into_one_folder_end_with_6(run, folder, tmp_path):
    from cedm_ray.lock import exclusive_lock

    with exclusive_lock(tmp_path / "set" / ".import.lock"):
        code, out, err = run("images", "import", folder, "--out", tmp_path / "set", *IMPORT)
    assert (code, out) == (6, "")
    assert "is in use by process" in err


@pytest.mark.parametrize("name", ["files", "files.zip", "files.parquet"])
def test_an_exported_set_imports_as_the_same_images(run, folder, tmp_path, name):
    run("images", "import", folder, "--out", tmp_path / "set", *IMPORT)
    code, out, err = run("images", "export", tmp_path / "set", "--out", tmp_path / name, "-q")
    assert (code, out, err) == (0, f"{tmp_path / name}\n", "")
    code, _, _ = run("images", "import", tmp_path / name, "--out", tmp_path / "again", "-q")
    assert code == 0
    assert open_image_set(tmp_path / "again").digest == open_image_set(tmp_path / "set").digest
    code, out, err = run("images", "export", tmp_path / "set", "--out", tmp_path / name, "-q")
    assert (code, out) == (7, "")
    assert "is there already and is not written over" in err


def test_a_folder_that_is_no_set_is_not_exported(run, tmp_path):
    code, out, err = run("images", "export", tmp_path, "--out", tmp_path / "out", "-q")
    assert (code, out) == (3, "")
    assert "no image set in" in err
    assert not (tmp_path / "out").exists()


def test_a_cluster_that_is_named_is_asked_to_decode(run, folder, tmp_path, monkeypatch):
    asked = []

    @contextlib.contextmanager
    def cluster_decode(address, show):
        def decode(source, config):
            asked.append(len(source))
            return decode_source(source, config)

        asked.append(address)
        yield decode

    monkeypatch.setattr(decoding, "cluster_decode", cluster_decode)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    verb = ("images", "import", folder, "--size", 8, "--crop", "center", "--max-bad-fraction", 0.5, "-q")
    for out, address in (("with", ("--address", "10.0.0.1:6379")), ("without", ())):
        code, _, told = run(*verb, "--out", tmp_path / out, *address)
        assert code == 0, told
    assert asked == ["10.0.0.1:6379", 24]
    assert open_image_set(tmp_path / "with").digest == open_image_set(tmp_path / "without").digest
