"""Measuring a model later gives what was measured when it was trained."""

import pytest

from cedm_ray.data.image_set import open_image_set
from cedm_ray.errors import ConfigurationError
from cedm_ray.search import measure as measure_module
from cedm_ray.search.measure import evaluate_model, open_detector, reference_statistics
from cedm_ray.search.results import Progress


@pytest.mark.parametrize("trial", ["unconditional", None])
def test_evaluating_again_gives_the_distance_of_the_last_rung(finished, tiny_space, trial):
    shown = []
    found = evaluate_model(finished, tiny_space, trial, None, show=shown.append)
    last = finished.reports(found["trial"])[-1]
    assert found["distance"] == last.distance
    assert (found["images_seen"], found["num_samples"], found["collapsed"]) == (512, 32, False)
    assert found["metric"] == "FD[pixels]"
    assert found["num_clusters"] == (None if trial else int(found["trial"][1:]))
    assert shown[-1] == Progress(task="samples", done=32, total=32, unit="images")


def test_the_number_of_samples_can_be_another(finished, tiny_space):
    found = evaluate_model(finished, tiny_space, "unconditional", 40, show=lambda event: None)
    assert found["num_samples"] == 40
    assert found["distance"] != finished.reports("unconditional")[-1].distance


def test_an_unknown_trial_is_a_configuration_error(finished, tiny_space):
    with pytest.raises(ConfigurationError, match="no trained model of 'c01234'"):
        evaluate_model(finished, tiny_space, "c01234", None, show=lambda event: None)


def test_reference_is_that_of_all_images_and_computed_once(fresh, tiny_space, monkeypatch):
    images = open_image_set(fresh.images)
    detector = open_detector(tiny_space, images, "cpu")
    path = fresh.reference(detector.key)
    path.unlink()
    first = reference_statistics(fresh, tiny_space, images, detector)
    assert path.exists()
    # Principal components of the images themselves: their mean feature is zero.
    assert first.count == 300
    assert first.mean.abs().max() < 1e-5
    monkeypatch.setattr(measure_module, "image_statistics", None)
    second = reference_statistics(fresh, tiny_space, images, detector)
    assert second.count == 300
    assert (second.sum == first.sum).all()
    assert (second.outer == first.outer).all()
