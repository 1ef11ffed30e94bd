"""Paired pictures: which images stand where, against images sampled one by one from the models."""

import dataclasses
import shutil

import numpy as np
import pytest

from cedm_ray.errors import ConfigurationError
from cedm_ray.report import paired
from cedm_ray.report.figures import amount
from cedm_ray.report.grids import labelled_grid
from cedm_ray.search.confidence import open_confidence
from cedm_ray.search.model import find_model
from cedm_ray.search.results import UNCONDITIONAL, TrialReport
from cedm_ray.search.study import FitRecord, Study
from cedm_ray.search.trial import load_assignment, run_trial

SEED = {"first_seed": 5, "show": [].append}


@pytest.fixture
def drawn(monkeypatch):
    """What each picture was drawn from: (images, names of the rows, of the columns, the rest)."""
    seen = []

    def keep(images, *, rows, columns, **rest):
        seen.append((images.astype(int), list(rows), list(columns), rest))
        return labelled_grid(images, rows=rows, columns=columns, **rest)

    monkeypatch.setattr(paired, "labelled_grid", keep)
    return seen


@pytest.fixture(scope="module")
def with_classes(prepared, finished, tiny_space, tmp_path_factory):
    """Another study of the same images, whose clusters of ten are those of the finished study's c00008, renamed."""
    study = Study(tmp_path_factory.mktemp("classes") / "study")
    shutil.copytree(prepared.path, study.path)
    labels = ((load_assignment(finished, 8).labels + 1) % 8).astype(np.int32)
    record = FitRecord(num_clusters=10, repeat=0, num_used=8, loss=0.0, seconds=0.0)
    study.write_fit(record, "c00010-r0", {"labels": labels}, {"method": "labels"})
    next(event for event in run_trial(study, tiny_space, 10, device="cpu") if isinstance(event, TrialReport))
    return study


def model_of(study, name=None):
    return find_model(study, name, "cpu", [].append)


def images_of(model, seeds, classes=None):
    return np.concatenate(list(model.sample(seeds, classes=classes))).astype(int)


def test_rows_are_clusters_and_columns_are_seeds(finished, drawn):
    model = model_of(finished, "c00008")
    ids = model.meaning.class_ids
    picture = paired.clusters_picture(model, [ids[2], ids[0]], rows=8, columns=3, **SEED)
    ((images, rows, columns, _),) = drawn
    assert columns == ["seed 5", "seed 6", "seed 7"]
    share = model.meaning.counts[2] / 300
    assert rows[0] == f"cluster {ids[2]}\n{share:.1%}"
    assert picture.mode == "RGB"
    for row, k in enumerate((2, 0)):
        assert np.abs(images[row] - images_of(model, [5, 6, 7], [k] * 3)).max() <= 1
    paired.clusters_picture(model, None, rows=2, columns=1, **SEED)
    counts = model.meaning.counts
    assert drawn[1][1][0].startswith(f"cluster {ids[int(np.argmax(counts))]}\n")


def test_a_sweep_has_one_seed_a_row_and_one_c_a_column(finished, drawn):
    names = finished.trials()
    models = [model_of(finished, name) for name in names]
    paired.sweep_picture(models, rows=3, **SEED)
    ((images, rows, columns, _),) = drawn
    assert rows == ["seed 5", "seed 6", "seed 7"]
    assert [column.split("\n")[0] for column in columns] == ["none"] + [f"C = {int(name[1:])}" for name in names[:-1]]
    # Trials that were stopped have seen fewer images than others.
    assert {column.split("\n")[1] for column in columns} == {"256", "512"}
    unconditional = model_of(finished, UNCONDITIONAL)
    assert np.abs(images[:, 0] - images_of(unconditional, [5, 6, 7])).max() <= 1
    assert np.abs(images[:, 1] - images_of(model_of(finished, names[0]), [5, 6, 7])).max() <= 1
    paired.sweep_picture([unconditional], rows=1, **SEED)
    assert drawn[1][2] == ["none"]


def test_clusters_stand_beside_their_classes(finished, with_classes, drawn):
    model, other = model_of(finished, "c00008"), model_of(with_classes, "c00010")
    other = dataclasses.replace(other, images_seen=model.images_seen)
    paired.classes_picture(model, finished, other, with_classes, rows=8, columns=2, **SEED)
    ((images, rows, columns, rest),) = drawn
    used = sorted(set(load_assignment(finished, 8).labels.tolist()))
    # Class k + 1 (mod 8) has exactly the images of cluster k.
    expected = sorted(((k + 1) % 8, k) for k in used)
    assert rows == [f"class {label}\ncluster {cluster}, 100%" for label, cluster in expected]
    assert columns == ["seed 5", "seed 6"] * 2
    assert rest["groups"] == [("clusters, C = 8", 2), (f"{len(used)} classes, the same noise", 2)]
    for row, (label, cluster) in enumerate(expected):
        ours = images_of(model, [5, 6], [model.meaning.class_ids.index(cluster)] * 2)
        theirs = images_of(other, [5, 6], [other.meaning.class_ids.index(label)] * 2)
        assert np.abs(images[row] - np.concatenate([ours, theirs])).max() <= 1
    # Of unequal training the picture says so, or the difference would be taken for that of the conditions.
    early = dataclasses.replace(other, images_seen=model.images_seen // 2)
    paired.classes_picture(model, finished, early, with_classes, rows=8, columns=2, **SEED)
    seen = [amount(one.images_seen / 1000) for one in (model, early)]
    titles = [("clusters, C = 8", 2), (f"{len(used)} classes, the same noise", 2)]
    assert drawn[1][3]["groups"] == [
        (f"{name}, {text} images", n) for (name, n), text in zip(titles, seen, strict=True)
    ]


def test_the_surest_and_the_least_sure_stand_above_the_same_noise(finished, tiny_space, drawn):
    model, unconditional = model_of(finished, "c00008"), model_of(finished, UNCONDITIONAL)
    confidence = open_confidence(finished, tiny_space, 8, "cpu")
    counts = {"candidates": 20, "rows": 1, "columns": 3}
    paired.confidence_picture(model, unconditional, confidence, **counts, **SEED)
    ((images, rows, _, rest),) = drawn
    everything = images_of(model, range(5, 25))
    values = confidence(everything.astype(np.uint8))
    order = np.argsort(-values)
    assert np.abs(images[0] - everything[order[:3]]).max() <= 1
    assert sorted(confidence(images[2].astype(np.uint8))) == pytest.approx(sorted(values)[:3], abs=0.02)
    assert rows[0].startswith("most confident, C = 8\n")
    assert rows[2].startswith("least confident, C = 8\n")
    assert np.abs(images[1] - images_of(unconditional, (order[:3] + 5).tolist())).max() <= 1
    assert rest["bands"] == [1] * 4
    with pytest.raises(ConfigurationError, match="--candidates must be at least 40 for two blocks of 20"):
        paired.confidence_picture(model, unconditional, confidence, candidates=20, rows=2, columns=10, **SEED)


def test_what_cannot_be_paired_is_refused(finished, with_classes, prepared, tmp_path):
    model, unconditional = model_of(finished), model_of(finished, UNCONDITIONAL)
    sizes = {"rows": 2, "columns": 2}
    with pytest.raises(ConfigurationError, match="unconditional was not trained on clusters"):
        paired.clusters_picture(unconditional, None, **sizes, **SEED)
    with pytest.raises(ConfigurationError, match=r"was not trained on a cluster 999: its \d+ used clusters lie"):
        paired.clusters_picture(model, [999], **sizes, **SEED)
    with pytest.raises(
        ConfigurationError, match="unconditional was not trained on clusters: there is nothing to match"
    ):
        paired.classes_picture(model, finished, unconditional, finished, **sizes, **SEED)
