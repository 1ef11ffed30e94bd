"""How a verb opens a study, and what it says where it cannot."""

from pathlib import Path

import pytest

from cedm_ray.verbs.options import Target, needs_cluster


def test_a_broken_space_ends_with_2_file_line_and_column(run, tmp_path):
    (tmp_path / "space.yaml").write_text("name: x\nimages: {source: x}\nbuond: {alpha: 0.9}\n")
    code, out, err = run("search", tmp_path / "space.yaml", "--study", tmp_path / "study")
    assert (code, out) == (2, "")
    assert f"error: {tmp_path}/space.yaml:3:1: unknown key buond; did you mean bound?" in err
    # Nothing was begun, so there is no study to write the exit code to.
    assert not (tmp_path / "study").exists()


def test_a_space_without_images_says_how_to_name_them(run, tmp_path):
    (tmp_path / "space.yaml").write_text("name: x\nimages: {}\n")
    code, _, err = run("bound", tmp_path / "space.yaml", "--study", tmp_path / "study")
    assert code == 2
    assert "  to mend it: " in err


def test_a_missing_space_is_named_with_its_absolute_path(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = run("train", "nothing.yaml", "--study", "study")
    assert code == 2
    assert f"cannot read {tmp_path}/nothing.yaml: No such file" in err


@pytest.mark.parametrize("verb", ["sample", "evaluate", "report"])
def test_a_folder_that_is_no_study_ends_with_2_and_the_command_to_begin_one(run, tmp_path, verb):
    more = ["--out", tmp_path / "out"] if verb == "sample" else []
    code, out, err = run(verb, tmp_path, *more)
    assert (code, out) == (2, "")
    assert "is not a study" in err
    assert "cedm-ray search SPACE --study" in err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("sample", "s", "--out", "x.gif"), "x.gif must be a folder or *.zip or *.npz"),
        (("sample", "s", "--out", "x.PNG"), "x.PNG must be a folder or *.zip or *.npz"),
        (("sample", "s", "--grid", "x.jpg"), "x.jpg must be *.png"),
        (("figure", "s", "sweep", "--out", "x"), "x must be *.png"),
        (("images", "inspect", "p", "--sheet", "x.pdf"), "x.pdf must be *.png"),
        (("images", "export", "s", "--out", "x.tar"), "x.tar must be a folder or *.zip or *.parquet"),
    ],
)
def test_a_file_of_a_kind_that_is_not_written_is_refused_and_becomes_no_folder(
    run, tmp_path, monkeypatch, arguments, told
):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert told in err
    assert list(tmp_path.iterdir()) == []


def test_folders_of_any_name_and_files_of_either_case_are_places_to_write_to():
    place = Target(".zip", folder=True)
    for name in ("run-0.5", "samples.v2", "samples", "a.b/c", "x.zip", "x.ZIP"):
        assert place.convert(name, None, None) == Path(name)


@pytest.mark.parametrize(
    ("address", "environment", "gpus", "needed"),
    [(None, "", 1, False), ("a:1", "", 0, True), (None, "a:1", 0, True), (None, "", 2, True)],
)
def test_a_cluster_is_needed_where_one_is_named_or_there_are_several_gpus(
    monkeypatch, address, environment, gpus, needed
):
    monkeypatch.setenv("RAY_ADDRESS", environment)
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    assert needs_cluster(address) is needed
