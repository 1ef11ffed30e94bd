"""The verb that makes images."""

import shutil
import zipfile

import pytest
from PIL import Image

from cedm_ray.search.results import UNCONDITIONAL


@pytest.mark.parametrize("seeds", ["", "x", "5-3", "-5", "1-", "1-2-3", "²", "1.5", "4294967296", "0-4294967296"])
def test_bad_seeds_end_with_2(run, finished, tmp_path, seeds):
    code, _, err = run("sample", finished.path, f"--seeds={seeds}", "--out", tmp_path / "out", "-q")
    assert code == 2
    assert "--seeds must be one number or A-B" in err


def test_sample_writes_what_it_is_told_and_prints_the_paths(run, finished, tmp_path):
    grid, out = tmp_path / "grid.png", tmp_path / "out.zip"
    code, printed, err = run("sample", finished.path, "--seeds", "5-8", "--grid", grid, "--out", out, "-q")
    assert (code, err) == (0, "")
    assert printed.splitlines() == [str(grid), str(out)]
    with zipfile.ZipFile(out) as archive:
        assert archive.namelist() == [f"0000000{seed}.png" for seed in (5, 6, 7, 8)]
    assert run("sample", finished.path, "--seeds", "7", "--out", tmp_path / "one", "-q")[0] == 0
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == ["00000007.png", "samples.json"]


def test_sample_refuses_what_the_study_does_not_have(run, finished, tmp_path):
    out = ("--out", tmp_path / "out", "-q")
    code, _, err = run("sample", finished.path, "--condition", "list:999", *out)
    assert code == 2
    assert "was not trained on a cluster 999" in err
    code, _, err = run("sample", finished.path, "--trial", "c09999", *out)
    assert code == 2
    assert UNCONDITIONAL in err


def test_a_place_that_cannot_be_written_ends_with_7(run, finished, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for name in ("out.zip", "out.npz", "out"):
        code, _, err = run("sample", finished.path, "--num", "2", "--out", tmp_path / "file" / name, "-q")
        assert code == 7
        assert f"cannot write {tmp_path}/file/{name}" in err


def test_confidence_says_how_many_were_drawn_and_kept(run, finished, tmp_path):
    out = ("--num", "8", "--out", tmp_path / "out", "-q")
    code, printed, err = run("sample", finished.path, "--min-confidence", "0.01", *out)
    assert (code, printed) == (0, f"{tmp_path / 'out'}\n")
    assert err == "kept 8 of 8 images drawn; 0 seeds have none; 100.0% of the training images reach 0.01\n"
    none = ("--num", "3", "--max-tries", "2", "--grid", tmp_path / "none.png", "-q")
    code, printed, err = run("sample", finished.path, "--min-confidence", "1", *none)
    assert (code, printed) == (5, "")
    assert "kept 0 of 6 images drawn; 3 seeds have none; 0.0% of the training images reach 1" in err


def test_guidance_and_conditions_reach_the_sampler(run, finished, tmp_path):
    def images(name, *options):
        assert run("sample", finished.path, "--num", "4", "--out", tmp_path / name, "-q", *options)[0] == 0
        with zipfile.ZipFile(tmp_path / name) as archive:
            return [archive.read(entry) for entry in archive.namelist()]

    plain = images("plain.zip")
    guided = images("guided.zip", "--guide", f"{UNCONDITIONAL}@0.384", "--guidance", "3")
    assert plain != guided
    assert images("again.zip", "--condition", "q") == plain
    code, _, err = run("sample", finished.path, "--guidance", "1", "--grid", tmp_path / "x.png", "-q")
    assert code == 2
    assert "label_dropout" in err
    code, _, err = run("sample", finished.path, "--condition", "all", "--grid", tmp_path / "x.png", "-q")
    assert code == 2
    assert "q, uniform or list:3,5,7" in err


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("clusters", ["--rows", "2"]),
        ("sweep", ["--rows", "2", "--trials", f"{UNCONDITIONAL},c00008@0.512"]),
        ("classes", ["--trial", "c00008", "--against", "c00008"]),
        ("confidence", ["--rows", "1", "--candidates", "16"]),
    ],
)
def test_every_figure_is_drawn(run, finished, tmp_path, kind, options):
    out = tmp_path / "figure.png"
    code, printed, err = run("figure", finished.path, kind, "--columns", "3", "--out", out, "-q", *options)
    assert (code, printed, err) == (0, f"{out}\n", "")
    with Image.open(out) as picture:
        assert picture.format == "PNG"
        assert picture.width > 100


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["classes"], "images alone have no classes"),
        (["sweep", "--against", "c00008"], "--against belongs to the figure classes, not to sweep"),
        (["clusters", "--trials", "c00008"], "--trials belongs to the figure sweep"),
        (["sweep", "--clusters", "1"], "--clusters belongs to the figure clusters"),
        (["clusters", "--clusters", "1,x"], "--clusters must be numbers with commas between them"),
        (["portrait"], "portrait"),
    ],
)
def test_figures_that_cannot_be_are_refused(run, finished, tmp_path, options, message):
    code, _, err = run("figure", finished.path, *options, "--out", tmp_path / "figure.png", "-q")
    assert code == 2
    assert message in err


def test_a_sweep_leaves_out_trials_that_have_no_model_yet_and_needs_one(run, finished, fresh, tmp_path):
    out = tmp_path / "figure.png"
    drawn = ("figure", fresh.path, "sweep", "--rows", "2", "--out", out, "-q")
    code, printed, err = run(*drawn)
    assert (code, printed) == (2, "")
    assert "has no trained model yet" in err
    shutil.copytree(finished.checkpoints(UNCONDITIONAL), fresh.checkpoints(UNCONDITIONAL))
    fresh.begin_trial("c00008")
    assert run(*drawn)[0] == 0
    with Image.open(out) as picture:
        alone = picture.size
    assert run(*drawn, "--trials", UNCONDITIONAL)[0] == 0
    with Image.open(out) as picture:
        assert picture.size == alone


def test_a_damaged_best_model_is_named_with_the_way_to_keep_it_anew(run, done, tmp_path):
    with (done.best / "ema.safetensors").open("ab") as file:
        file.write(b"x")
    code, printed, err = run("sample", done.path, "--grid", tmp_path / "x.png", "-q")
    assert (code, printed) == (8, "")
    assert f"remove {done.best} and run the search again" in err
