"""The reference of a study is computed once."""

from cedm_ray.data.image_set import open_image_set
from cedm_ray.search import measure as measure_module
from cedm_ray.search.measure import open_detector, reference_statistics


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
