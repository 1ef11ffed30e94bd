"""Shares of the work add up to NumPy's figures, whoever does them and whatever the batches."""

import itertools

import numpy as np
import pytest

from cedm_ray.errors import ConfigurationError, TryAgainError
from cedm_ray.evaluation.gathering import (
    FileImages,
    Keep,
    ModelImages,
    Network,
    TrainingImages,
    Work,
    Worker,
    gather,
    kept_rows,
    run_here,
)
from cedm_ray.search.model import find_model
from cedm_ray.search.results import UNCONDITIONAL, Progress


@pytest.fixture
def network(color_network):
    return Network(spec=str(color_network))


@pytest.fixture
def images(tmp_path, study_tools):
    pixels = np.random.default_rng(0).integers(0, 256, (130, 3, 4, 4), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images=pixels)
    return tmp_path / "images.npz", study_tools.mean_colors(pixels)


def work_on(subject, network, keep, *, num, sets=1, fitted_on=None):
    return Work(
        task="samples",
        subject=subject,
        num_sets=sets,
        num_images=num,
        networks=(network,),
        keeps=(keep,),
        fitted_on=fitted_on,
        image_size=4,
        pixel_components=16,
    )


ALL = Keep(statistics=True, blocks=True, rows=1000)


@pytest.mark.parametrize("batch_size", [1, 7, 500])
def test_statistics_of_blocks_and_of_all_are_numpys(network, images, batch_size):
    path, features = images
    shown = []
    work = work_on(FileImages(path=str(path), batch_size=batch_size), network, ALL, num=130)
    ((found,),) = gather(work, run_here, shown.append)
    assert found.statistics.count == 130
    np.testing.assert_allclose(found.statistics.covariance, np.cov(features.T), rtol=1e-5)
    # 130 images are 6 blocks of 21, and 4 are left over.
    assert len(found.blocks) == work.num_blocks == 6
    for number, block in enumerate(found.blocks):
        assert block.count == 21
        np.testing.assert_allclose(block.mean, features[number:126:6].mean(0), rtol=1e-6)
    in_blocks = [features[number:126:6] for number in range(6)]
    np.testing.assert_allclose(found.rows, np.concatenate([*in_blocks, features[126:]]), rtol=1e-6)
    assert shown[-1] == Progress(task="samples", done=130, total=130, unit="images", ended=True)
    assert [event.done for event in shown] == sorted(event.done for event in shown)


def test_only_what_is_asked_for_is_kept(network, images):
    subject = FileImages(path=str(images[0]), batch_size=32)
    ((sums,),) = gather(work_on(subject, network, Keep(statistics=True), num=130), run_here, lambda event: None)
    assert (sums.blocks, sums.rows.shape) == ((), (0, 4))
    ((rows,),) = gather(work_on(subject, network, Keep(rows=10), num=130), run_here, lambda event: None)
    assert rows.statistics is None
    assert rows.rows.shape == (10, 4)


def test_sets_are_disjoint_and_follow_each_other(network, images):
    path, features = images
    work = work_on(FileImages(path=str(path), batch_size=32), network, ALL, num=65, sets=2)
    first, second = gather(work, run_here, lambda event: None)
    np.testing.assert_allclose(first[0].statistics.mean, features[:65].mean(0), rtol=1e-6)
    np.testing.assert_allclose(second[0].statistics.mean, features[65:].mean(0), rtol=1e-6)


def test_units_cover_every_image_once():
    for num, sets in itertools.product((2, 3, 11, 12, 99, 100, 101, 5000), (1, 3)):
        work = work_on(FileImages(path="", batch_size=1), Network(spec="x"), ALL, num=num, sets=sets)
        positions = [position for unit in work.units for position in work.positions(unit)]
        assert sorted(positions) == list(range(num * sets))
        assert len({len(work.positions((0, block))) for block in range(work.num_blocks)}) == 1
    assert work.num_blocks == 20


def test_kept_rows_are_a_random_choice_that_stays():
    kept = kept_rows(1000, 100)
    assert kept.sum() == 100
    assert np.array_equal(kept, kept_rows(1000, 100))
    # Not the first ones: files may be sorted by class.
    assert kept[:500].sum() < 80
    assert kept_rows(10, 100).all()
    assert not kept_rows(10, 0).any()


def test_a_model_gives_the_images_of_its_seeds(finished):
    model = find_model(finished, UNCONDITIONAL, "cpu", lambda event: None)
    subject = ModelImages(study=str(finished.path), trial=UNCONDITIONAL, images_seen=512, first_seed=5, batch_size=2)
    (expected,) = model.sample([5, 8, 11])
    found = np.concatenate(list(subject.batches(range(0, 9, 3), subject.open("cpu"))))
    assert np.abs(found.astype(int) - expected).max() <= 1
    with pytest.raises(TryAgainError, match="went on training"):
        ModelImages(study=str(finished.path), trial=UNCONDITIONAL, images_seen=256, first_seed=5, batch_size=2).open(
            "cpu"
        )


def test_training_images_are_those_of_the_study_and_fit_pixels(finished):
    subject = TrainingImages(images=str(finished.images), batch_size=64)
    work = work_on(subject, Network(spec="pixels"), ALL, num=300, fitted_on=str(finished.images))
    ((found,),) = gather(work, run_here, lambda event: None)
    # Principal components of these very images: means of zero, no correlation.
    assert found.statistics.mean.abs().max() < 1e-5
    covariance = found.statistics.covariance
    assert (covariance - covariance.diag().diag()).abs().max() < 1e-4 * covariance.diag().max()


def test_pixels_cannot_be_fitted_without_a_study(images):
    work = work_on(FileImages(path=str(images[0]), batch_size=1), Network(spec="pixels"), ALL, num=130)
    with pytest.raises(ConfigurationError, match="fitted on the training images of a study"):
        Worker(work, "cpu")
