"""The verbs that need no generative model. What needs Ray is run by test_end_to_end and tests/distributed."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from cedm_ray import durable


@pytest.fixture
def space_file(tmp_path, tiny_space):
    path = tmp_path / "space.yaml"
    path.write_text(yaml.safe_dump(tiny_space.model_dump(mode="json")))
    return path


@pytest.mark.parametrize("verb", [("features",), ("bound",), ("cluster", "--num-clusters", "5")])
def test_images_that_are_not_there_end_with_3_before_ray_starts(run, tmp_path, verb):
    (tmp_path / "space.yaml").write_text("name: x\nimages: {source: nowhere}\n")
    name, *more = verb
    code, out, err = run(name, tmp_path / "space.yaml", "--study", tmp_path / "study", "-q", *more)
    assert (code, out) == (3, "")
    assert "nowhere" in err


def test_bound_prints_every_fit_its_reason_and_both_files_of_a_finished_study(run, done, space_file, tmp_path):
    np.savez(tmp_path / "labels.npz", labels=np.arange(300) % 10)
    labels = ("--labels", tmp_path / "labels.npz")
    code, out, err = run("bound", space_file, "--study", done.path, *labels)
    assert (code, err) == (0, "")
    header, *lines = out.splitlines()
    columns = "C C^u r_C smallest largest perplexity KL ACC NMI ANMI ARI s"
    assert header.split() == columns.split()
    found = durable.read_record(done.path / "bound.json")
    told = [line.split()[0] for line in lines[: len(found["clusterings"])]]
    assert told == [str(line["num_clusters"]) for line in found["clusterings"]]
    neighbors, reason, page = lines[len(told) :]
    assert "20 neighbors" in neighbors
    assert reason == found["reason"]
    assert page == f"Page: {done.bound_page}"
    assert done.bound_page.exists()
    for line in found["clusterings"]:
        table = pq.read_table(done.clustering(line["name"]))
        assert len(set(table["cluster"].to_pylist())) == line["num_used"]
    code, out, err = run("bound", space_file, "--study", done.path, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == durable.read_record(done.path / "bound.json")
    assert json.loads(out)["clusterings"][0]["agreement"] is None


def test_labels_of_other_images_end_with_3(run, done, space_file, tmp_path):
    np.savez(tmp_path / "labels.npz", labels=np.arange(299))
    code, out, err = run("bound", space_file, "--study", done.path, "--labels", tmp_path / "labels.npz")
    assert (code, out) == (3, "")
    assert "299" in err


def test_cluster_takes_a_file_and_says_where_everything_is(run, fresh, space_file, tmp_path):
    np.savez(tmp_path / "mine.npz", ids=np.arange(300) % 7)
    code, out, err = run("cluster", space_file, "--study", fresh.path, "--method", tmp_path / "mine.npz")
    assert (code, err) == (0, "")
    _, line, parquet, page = out.splitlines()
    assert line.split()[:3] == ["7", "7", "1.0000"]
    assert parquet.strip().endswith(".parquet")
    assert page.strip().endswith(".html")
    code, out, _ = run("cluster", space_file, "--study", fresh.path, "--method", tmp_path / "mine.npz", "--json")
    assert code == 0
    assert [entry["num_used"] for entry in json.loads(out)] == [7]


@pytest.mark.parametrize(
    "arguments", [(), ("--num-clusters", "1"), ("--num-clusters", "5,x"), ("--method", "kmeans"), ("--method", "clip")]
)
def test_a_cluster_command_that_means_nothing_ends_with_2(run, fresh, space_file, arguments):
    code, out, err = run("cluster", space_file, "--study", fresh.path, *arguments)
    assert (code, out) == (2, "")
    assert "error: " in err
