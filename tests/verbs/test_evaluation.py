"""What `evaluate` prints, and how it ends where it is given something else."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from cedm_ray.search.results import UNCONDITIONAL


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CEDM_RAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 3), dtype=np.uint8)
    for index, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / "images" / f"{index:02d}.png")
    return tmp_path / "images"


def test_a_study_gets_a_table_and_the_same_again(run, done):
    asked = ("evaluate", done.path, "--num", "16", "--sets", "2", "--metrics", "fd,prdc")
    code, out, err = run(*asked, "-q")
    assert (code, err) == (0, "")
    title, head, first, *rest = out.splitlines()
    assert "seeds 0-15, 16-31, against 300 images of" in title
    assert head.split() == ["metric", "mean", "std", "set", "1", "set", "2", "error", "images", "detector"]
    assert first.split()[0] == "FD[pixels]"
    assert len(rest) == 5
    assert rest[-1].startswith("Sample efficiency: ")
    assert run(*asked, "-q")[1] == out


def test_json_has_every_set(run, done):
    asked = ("--num", "16", "--trial", UNCONDITIONAL, "--json", "-q")
    code, out, _ = run("evaluate", done.path, *asked)
    told = json.loads(out)
    assert code == 0
    (score,) = told["scores"]
    assert len(score["values"]) == len(told["seeds"]) == 3
    assert score["mean"] == pytest.approx(np.mean(score["values"]))
    assert score["std"] == pytest.approx(np.std(score["values"], ddof=1))


def test_files_against_a_study(run, finished, folder):
    code, out, _ = run("evaluate", folder, "--reference", finished.path)
    assert code == 0
    assert out.splitlines()[0].startswith("images, 30 images, against 300 images of")
    assert out.splitlines()[1].split() == ["metric", "value", "error", "images", "detector"]


def test_images_all_alike_are_no_result_however_quiet(run, finished, tmp_path):
    np.savez(tmp_path / "alike.npz", images=np.full((30, 8, 8, 3), 7, dtype=np.uint8))
    code, out, _ = run("evaluate", tmp_path / "alike.npz", "--reference", finished.path, "-q")
    assert code == 0
    assert out.splitlines()[-1] == "The images of alike are all alike: no number of them is a result"


def test_versus_prints_the_interval(run, done):
    code, out, _ = run("evaluate", done.path, "--num", "24", "--sets", "1", "--versus", UNCONDITIONAL, "-q")
    assert code == 0
    (line,) = [line for line in out.splitlines() if f"less that of {UNCONDITIONAL}: " in line]
    assert "95% interval" in line
    assert "was trained on" not in line


def test_versus_an_earlier_rung_says_that_training_differs(run, done):
    first, last = sorted(path.name for path in done.checkpoints(UNCONDITIONAL).iterdir())
    versus = f"{UNCONDITIONAL}@{int(first) / 1000:g}"
    _, out, _ = run("evaluate", done.path, "--num", "24", "--sets", "1", "--versus", versus, "-q")
    assert f"{versus} was trained on {int(first):,} images, " in out
    assert f"on {int(last):,}\n" in out


def test_an_earlier_result_is_compared_or_refused(run, done, tmp_path):
    asked = ("evaluate", done.path, "--sets", "2", "-q")
    (tmp_path / "earlier.json").write_text(run(*asked, "--num", "16", "--json")[1])
    code, out, _ = run(*asked, "--num", "16", "--against", tmp_path / "earlier.json")
    assert code == 0
    assert "FD[pixels] less the earlier one: 0 ± 0" in out
    code, out, err = run(*asked, "--num", "18", "--against", tmp_path / "earlier.json")
    assert (code, out) == (2, "")
    assert "do not compare: they differ in the number of images (18 and 16)" in err
    code, _, err = run(*asked, "--num", "18", "--against", tmp_path / "none.json")
    assert code == 2
    assert "none.json" in err


@pytest.mark.parametrize(
    ("spoil", "code", "message"),
    [
        (lambda folder: [path.unlink() for path in folder.iterdir()], 3, "no images in"),
        (lambda folder: Image.new("RGB", (9, 9)).save(folder / "x.png"), 3, "x.png has side 9"),
        (lambda folder: (folder / "07.png").write_bytes(b"nothing"), 3, "07.png"),
        (lambda folder: [path.unlink() for path in sorted(folder.iterdir())[1:]], 3, "at least 2 are needed"),
    ],
)
def test_bad_images_are_named(run, finished, folder, spoil, code, message):
    spoil(folder)
    ended, out, err = run("evaluate", folder, "--reference", finished.path, "-q")
    assert (ended, out) == (code, "")
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arrays", "code", "message"),
    [
        ({"labels": np.arange(3)}, 3, "holds no images"),
        ({"images": np.array([None, {}], dtype=object)}, 9, "pickled Python objects"),
        ({"images": np.zeros((4, 8, 8), np.uint8)}, 3, "must be uint8 [n, S, S, 3]"),
    ],
)
def test_arrays_that_are_no_images(run, finished, tmp_path, arrays, code, message):
    np.savez(tmp_path / "a.npz", **arrays)
    ended, out, err = run("evaluate", tmp_path / "a.npz", "--reference", finished.path, "-q")
    assert (ended, out) == (code, "")
    assert message in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--metrics", "fdi"), "did you mean fd"),
        (("--metrics", " ,"), "--metrics names none"),
        (("--metrics", "fid", "--detector", "pixels"), "fid is a measure of inception's features"),
        (("--metrics", "auroc"), "--test"),
        (("--weights", "dinov2=w.pt"), "which no metric asked for uses"),
    ],
)
def test_contradictions_end_with_2(run, finished, options, message):
    code, out, err = run("evaluate", finished.path, "--num", "16", *options, "-q")
    assert (code, out) == (2, "")
    assert message in err


def test_files_without_a_reference_say_what_is_missing(run, folder):
    code, out, err = run("evaluate", folder, "-q")
    assert (code, out) == (2, "")
    assert "--reference IMAGES, or a study; cedm-ray search SPACE --study FOLDER begins one" in err


def test_pixels_need_a_study_to_be_fitted_on(run, folder):
    code, _, err = run("evaluate", folder, "--reference", folder, "--detector", "pixels", "-q")
    assert code == 2
    assert "fitted on the training images of a study" in err


def test_help_names_every_metric(run):
    from cedm_ray.evaluation.scores import MEASURES

    _, out, _ = run("evaluate", "--help")
    assert set(MEASURES) <= set(re.findall(r"\w+", out))
