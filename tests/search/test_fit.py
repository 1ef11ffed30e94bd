"""One TEMI fit of a study, from features to record."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from cedm_ray import durable
from cedm_ray.clustering import fused
from cedm_ray.clustering.heads import Heads
from cedm_ray.clustering.kmeans import KMeansProgress
from cedm_ray.clustering.pairs import load_temi_data
from cedm_ray.clustering.temi import TemiProgress
from cedm_ray.errors import StorageError
from cedm_ray.features.store import open_features
from cedm_ray.search import fit as room
from cedm_ray.search.clustering_head import open_head
from cedm_ray.search.clusterings import features_shape
from cedm_ray.search.confidence import open_confidence
from cedm_ray.search.fit import run_fit
from cedm_ray.search.goals import FitTask
from cedm_ray.search.results import Notice
from cedm_ray.search.space import SearchSpace
from cedm_ray.search.study import FitRecord, Study

TASK = FitTask(num_clusters=6, repeat=0)


def features_of(study):
    _, provenance = durable.read_tensors(study.neighbors)
    return np.array(open_features(study.features(provenance["features"])))


def test_record_counts_the_clusters_of_the_labels(fresh, tiny_space):
    events = list(run_fit(fresh, tiny_space, TASK, device="cpu"))
    assert [type(event) for event in events] == [TemiProgress] * 4
    record = fresh.fits()["c00006-r0"]
    tensors, provenance = durable.read_tensors(fresh.fit("c00006-r0"))
    assert (record.num_clusters, record.repeat) == (6, 0)
    assert record.num_used == len(np.unique(tensors["labels"]))
    assert record.loss == tensors["head_losses"].min()
    assert provenance["method"] == "temi"
    assert provenance["seed"] == tiny_space.seed
    assert provenance["extractor"] == "pixels"


def test_kept_head_gives_the_kept_labels(fresh, tiny_space):
    list(run_fit(fresh, tiny_space, TASK, device="cpu"))
    tensors, _ = durable.read_tensors(fresh.fit("c00006-r0"))
    head = {name.removeprefix("head."): torch.from_numpy(a) for name, a in tensors.items() if name.startswith("head.")}
    mean, scale = head.pop("feature_mean"), head.pop("feature_scale")
    rows = (torch.from_numpy(features_of(fresh)) - mean) / scale
    net = Heads(1, rows.shape[1], 6, hidden=32, bottleneck=16, generator=torch.Generator())
    net.load_state_dict(head)
    with torch.no_grad():
        labels = net(rows)[0].argmax(dim=-1)
    assert labels.tolist() == tensors["labels"].tolist()


def test_repeats_have_seeds_of_their_own(fresh, tiny_space):
    found = []
    for repeat in (0, 1):
        task = FitTask(num_clusters=6, repeat=repeat)
        list(run_fit(fresh, tiny_space, task, device="cpu"))
        tensors, provenance = durable.read_tensors(fresh.fit(task.name))
        found.append((provenance["seed"], tensors["head_losses"].tolist()))
    assert [seed for seed, _ in found] == [3, 4]
    assert found[0][1] != found[1][1]


def test_the_next_fit_of_a_process_finds_features_and_neighbors_loaded(fresh, tiny_space, monkeypatch):
    loaded = []

    def load(*arguments, **how):
        loaded.append(how["device"])
        return load_temi_data(*arguments, **how)

    monkeypatch.setattr(room, "_last", None)
    monkeypatch.setattr(room, "load_temi_data", load)
    for num_clusters in (6, 8):
        list(run_fit(fresh, tiny_space, FitTask(num_clusters=num_clusters, repeat=0), device="cpu"))
    assert loaded == ["cpu"]
    plain = tiny_space.model_dump(mode="json")
    other = SearchSpace.model_validate({**plain, "clustering": {**plain["clustering"], "feature_norm": "l2"}})
    list(run_fit(fresh, other, FitTask(num_clusters=9, repeat=0), device="cpu"))
    assert loaded == ["cpu", "cpu"]


def test_a_recorded_fit_is_not_done_again(fresh, tiny_space):
    list(run_fit(fresh, tiny_space, TASK, device="cpu"))
    before = fresh.fit("c00006-r0").stat().st_mtime_ns
    assert list(run_fit(fresh, tiny_space, TASK, device="cpu")) == []
    assert fresh.fit("c00006-r0").stat().st_mtime_ns == before


def test_a_fit_that_was_cut_short_left_no_record_and_is_done_again_with_the_same_labels(fresh, tiny_space):
    events = run_fit(fresh, tiny_space, TASK, device="cpu")
    next(events)
    events.close()
    assert "c00006-r0" not in fresh.fits()
    labels = []
    for _ in range(2):
        list(run_fit(fresh, tiny_space, TASK, device="cpu"))
        labels.append(durable.read_tensors(fresh.fit("c00006-r0"))[0]["labels"].tolist())
        (fresh.path / "fits" / "c00006-r0.json").unlink()
    assert labels[0] == labels[1]


def test_dead_between_tensors_and_record_is_not_acknowledged(fresh, tiny_space, monkeypatch):
    def full(path, value):
        raise StorageError("full")

    with monkeypatch.context() as patch:
        patch.setattr(durable, "write_record", full)
        with pytest.raises(StorageError):
            list(run_fit(fresh, tiny_space, TASK, device="cpu"))
    assert fresh.fit("c00006-r0").exists()
    assert "c00006-r0" not in fresh.fits()
    list(run_fit(fresh, tiny_space, TASK, device="cpu"))
    assert isinstance(fresh.fits()["c00006-r0"], FitRecord)


def test_fewer_images_than_neighbors_are_clustered_with_the_neighbors_there_are(
    tiny_space, digit_folder, tmp_path, study_tools
):
    few = tmp_path / "few"
    few.mkdir()
    for path in sorted(digit_folder.iterdir())[:12]:
        (few / path.name).write_bytes(path.read_bytes())
    plain = tiny_space.model_dump(mode="json")
    clustering = {**plain["clustering"], "num_neighbors": 50}
    space = SearchSpace.model_validate({**plain, "images": {"source": str(few)}, "clustering": clustering})
    study, shown = Study(tmp_path / "study"), []
    study_tools.prepare(study, space, shown.append)
    assert "clustering.num_neighbors is 50 and there are 12 images: 11 are used" in [
        event.text for event in shown if hasattr(event, "text")
    ]
    list(run_fit(study, space, FitTask(num_clusters=3, repeat=0), device="cpu"))
    assert study.fits()["c00003-r0"].num_clusters == 3


def test_a_trial_may_ask_for_k_means_which_is_scikit_learns(fresh, tiny_space):
    task = FitTask(num_clusters=6, repeat=0, changes=(("clustering.method", "kmeans"),))
    events = list(run_fit(fresh, tiny_space.changed(task.changes), task, device="cpu"))
    assert [type(event) for event in events] == [KMeansProgress] * tiny_space.kmeans.n_init
    oracle = KMeans(n_clusters=6, n_init=10, max_iter=300, tol=1e-4, random_state=tiny_space.seed)
    labels = oracle.fit_predict(features_of(fresh).astype(np.float32))
    record = fresh.fits()[task.name]
    tensors, provenance = durable.read_tensors(fresh.fit(task.name))
    assert adjusted_rand_score(labels, tensors["labels"]) == 1
    assert record.loss == pytest.approx(oracle.inertia_, rel=1e-5)
    assert (record.num_used, record.task) == (6, task)
    assert (provenance["method"], provenance["extractor"]) == ("kmeans", "pixels")
    assert list(run_fit(fresh, tiny_space, task, device="cpu")) == []


def test_a_trial_may_ask_for_the_features_of_another_extractor(fresh, tiny_space, color_network, study_tools):
    other = str(color_network)
    also = {"features.extractor": ["pixels", other]}
    space = SearchSpace.model_validate({**tiny_space.model_dump(), "candidates": {"also": also}})
    fresh.path.joinpath("space.json").unlink()
    images = study_tools.prepare(fresh, space)
    task = FitTask(num_clusters=3, repeat=0, changes=(("features.extractor", other),))
    list(run_fit(fresh, space.changed(task.changes), task, device="cpu"))
    tensors, provenance = durable.read_tensors(fresh.fit(task.name))
    assert provenance["extractor"] == other
    stored = np.array(open_features(fresh.features(provenance["features"])))
    assert np.allclose(stored, study_tools.mean_colors(images.pixels), atol=1e-4)
    # The head was trained on these four features and gives its own labels on them.
    head = open_head(fresh, 3, fit=task.name)
    assert head(torch.from_numpy(stored)).argmax(dim=1).tolist() == tensors["labels"].tolist()
    confidence = open_confidence(fresh, space, 3, "cpu", fit=task.name)
    assert confidence.probabilities(images.pixels).argmax(axis=1).tolist() == tensors["labels"].tolist()
    assert features_shape(fresh, other) == (300, 4)
    assert features_shape(fresh) == (300, 16)


def test_features_are_those_of_the_page_cache_and_not_a_copy(fresh, tiny_space, monkeypatch):
    monkeypatch.setattr(room, "_last", None)
    plain = tiny_space.model_dump(mode="json")
    space = SearchSpace.model_validate({**plain, "clustering": {**plain["clustering"], "feature_norm": "none"}})
    list(run_fit(fresh, space, TASK, device="cpu"))
    rows = room._last[1].rows
    # What the kernel says of the memory that the steps read: a file, whose pages all processes of a machine share.
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    bounds = [([int(end, 16) for end in place.split("-")], rest) for place, *rest in maps]
    mapping = [rest for (start, end), rest in bounds if start <= rows.data_ptr() < end]
    assert [rest[-1].startswith(str(fresh.path / "features")) for rest in mapping] == [True]
    assert "w" not in mapping[0][0]


def test_what_a_fit_has_to_note_is_told_once_in_a_process(fresh, tiny_space, monkeypatch):
    def fails(*_):
        raise RuntimeError("no compiler here")

    torch._dynamo.reset()
    monkeypatch.setattr(fused, "BACKEND", fails)
    monkeypatch.setattr(room, "_said", set())
    plain = tiny_space.model_dump(mode="json")
    space = SearchSpace.model_validate({**plain, "clustering": {**plain["clustering"], "compile": True}})
    told = []
    for num_clusters in (6, 7):
        events = run_fit(fresh, space, FitTask(num_clusters=num_clusters, repeat=0), device="cpu")
        told += [event for event in events if isinstance(event, Notice)]
    assert [notice.text for notice in told] == [told[0].text]
    assert "no compiler here" in told[0].text
