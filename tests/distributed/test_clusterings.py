"""Clusterings made on request: by TEMI on a cluster, and by its rivals."""

import re
from types import SimpleNamespace

import numpy as np
import pytest

from cedm_ray import durable
from cedm_ray.clustering.assignment import ClusterAssignment
from cedm_ray.clustering.assignment_file import read_assignment, write_assignment
from cedm_ray.distributed import clusterings
from cedm_ray.distributed.clusterings import run_clusterings
from cedm_ray.errors import ConfigurationError, InputDataError
from cedm_ray.features.store import open_features
from cedm_ray.report.publish import publish_clustering
from cedm_ray.search.results import ClusteringSummary
from cedm_ray.search.rivals import Wanted
from cedm_ray.search.study import FitRecord


def lines(shown):
    return [event.name for event in shown if isinstance(event, ClusteringSummary)]


def test_temi_and_kmeans_give_what_was_asked_for_and_never_do_it_again(cluster, study, space, shown, tmp_path):
    wanted = Wanted(method="temi", sizes=(5, 3))
    _, found, failures = run_clusterings(study, space, wanted, address=None, show=shown.append)
    names = ["temi-c00005-r0", "temi-c00003-r0"]
    assert [clustering.summary.name for clustering in found] == names
    assert sorted(lines(shown)) == sorted(names)
    assert failures == {}
    assert set(study.fits()) == {"c00005-r0", "c00003-r0"}
    # A rival on the same features.
    rival = Wanted(method="kmeans", sizes=(4,))
    _, (kmeans,), _ = run_clusterings(study, space, rival, address=None, show=shown.append)
    key = durable.read_tensors(study.neighbors)[1]["features"]
    features = open_features(study.features(key))
    means = np.stack([features[kmeans.assignment.labels == c].mean(axis=0) for c in range(4)])
    nearest = ((features[:, None] - means) ** 2).sum(axis=2).argmin(axis=1)
    assert (nearest == kmeans.assignment.labels).mean() > 0.99
    # Kept at once, and not only when everything that was asked for is done.
    written = study.clustering("kmeans-c00004").read_bytes()
    # Again: what is there is read, and compared with labels that came later.
    np.savez(tmp_path / "labels.npz", labels=kmeans.assignment.labels)
    before = {path: path.stat().st_mtime_ns for path in study.path.rglob("fits/*")}
    again = Wanted(method="kmeans", sizes=(4,), labels=str(tmp_path / "labels.npz"))
    _, (same,), _ = run_clusterings(study, space, again, address=None, show=shown.append)
    assert same.summary.agreement.accuracy == 1
    assert study.clustering("kmeans-c00004").read_bytes() == written
    run_clusterings(study, space, wanted, address=None, show=shown.append)
    assert {path: path.stat().st_mtime_ns for path in study.path.rglob("fits/*")} == before
    with pytest.raises(ConfigurationError, match="must not exceed the 300 images, got 301"):
        run_clusterings(study, space, Wanted(method="temi", sizes=(301,)), address=None, show=shown.append)


def test_labels_and_files_need_no_cluster(study, space, shown, tmp_path):
    ids = np.arange(300) % 7
    np.savez(tmp_path / "mine.npz", ids=ids)
    given = str(tmp_path / "mine.npz")
    wanted = Wanted(method=given, labels=given)
    images, (imported,), _ = run_clusterings(study, space, wanted, address=None, show=shown.append)
    assert (imported.assignment.labels == ids).all()
    assert imported.summary.method == "imported"
    assert imported.summary.agreement.ari == 1
    path, page = publish_clustering(study, images, imported)
    again = read_assignment(path, num_images=300, names=images.names)
    assert again.provenance["file"] == "mine.npz"
    assert page.exists()
    _, (truth,), _ = run_clusterings(
        study, space, Wanted(method="labels", labels=given), address=None, show=shown.append
    )
    assert truth.summary.method == "labels"
    assert truth.summary.num_used == 7
    np.savez(tmp_path / "short.npz", ids=ids[:299])
    short = Wanted(method=str(tmp_path / "short.npz"))
    with pytest.raises(InputDataError, match="299"):
        run_clusterings(study, space, short, address=None, show=shown.append)


def test_clip_takes_each_image_for_the_class_whose_prompts_are_nearest(study, space, shown, monkeypatch):
    """The encoder is a stand-in that embeds images and texts on a circle; the rest is the real way."""
    angles = np.linspace(0, np.pi, 300)
    features = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)

    def embed_texts(texts):
        at = np.array([0.1 if "cat" in text else 2.0 for text in texts])
        return 3 * np.stack([np.cos(at), np.sin(at)], axis=1)

    def other_features(study, space, extractor, weights, *, address, show):
        assert extractor == "openclip_vitbigg14"
        return clusterings.run_images(study, space, show=show), "0" * 64

    monkeypatch.setattr(clusterings, "run_other_features", other_features)
    monkeypatch.setattr(clusterings, "open_text_encoder", lambda *a, **k: SimpleNamespace(embed_texts=embed_texts))
    monkeypatch.setattr(clusterings, "open_features", lambda folder: features)
    wanted = Wanted(method="clip", classes=("cat", "dog"))
    _, (found,), _ = run_clusterings(study, space, wanted, address=None, show=shown.append)
    assert (found.assignment.labels == (angles > 1.05)).all()
    assert found.assignment.provenance["classes"] == ["cat", "dog"]
    assert len(found.assignment.provenance["prompts"]) == 5
    assert found.summary.name.startswith("clip-")


def test_a_fit_that_failed_hides_none_of_the_others(study, space, shown):
    """Fits that are on record need no cluster; the failed one is told with its text."""
    images = clusterings.run_images(study, space, show=shown.append)
    labels = np.arange(300, dtype=np.int32) % 5
    record = FitRecord(num_clusters=5, repeat=0, num_used=5, loss=0.0, seconds=1.0)
    study.write_fit(record, "c00005-r0", {"labels": labels}, {"method": "temi"})
    study.write_failure("c00009-r0", "it broke")
    wanted = Wanted(method="temi", sizes=(9, 5))
    _, found, failures = run_clusterings(study, space, wanted, address=None, show=shown.append)
    assert [clustering.summary.name for clustering in found] == ["temi-c00005-r0"]
    assert failures == {"c00009-r0": "it broke"}
    assert len(images) == 300


def test_what_an_imported_file_calls_itself_stays_a_word(study, space, shown, tmp_path):
    assignment = ClusterAssignment(labels=np.arange(300, dtype=np.int32) % 3, num_clusters=3, method="../../Evil")
    names = clusterings.run_images(study, space, show=shown.append).names
    write_assignment(tmp_path / "theirs.parquet", assignment, names)
    wanted = Wanted(method=str(tmp_path / "theirs.parquet"))
    _, (found,), _ = run_clusterings(study, space, wanted, address=None, show=shown.append)
    assert re.fullmatch(r"_evil-[0-9a-f]{8}-c00003", found.summary.name)
    assert study.clustering(found.summary.name).exists()
