"""Distances against NumPy and SciPy, from images to number."""

from types import SimpleNamespace

import numpy as np
import pytest
import scipy.linalg
import torch

from cedm_ray.data.image_set import ImageSet
from cedm_ray.errors import InputDataError
from cedm_ray.metrics.frechet import frechet_reference
from cedm_ray.search.evaluate import (
    EvaluationConfig,
    distance_to,
    image_statistics,
    low_rank_distance,
    merged_over_workers,
    own_share,
    training_batches,
)


def flat(images):
    return images.float().flatten(1)[:, :5] / 50


flat.dim, flat.device = 5, torch.device("cpu")


def images_of(seed, count, spread=256):
    return np.random.default_rng(seed).integers(0, spread, (count, 3, 4, 4), dtype=np.uint8)


def in_batches(images, size):
    return (images[start : start + size] for start in range(0, len(images), size))


@pytest.mark.parametrize("size", [1, 7, 100])
def test_statistics_are_numpys_whatever_the_batches(size):
    images = images_of(0, 40)
    found = image_statistics(in_batches(images, size), flat)
    features = flat(torch.from_numpy(images)).double().numpy()
    assert found.count == 40
    np.testing.assert_allclose(found.mean.numpy(), features.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.covariance.numpy(), np.cov(features.T), rtol=1e-9)


def test_statistics_of_read_only_pixels_raise_no_warning():
    images = images_of(0, 8)
    images.flags.writeable = False
    assert image_statistics([images], flat).count == 8


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_detector_whose_features_are_not_finite_is_named(bad):
    def broken(images):
        return torch.full((len(images), 2), bad)

    broken.name, broken.device, broken.dim = "my_net", torch.device("cpu"), 2
    with pytest.raises(InputDataError, match="my_net makes features of images that are not finite"):
        image_statistics([np.zeros((3, 3, 4, 4), dtype=np.uint8)], broken)


def test_no_images_have_empty_statistics():
    assert image_statistics([], flat).count == 0


def test_distance_is_the_textbook_formula():
    one, other = images_of(1, 60), images_of(2, 50, spread=180)
    a, b = (flat(torch.from_numpy(x)).double().numpy() for x in (one, other))
    root = scipy.linalg.sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
    distance, collapsed = distance_to(image_statistics([one], flat), image_statistics([other], flat))
    assert distance == pytest.approx(expected, rel=1e-9)
    assert not collapsed


def test_images_that_are_all_alike_are_collapsed():
    reference = image_statistics([images_of(1, 60)], flat)
    alike = np.repeat(images_of(3, 1), 32, axis=0)
    distance, collapsed = distance_to(reference, image_statistics([alike], flat))
    assert collapsed
    assert np.isfinite(distance)


def test_fewer_images_than_features_give_the_same_distance_by_their_features():
    random = np.random.default_rng(0)
    net = torch.from_numpy(random.normal(size=(48, 40)))

    def extractor(images):
        return images.flatten(1).double() @ net / 255

    extractor.name, extractor.device, extractor.dim = "net", torch.device("cpu"), 40
    training, generated, gray = (
        random.integers(0, top, (count, 3, 4, 4), dtype=np.uint8) for top, count in ((256, 100), (200, 15), (1, 15))
    )
    reference = frechet_reference(image_statistics([training], extractor))
    for images in (generated, gray):
        found = low_rank_distance([images[:7], images[7:]], extractor, reference)
        distance, alike = distance_to(reference, image_statistics([images], extractor))
        assert found == (pytest.approx(distance, rel=1e-8), alike)
    assert low_rank_distance([gray], extractor, reference)[1]


def test_training_batches_are_all_images_in_row_order():
    pixels = images_of(5, 23)
    images = ImageSet(name="x", names=tuple(map(str, range(23))), pixels=pixels, digest="")
    batches = list(training_batches(images, 10))
    assert [len(batch) for batch in batches] == [10, 10, 3]
    assert np.array_equal(np.concatenate(batches), pixels)


def test_seeds_are_the_same_number_from_the_first_on():
    assert list(EvaluationConfig(num_samples=3, first_seed=10).seeds) == [10, 11, 12]


def test_one_process_generates_all_seeds_and_merges_nothing():
    assert own_share(range(10)) == range(10)
    statistics = image_statistics([images_of(0, 4)], flat)
    assert merged_over_workers(statistics) is statistics


def test_shares_of_workers_are_all_seeds_once(monkeypatch):
    taken = []
    for rank in range(3):
        world = SimpleNamespace(is_initialized=lambda: True, get_rank=lambda r=rank: r, get_world_size=lambda: 3)
        monkeypatch.setattr(torch, "distributed", world)
        taken.append(list(own_share(range(5, 15))))
    assert sorted(seed for share in taken for seed in share) == list(range(5, 15))
    assert max(map(len, taken)) - min(map(len, taken)) <= 1


def test_merging_adds_counts_and_sums_of_all_workers(monkeypatch):
    one, other = (image_statistics([images_of(seed, 20)], flat) for seed in (1, 2))
    parts = iter([torch.tensor(other.count, dtype=torch.float64), other.sum, other.outer])
    world = SimpleNamespace(is_initialized=lambda: True, all_reduce=lambda tensor: tensor.add_(next(parts)))
    monkeypatch.setattr(torch, "distributed", world)
    before = one.sum.clone()
    merged = merged_over_workers(one)
    expected = one + other
    assert merged.count == 40
    assert torch.equal(merged.sum, expected.sum)
    assert torch.equal(merged.outer, expected.outer)
    assert torch.equal(one.sum, before)
