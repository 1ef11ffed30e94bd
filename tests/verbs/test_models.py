"""The verbs of one model. Those that need Ray are not run."""

import json
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


def test_evaluate_prints_the_distance_of_the_last_rung(run, finished):
    code, out, _ = run("evaluate", finished.path, "--trial", UNCONDITIONAL, "--json", "-q")
    told = json.loads(out)
    assert code == 0
    assert told["distance"] == finished.reports(UNCONDITIONAL)[-1].distance
    code, out, _ = run("evaluate", finished.path, "--num", "8", "-q")
    assert code == 0
    assert dict(line.split(maxsplit=1) for line in out.splitlines())["num_samples"] == "8"


@pytest.fixture
def space_file(tmp_path, tiny_space):
    path = tmp_path / "tiny.yaml"
    plain = tiny_space.model_dump(mode="json")
    path.write_text(json.dumps({**plain, "images": {"size": 8}}))
    return path


def test_a_dry_run_prints_what_training_will_take_and_leaves_no_trace(run, space_file, tmp_path, monkeypatch):
    monkeypatch.setattr("cedm_ray.search.rehearsal.CPU_S", 0.1)
    study = tmp_path / "study"
    arguments = ("train", space_file, "--study", study, "--num-clusters", "4", "--dry-run", "-q")
    code, printed, err = run(*arguments)
    assert (code, err) == (0, "")
    for word in (
        "c00004",
        "not fitted yet",
        "parameters",
        "GiB predicted",
        "images/s",
        "h to 0.512 kimg",
        "random 8x8",
    ):
        assert word in printed
    code, printed, _ = run(*arguments, "--json")
    found = json.loads(printed)
    assert found["images_per_s"] > 0
    assert found["conditions"][0]["num_clusters"] == 4
    assert not study.exists()


def test_a_dry_run_in_a_study_writes_nothing_and_checks_the_space(run, done, space_file, tiny_space, monkeypatch):
    monkeypatch.setattr("cedm_ray.search.rehearsal.CPU_S", 0.1)
    space_file.write_text(json.dumps(tiny_space.model_dump(mode="json")))
    before = {path: path.stat().st_mtime_ns for path in done.path.rglob("*")}
    code, printed, _ = run("train", space_file, "--study", done.path, "--dry-run", "-q")
    assert code == 0
    assert "on the study's images" in printed
    space_file.write_text(json.dumps({**tiny_space.model_dump(mode="json"), "seed": 4}))
    code, _, err = run("train", space_file, "--study", done.path, "--dry-run", "-q")
    assert code == 2
    assert "seed was 3 and is 4" in err
    assert {path: path.stat().st_mtime_ns for path in done.path.rglob("*")} == before
