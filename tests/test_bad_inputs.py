"""Bad images, data sets, arrays, YAML and names through the door: the exit code, the message, and what mends it.

What each room says of each kind of damage is tested beside the room: image files in `data/test_decoding.py`, folders,
archives and arrays beside their sources in `data/`, scalars and syntax of YAML in `test_config.py`, values of a search
space in `search/test_space.py`, features in `features/test_store.py`. Here is what a user gets to see.
"""

import io
import json
import os
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cedm_ray.clustering.assignment_file import read_assignment
from cedm_ray.data.image_set import ImageSet, open_image_set
from cedm_ray.data.sources import open_source
from cedm_ray.data.stored_images import open_stored
from cedm_ray.errors import CedmError
from cedm_ray.features.feature_file import open_feature_file
from cedm_ray.metrics.frechet import read_reference


def png(color=(1, 2, 3), side: int = 8, **options) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (side, side), color).save(data, "PNG", **options)
    return data.getvalue()


# Sources --------------------------------------------------------------------------------------------------------------


def make_nothing(path: Path) -> None:
    pass


def make_empty(path: Path) -> None:
    path.mkdir()


def make_other_files(path: Path) -> None:
    path.mkdir()
    for name in ("a.txt", "b.TXT", "c.svg", "LICENSE"):
        (path / name).write_text("<svg/>")


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_loop(path: Path) -> None:
    path.symlink_to(path)


def make_text(path: Path) -> None:
    path.write_text("these are the images")


def make_torn_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.png", png())
    path.write_bytes(path.read_bytes()[:-30])


def make_dangerous_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("../a.png", "/etc/b.png", "c\\d.png"):
            archive.writestr(name, png())


def make_pickle(path: Path) -> None:
    np.save(path.with_suffix(".npy"), np.array([{"a": 1}], object), allow_pickle=True)
    path.with_suffix(".npy").rename(path)


@pytest.mark.parametrize("verb", ["inspect", "import"])
@pytest.mark.parametrize(
    ("make", "code", "told"),
    [
        (make_nothing, 3, "No such file or directory"),
        (make_empty, 3, "no images in {path}; found: nothing"),
        (make_other_files, 3, "no images in {path}; found: 2 .txt, 1 "),
        (make_other_files, 3, "; refused: 1, the first is c.svg: .svg is not read"),
        (make_fifo, 3, "{path} is neither a folder nor a file"),
        (make_loop, 3, "Too many levels of symbolic links"),
        (make_text, 3, "(it starts with b'these ar')"),
        (make_torn_zip, 3, "{path} is a truncated or damaged zip"),
        (make_dangerous_zip, 3, "the first is ../a.png: a name that leads out of the archive"),
        (make_pickle, 9, "pickle"),
    ],
)
def test_what_is_no_source_ends_the_verb_with_its_absolute_path(run, tmp_path, monkeypatch, verb, make, code, told):
    make(tmp_path / "images")
    monkeypatch.chdir(tmp_path)
    more = () if verb == "inspect" else ("--out", "set")
    got, out, err = run("images", verb, "images", "-q", *more)
    assert (got, out) == (code, "")
    assert told.format(path=tmp_path / "images") in err
    assert str(tmp_path / "images") in err
    assert "Traceback" not in err
    assert not (tmp_path / "set" / "manifest.json").exists()


def test_one_bad_image_in_a_hundred_is_left_out_and_two_stop_the_import(run, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(99):
        (folder / f"{index:03d}.png").write_bytes(png((index, 0, 0)))
    (folder / "page.jpg").write_text("<html>404</html>")
    code, out, _ = run("images", "import", folder, "--out", tmp_path / "one", "-q")
    assert (code, out.splitlines()[0]) == (0, "refused page.jpg: an HTML page, not an image")
    code, _, err = run("images", "import", folder, "--out", tmp_path / "none", "-q", "--on-bad", "fail")
    assert code == 3
    assert "refused image page.jpg: an HTML page, not an image" in err
    assert "set --on-bad to skip" in err
    (folder / "torn.png").write_bytes(png()[:-20])
    code, _, err = run("images", "import", folder, "--out", tmp_path / "two", "-q")
    assert code == 3
    assert "2 of 101 images are refused so far, more than --max-bad-fraction allows (0.01)" in err
    assert "page.jpg: an HTML page" in err
    assert "torn.png: " in err


def test_bombs_of_a_thousand_bytes_are_refused_by_their_header(run, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for side in (8, 9):
        (folder / f"good {side}.png").write_bytes(png(side=side))
    bomb = io.BytesIO()
    Image.new("1", (8100, 8100)).save(bomb, "PNG", compress_level=9)
    assert len(bomb.getvalue()) < 20_000
    (folder / "bomb.png").write_bytes(bomb.getvalue())
    code, out, _ = run("images", "inspect", folder, "-q")
    assert code == 0
    assert "1 x NxN is more than images.max_pixels (N): bomb.png" in out
    code, out, _ = run("images", "inspect", folder, "-q", "--max-pixels", "70", "--json")
    assert [refusal["name"] for refusal in json.loads(out)["refused"]] == ["bomb.png", "good 9.png"]


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_member_without_a_name_is_refused(run, tmp_path, kind):
    path = tmp_path / f"images.{kind}"
    if kind == "zip":
        nameless = zipfile.ZipInfo("x")
        nameless.filename = ""
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("good.png", png())
            archive.writestr(nameless, png())
    else:
        with tarfile.open(path, "w") as archive:
            for name in ("good.png", ""):
                info = tarfile.TarInfo(name)
                info.size = len(png())
                archive.addfile(info, io.BytesIO(png()))
    code, out, _ = run("images", "inspect", path, "-q", "--json")
    assert code == 0
    assert json.loads(out)["refused"] == [{"name": "", "reason": "it has no name"}]


# Arrays ---------------------------------------------------------------------------------------------------------------

HEADERS = {
    "never closed": "{'descr': '<f4', 'shape': (",
    "text never closed": "{'descr': '''",
    "nested": "(" * 9000,
    "a long sum": "-" * 9000 + "1",
    "larger than a number": "{'descr': '<f4', 'fortran_order': False, 'shape': (9999999999999999999999, 5), }",
    "larger than the file": "{'descr': '<f4', 'fortran_order': False, 'shape': (999999999999, 5), }",
    "below zero": "{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 5), }",
    "no keys": "None",
    "no type": "{'descr': {'a': 1}, 'fortran_order': False, 'shape': (4, 5), }",
}
IMAGES = ImageSet(name="x", names=("a", "b"), pixels=np.zeros((2, 3, 4, 4), np.uint8), digest="0")


def read_set(path: Path) -> ImageSet:
    """A set whose pixels are `path`."""
    from cedm_ray import durable

    durable.write_record(path.parent / "manifest.json", {"num_images": 2, "size": 4})
    path.rename(path.parent / "pixels.npy")
    return open_image_set(path.parent)


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS.keys())
@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("features.npy", lambda path: open_feature_file(path, "features", IMAGES)),
        ("images.npy", open_source),
        ("set.npy", read_set),
        ("images.npz", open_source),
        ("images.npz", open_stored),
        ("ids.npz", lambda path: read_assignment(str(path), num_images=2)),
        ("mu.npz", read_reference),
    ],
)
def test_an_array_with_a_broken_header_is_named_by_whatever_reads_it(tmp_path, name, read, header):
    text = header.encode().ljust(118) + b"\n"
    array = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(80)
    path = tmp_path / name
    if path.suffix == ".npz":
        with zipfile.ZipFile(path, "w") as archive:
            for member in {"images": ("images",), "ids": ("ids",), "mu": ("mu", "sigma")}[path.stem]:
                archive.writestr(f"{member}.npy", array)
    else:
        path.write_bytes(array)
    with pytest.raises(CedmError, match=str(tmp_path)):
        read(path)


# YAML -----------------------------------------------------------------------------------------------------------------

BOMB = "\n".join([f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30)])


@pytest.mark.parametrize(
    ("text", "where", "told"),
    [
        ("clusterign: {gamma: 0.6}", "3:1", "unknown key clusterign; did you mean clustering?"),
        ("clustering: {gama: 0.6}", "3:14", "unknown key clustering.gama; did you mean gamma?"),
        ("images: {sise: 3}", "3:1", "duplicate key 'images'"),
        ("seed: !!python/object/apply:os.system ['touch hacked']", "3:7", "os.system is not allowed"),
        (f"a0: &a0 1\n{BOMB}", "3:5", "anchors and aliases are not allowed"),
        ("bound: {alpha: " + "[" * 1000 + "]" * 1000 + "}", "3:46", "nested deeper than 32 levels"),
        ("training: {learning_rate: fast}", "3:12", "training.learning_rate: input should be a valid number"),
        ("training: {compile: no}", "3:12", None),
        ("training: {compile: maybe}", "3:12", "training.compile: input should be a valid boolean"),
        ("bound: {alpha: 1.2}", "3:9", "bound.alpha: "),
        ("bound: {c_start: 1}", "3:9", "bound.c_start: "),
        ("candidates: {explicit: [2, 2.5]}", "3:28", "candidates.explicit.1: "),
        ("clustering: {gamma: 0.5}", "3:14", "clustering.gamma: "),
        ("rungs: {rungs_kimg: [3, 2]}", "3:9", "rungs.rungs_kimg: "),
        ("images2: {max_bad_fraction: 2}", "3:1", "unknown key images2; did you mean images?"),
    ],
)
def test_a_bad_line_of_yaml_ends_the_verb_with_file_line_and_column(run, tmp_path, monkeypatch, text, where, told):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "space.yaml").write_text(f"name: x\nimages: {{source: nowhere}}\n{text}\n")
    code, out, err = run("search", "space.yaml", "--study", "study")
    if told is None:
        # YAML 1.1 reads `no` as false, YAML 1.2 as a word; pydantic takes the word for false, so nothing is lost.
        assert (code, "nowhere" in err) == (3, True)
        return
    assert (code, out) == (2, "")
    assert f"space.yaml:{where}: " in err
    assert told in err
    assert "Traceback" not in err
    assert not (tmp_path / "hacked").exists()
    assert not (tmp_path / "study").exists()


def test_a_yaml_file_of_more_than_a_megabyte_is_not_parsed(run, tmp_path):
    (tmp_path / "space.yaml").write_text("# " + "x" * 1_000_000 + "\nname: x\n")
    code, out, err = run("search", tmp_path / "space.yaml", "--study", tmp_path / "study")
    assert (code, out) == (2, "")
    assert "a configuration has at most 1,000,000" in err


# Names ----------------------------------------------------------------------------------------------------------------

WILD = [
    "<script>alert(1)</script>.png",
    "=cmd().png",
    "\x1b[31mred\x1b]0;title\x07.png",
    "..png",
    "a\nb.png",
    "\u202egnp.png",
]


@pytest.fixture
def wild(tmp_path) -> Path:
    """Images whose names are attacks, and one that is no image."""
    folder = tmp_path / "images"
    for name in WILD:
        path = folder / name.replace("/", "_")
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(png((len(name), 0, 0)))
    (folder / "\x1b[2Jbad.png").write_bytes(b"")
    return folder


def test_names_from_outside_are_shown_and_not_obeyed(run, wild, tmp_path):
    for arguments in (
        ("inspect", wild),
        ("inspect", wild, "--json"),
        ("import", wild, "--out", tmp_path / "set", "--max-bad-fraction", "0.5"),
        ("import", wild, "--out", tmp_path / "set", "--max-bad-fraction", "0.5", "--json"),
        ("import", wild, "--out", tmp_path / "other", "--on-bad", "fail"),
    ):
        code, out, err = run("images", *arguments, "-q")
        assert code == (3 if "fail" in arguments else 0), err
        assert not {"\x1b", "\x07", "\u202e"} & set(out + err)
        assert "[2Jbad.png" in out + err


def test_names_from_outside_are_kept_as_they_are_and_never_become_paths(run, wild, tmp_path):
    run("images", "import", wild, "--out", tmp_path / "set", "--max-bad-fraction", "0.5", "-q")
    images = open_image_set(tmp_path / "set")
    # A name that begins with a dot is passed over.
    assert set(images.names) == {path.name for path in wild.iterdir() if not path.name.startswith(".")} - {
        "\x1b[2Jbad.png"
    }
    for out in ("files", "files.zip", "files.parquet"):
        assert run("images", "export", tmp_path / "set", "--out", tmp_path / out, "-q")[0] == 0
    with zipfile.ZipFile(tmp_path / "files.zip") as archive:
        members = set(archive.namelist())
    assert members == {f"00000/img{row:08d}.png" for row in range(len(images))} | {"dataset.json"}
    assert {str(p.relative_to(tmp_path / "files")) for p in (tmp_path / "files").rglob("*.*")} == members
    names = [image["path"] for image in pq.read_table(tmp_path / "files.parquet")["image"].to_pylist()]
    assert names == list(images.names)


def test_a_key_of_yaml_that_is_an_escape_sequence_is_shown_as_one(run, tmp_path):
    (tmp_path / "space.yaml").write_text('name: x\nimages: {source: x}\n"\\e[31mred": 1\n')
    code, out, err = run("search", tmp_path / "space.yaml", "--study", tmp_path / "study")
    assert (code, out) == (2, "")
    assert "unknown key \\x1b[31mred" in err
    assert "\x1b" not in err
