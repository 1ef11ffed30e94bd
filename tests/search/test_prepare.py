"""Images and neighbors are made once and then found; a changed source is noticed."""

import os
import shutil

import numpy as np
import pytest
from PIL import Image

from cedm_ray import durable
from cedm_ray.errors import InputDataError
from cedm_ray.search import prepare as prepare_module
from cedm_ray.search.prepare import prepare_images, prepare_neighbors
from cedm_ray.search.results import Notice, Progress
from cedm_ray.search.space import SearchSpace
from cedm_ray.search.study import Study


@pytest.fixture
def source(digit_folder, tmp_path):
    """20 images that a test may change."""
    folder = tmp_path / "source"
    folder.mkdir()
    for path in sorted(digit_folder.iterdir())[:20]:
        shutil.copy(path, folder)
    return folder


@pytest.fixture
def space(tiny_space, source):
    return SearchSpace.model_validate({**tiny_space.model_dump(mode="json"), "images": {"source": str(source)}})


def test_images_are_imported_once(space, tmp_path, monkeypatch):
    study, shown = Study(tmp_path / "study"), []
    images = prepare_images(study, space, shown.append)
    assert len(images) == 20
    assert shown[-1] == Progress(task="images", done=20, total=20, unit="images", ended=True)
    monkeypatch.setattr(prepare_module, "import_images", None)
    shown.clear()
    assert prepare_images(study, space, shown.append).digest == images.digest
    assert shown == []


@pytest.mark.parametrize("change", ["added", "removed", "replaced"])
def test_a_changed_source_is_refused(space, source, tmp_path, change):
    study = Study(tmp_path / "study")
    prepare_images(study, space, lambda event: None)
    first = min(source.iterdir())
    if change == "added":
        shutil.copy(first, source / "more.png")
    elif change == "removed":
        first.unlink()
    else:
        Image.fromarray(np.full((8, 8), 9, dtype=np.uint8)).save(first)
    with pytest.raises(InputDataError, match=r"are not those that .* was begun with") as caught:
        prepare_images(study, space, lambda event: None)
    assert "--study" in caught.value.mend


def test_a_source_of_the_same_images_at_other_times_is_the_same_source(space, source, tmp_path, monkeypatch):
    study, shown = Study(tmp_path / "study"), []
    images = prepare_images(study, space, shown.append)
    shown.clear()
    os.utime(min(source.iterdir()), ns=(5, 5))
    monkeypatch.setattr(prepare_module, "import_images", None)
    assert prepare_images(study, space, shown.append).digest == images.digest
    (notice,) = shown
    assert "contents are compared" in notice.text
    shown.clear()
    monkeypatch.setattr(prepare_module, "same_images", None)
    assert prepare_images(study, space, shown.append).digest == images.digest
    assert shown == [], "they were compared once"


def test_a_source_that_is_gone_is_told_and_not_needed(space, source, tmp_path):
    study, shown = Study(tmp_path / "study"), []
    images = prepare_images(study, space, lambda event: None)
    shutil.rmtree(source)
    assert prepare_images(study, space, shown.append).digest == images.digest
    (notice,) = shown
    assert "goes on with its own copy of the images" in notice.text


def test_images_that_were_left_out_are_named(space, source, tmp_path):
    for name in ("bad-1.png", "bad-2.png"):
        (source / name).write_bytes(b"")
    plain = space.model_dump(mode="json")
    space = SearchSpace.model_validate({**plain, "images": {"source": str(source), "max_bad_fraction": 0.5}})
    shown = []
    assert len(prepare_images(Study(tmp_path / "study"), space, shown.append)) == 20
    (notice,) = [event for event in shown if isinstance(event, Notice)]
    assert notice.text.startswith("left out bad-1.png")
    assert "and 1 more" in notice.text


def brute_force(features, count):
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    similarity = unit @ unit.T
    np.fill_diagonal(similarity, -np.inf)
    return np.argsort(-similarity, axis=1)[:, :count]


def test_neighbors_are_those_of_brute_force_and_found_once(tiny_space, tmp_path, monkeypatch):
    study = Study(tmp_path)
    features = np.random.default_rng(0).standard_normal((60, 7)).astype(np.float32)
    shown = []
    prepare_neighbors(study, tiny_space, features, "key", "cpu", shown.append)
    assert shown == []
    tensors, provenance = durable.read_tensors(study.neighbors)
    assert provenance == {"features": "key", "extractor": "pixels"}
    assert np.array_equal(tensors["neighbors"], brute_force(features.astype(np.float64), 10))
    monkeypatch.setattr(prepare_module, "nearest_neighbors", None)
    prepare_neighbors(study, tiny_space, features, "key", "cpu", shown.append)


def test_neighbors_of_other_features_are_found_anew(tiny_space, tmp_path):
    study, rng = Study(tmp_path), np.random.default_rng(1)
    for key in ("one", "other"):
        features = rng.standard_normal((30, 5)).astype(np.float32)
        prepare_neighbors(study, tiny_space, features, key, "cpu", lambda event: None)
        tensors, provenance = durable.read_tensors(study.neighbors)
        assert provenance["features"] == key
        assert np.array_equal(tensors["neighbors"], brute_force(features.astype(np.float64), 10))


def test_with_few_images_every_other_one_is_a_neighbor(tiny_space, tmp_path):
    study, shown = Study(tmp_path), []
    features = np.random.default_rng(2).standard_normal((6, 5)).astype(np.float32)
    prepare_neighbors(study, tiny_space, features, "key", "cpu", shown.append)
    assert [event.text for event in shown] == ["clustering.num_neighbors is 10 and there are 6 images: 5 are used"]
    rows = durable.read_tensors(study.neighbors)[0]["neighbors"]
    assert [sorted(row) for row in rows.tolist()] == [[j for j in range(6) if j != i] for i in range(6)]


def test_neighbors_in_other_features_lie_beside_the_spaces_own(tiny_space, tmp_path):
    study, rng = Study(tmp_path), np.random.default_rng(3)
    found = {}
    for extractor in (None, "./a.pt", "./b.pt"):
        features = rng.standard_normal((30, 5)).astype(np.float32)
        prepare_neighbors(study, tiny_space, features, f"key of {extractor}", "cpu", print, extractor=extractor)
        found[extractor] = brute_force(features.astype(np.float64), 10)
    assert len({study.neighbors_in(extractor) for extractor in found}) == 3
    for extractor, expected in found.items():
        tensors, provenance = durable.read_tensors(study.neighbors_in(extractor))
        assert np.array_equal(tensors["neighbors"], expected)
        assert provenance == {"features": f"key of {extractor}", "extractor": extractor or "pixels"}
