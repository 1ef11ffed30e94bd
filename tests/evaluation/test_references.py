"""A reference is computed once for its digest and its detector, and then read; NumPy gives the same figures."""

import dataclasses

import numpy as np
import pytest

from cedm_ray import durable
from cedm_ray.data.image_set import open_image_set
from cedm_ray.data.stored_images import content_digest, open_stored
from cedm_ray.evaluation.gathering import Keep, Network, run_here
from cedm_ray.evaluation.references import (
    Moments,
    all_features,
    files_reference,
    is_moments,
    study_reference,
    training_features,
)
from cedm_ray.features.extractors import open_extractor
from cedm_ray.search.measure import open_detector, reference_statistics

BOTH = Keep(statistics=True, rows=50)


def quiet(event):
    pass


def refuse(work, show):
    raise AssertionError("nothing is left to compute")


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (120, 3, 8, 8), dtype=np.uint8)


@pytest.fixture
def files(tmp_path, pixels):
    np.savez(tmp_path / "images.npz", images=pixels)
    return str(tmp_path / "images.npz")


@pytest.fixture
def detector(color_network, finished):
    return Network(spec=str(color_network)), open_extractor(str(color_network), open_image_set(finished.images))


def test_files_are_computed_once_and_then_read(files, pixels, detector, tmp_path, study_tools):
    reference = files_reference(files, tmp_path / "cache", batch_size=32)
    assert (reference.name, reference.count, reference.image_size) == ("images", 120, 8)
    assert reference.digest == content_digest(open_stored(files))
    found = reference.summary(*detector, BOTH, run_here, quiet)
    features = study_tools.mean_colors(pixels)
    np.testing.assert_allclose(found.statistics.covariance, np.cov(features.T), rtol=1e-5)
    assert found.rows.shape == (50, 4)
    again = files_reference(files, tmp_path / "cache", batch_size=32).summary(*detector, BOTH, refuse, quiet)
    assert (again.statistics.outer == found.statistics.outer).all()
    assert np.array_equal(again.rows, found.rows)


def test_the_same_pixels_elsewhere_are_the_same_reference(files, pixels, detector, tmp_path):
    files_reference(files, tmp_path / "cache", batch_size=32).summary(*detector, BOTH, run_here, quiet)
    np.savez_compressed(tmp_path / "other.npz", pixels.transpose(0, 2, 3, 1))
    other = files_reference(str(tmp_path / "other.npz"), tmp_path / "cache", batch_size=32)
    assert other.summary(*detector, BOTH, refuse, quiet).statistics.count == 120


def test_other_pixels_and_other_detectors_are_other_references(files, pixels, detector, tmp_path):
    network, extractor = detector
    reference = files_reference(files, tmp_path / "cache", batch_size=32)
    before = reference.summary(network, extractor, BOTH, run_here, quiet)
    pixels[0] = 0
    np.savez(files, images=pixels)
    changed = files_reference(files, tmp_path / "cache", batch_size=32)
    assert changed.digest != reference.digest
    after = changed.summary(network, extractor, BOTH, run_here, quiet)
    assert not (after.statistics.sum == before.statistics.sum).all()
    other = dataclasses.replace(extractor, key="another")
    with pytest.raises(AssertionError, match="nothing is left"):
        changed.summary(network, other, BOTH, refuse, quiet)


def test_what_was_computed_without_rows_is_not_computed_again_with_them(files, detector, tmp_path):
    reference = files_reference(files, tmp_path / "cache", batch_size=32)
    reference.summary(*detector, Keep(statistics=True), run_here, quiet)

    def only_rows(work, show):
        assert work.keeps == (Keep(rows=50),)
        return run_here(work, show)

    assert reference.summary(*detector, BOTH, only_rows, quiet).rows.shape == (50, 4)


def test_a_damaged_file_is_computed_again_and_named(files, detector, tmp_path):
    reference = files_reference(files, tmp_path / "cache", batch_size=32)
    found = reference.summary(*detector, Keep(statistics=True), run_here, quiet)
    (path,) = (tmp_path / "cache" / "references").glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    shown = []
    again = reference.summary(*detector, Keep(statistics=True), run_here, shown.append)
    assert (again.statistics.sum == found.statistics.sum).all()
    assert str(path) in shown[0].text
    assert durable.read_tensors(path)[1]["detector"] == "mean_colors"


def test_a_study_is_read_where_its_rungs_have_computed_it(finished, tiny_space):
    images = open_image_set(finished.images)
    detector = open_detector(tiny_space, images, "cpu")
    reference = study_reference(finished, images, fitted_on=str(finished.images), pixel_components=16, batch_size=64)
    found = reference.summary(Network(spec="pixels"), detector, Keep(statistics=True), refuse, quiet)
    rung = reference_statistics(finished, tiny_space, images, detector)
    assert (found.statistics.outer == rung.outer).all()
    assert (reference.digest, reference.count) == (images.digest, 300)


def test_all_training_features_are_found_or_made(done, color_network, tiny_space, study_tools):
    images = open_image_set(done.images)
    reference = study_reference(done, images, fitted_on=str(done.images), pixel_components=16, batch_size=64)
    extractor = open_extractor(str(color_network), images)
    expected = study_tools.mean_colors(images.pixels)
    np.testing.assert_allclose(training_features(reference, extractor, quiet), expected, rtol=1e-5)
    assert len(list((done.path / "features").iterdir())) == 2


def test_all_features_of_files_come_in_some_order(files, pixels, detector, tmp_path, study_tools):
    reference = files_reference(files, tmp_path / "cache", batch_size=32)
    found = all_features(reference, detector[0], run_here, quiet)
    expected = study_tools.mean_colors(pixels)
    np.testing.assert_allclose(np.sort(found, axis=0), np.sort(expected, axis=0), rtol=1e-5)


def test_moments_are_told_by_their_arrays(files, tmp_path):
    np.savez(tmp_path / "moments.npz", mu=np.zeros(4), sigma=np.eye(4))
    assert is_moments(str(tmp_path / "moments.npz"))
    assert not is_moments(files)
    assert not is_moments(str(tmp_path))
    assert not is_moments(str(tmp_path / "none.npz"))
    moments = Moments.open(str(tmp_path / "moments.npz"))
    assert (moments.name, moments.digest) == ("moments", durable.sha256_file(tmp_path / "moments.npz"))
