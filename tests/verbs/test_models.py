"""The verb of one model, as far as it goes without Ray: test_end_to_end and tests/distributed train."""

import json

import pytest
import yaml


def test_a_trial_of_images_that_are_not_there_ends_with_3_before_ray_starts(run, tmp_path):
    (tmp_path / "space.yaml").write_text("name: x\nimages: {source: nowhere}\n")
    code, out, err = run("train", tmp_path / "space.yaml", "--study", tmp_path / "study", "-q")
    assert (code, out) == (3, "")
    assert "nowhere" in err


def test_a_finished_trial_prints_its_rungs_again(run, done, tiny_space, tmp_path):
    space = tmp_path / "space.yaml"
    space.write_text(yaml.safe_dump(tiny_space.model_dump(mode="json")))
    code, out, err = run("train", space, "--study", done.path)
    assert (code, err) == (0, "")
    header, *rows, end = out.splitlines()
    assert header.split()[0] == "kimg"
    assert [row.split()[1] for row in rows] == [f"{r.distance:.4g}" for r in done.reports("unconditional")]
    assert end.startswith("unconditional trained to")


def test_features_and_a_number_of_clusters_exclude_each_other(run, done, tiny_space, tmp_path):
    space = tmp_path / "space.yaml"
    space.write_text(yaml.safe_dump(tiny_space.model_dump(mode="json")))
    arguments = ("train", space, "--study", done.path, "--condition", "features")
    code, out, err = run(*arguments, "--num-clusters", "4")
    assert (code, out) == (2, "")
    assert "exclude each other" in err


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
    code, _, err = run("train", space_file, "--study", study, "--condition", "features", "--dry-run", "-q")
    assert code == 2
    assert "has no features yet" in err
    assert not study.exists()


def test_a_dry_run_in_a_study_writes_nothing_and_checks_the_space(run, done, space_file, tiny_space, monkeypatch):
    monkeypatch.setattr("cedm_ray.search.rehearsal.CPU_S", 0.1)
    space_file.write_text(json.dumps(tiny_space.model_dump(mode="json")))
    before = {path: path.stat().st_mtime_ns for path in done.path.rglob("*")}
    code, printed, _ = run("train", space_file, "--study", done.path, "--dry-run", "-q")
    assert code == 0
    assert "on the study's images" in printed
    code, printed, _ = run(
        "train", space_file, "--study", done.path, "--condition", "features", "--dry-run", "--json", "-q"
    )
    assert (code, json.loads(printed)["conditions"][0]["feature_dim"]) == (0, 16)
    space_file.write_text(json.dumps({**tiny_space.model_dump(mode="json"), "seed": 4}))
    code, _, err = run("train", space_file, "--study", done.path, "--dry-run", "-q")
    assert code == 2
    assert "seed was 3 and is 4" in err
    assert {path: path.stat().st_mtime_ns for path in done.path.rglob("*")} == before
