"""How a verb opens a study, and what it says where it cannot."""

import pytest

from cedm_ray.verbs.options import needs_cluster


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
    ("address", "environment", "gpus", "needed"),
    [(None, "", 1, False), ("a:1", "", 0, True), (None, "a:1", 0, True), (None, "", 2, True)],
)
def test_a_cluster_is_needed_where_one_is_named_or_there_are_several_gpus(
    monkeypatch, address, environment, gpus, needed
):
    monkeypatch.setenv("RAY_ADDRESS", environment)
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    assert needs_cluster(address) is needed
