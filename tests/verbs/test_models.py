"""The verbs of one model. Those that need Ray are not run."""

import zipfile

import pytest

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
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["00000007.png"]


def test_sample_refuses_what_the_study_does_not_have(run, finished, tmp_path):
    out = ("--out", tmp_path / "out", "-q")
    code, _, err = run("sample", finished.path, "--cluster", "999", *out)
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
