"""The oracle of the principal components is scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from cedm_ray.data.image_set import ImageSet
from cedm_ray.errors import InputDataError
from cedm_ray.features import pixels
from cedm_ray.features.pixels import fit_pixels


def test_pixels_are_scikit_learns_principal_components(image_set):
    images = image_set(count=200)
    extractor = fit_pixels(images, pixel_components=10)
    features = extractor(torch.from_numpy(images.pixels)).numpy()
    values = images.pixels.reshape(200, -1) / 127.5 - 1
    oracle = PCA(10, svd_solver="full").fit(values)
    assert features.dtype == np.float32
    assert np.allclose(np.abs(features), np.abs(oracle.transform(values)), atol=1e-4)
    assert np.allclose(np.abs(extractor.components.numpy()), np.abs(oracle.components_.T), atol=1e-5)


def test_pixel_features_are_the_same_for_any_tiling(monkeypatch, image_set):
    images = image_set(count=50)
    whole = fit_pixels(images, pixel_components=8)
    monkeypatch.setattr(pixels, "_TILE_ROWS", 7)
    tiled = fit_pixels(images, pixel_components=8)
    assert torch.allclose(whole.components, tiled.components, atol=1e-5)


def test_every_component_has_its_largest_entry_positive(image_set):
    components = fit_pixels(image_set(), pixel_components=12).components
    largest = components.abs().argmax(0)
    assert (components[largest, torch.arange(12)] > 0).all()


def test_components_without_variance_are_dropped(image_set):
    """Grey images of 6x6 have 36 degrees of freedom, although they have 108 values; 5 images span 4 dimensions."""
    assert fit_pixels(image_set(count=200, grey=True)).dim == 36
    assert fit_pixels(image_set(count=5)).dim == 4


def test_images_that_are_all_alike_have_no_pixel_features():
    pixels = np.full((5, 3, 4, 4), 77, np.uint8)
    images = ImageSet(name="x", names=tuple("abcde"), pixels=pixels, digest="0")
    with pytest.raises(InputDataError, match="all 5 images are alike"):
        fit_pixels(images)


def test_large_images_are_averaged_to_the_largest_side_before_the_components(monkeypatch, image_set):
    assert pixels._SIDE == 32
    monkeypatch.setattr(pixels, "_SIDE", 8)
    small = image_set(count=10, size=8)
    large = np.repeat(np.repeat(small.pixels, 2, axis=2), 2, axis=3)
    doubled = ImageSet(name="x", names=small.names, pixels=large, digest="0")
    features = [fit_pixels(s)(torch.from_numpy(s.pixels)) for s in (small, doubled)]
    assert torch.allclose(features[0], features[1], atol=1e-3)


def test_pixels_refuse_images_of_another_size(image_set):
    extractor = fit_pixels(image_set(size=6))
    with pytest.raises(ValueError, match=r"images must be \[B, 3, 6, 6\], got \[1, 3, 5, 5\]"):
        extractor(torch.zeros(1, 3, 5, 5, dtype=torch.uint8))


def test_the_key_of_pixels_follows_images_and_width(image_set):
    keys = [fit_pixels(image_set(seed=s), pixel_components=c).key for s in (0, 1) for c in (3, 4)]
    assert len(set(keys)) == 4
    assert fit_pixels(image_set(seed=0), pixel_components=3).key == keys[0]
