"""Generated images as files: bit by bit the model's, under the names of their seeds."""

import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from cedm_ray.errors import ConfigurationError, StorageError
from cedm_ray.report.samples import sample_to_files, write_samples
from cedm_ray.search.model import find_model
from cedm_ray.search.results import Progress, TrialReport
from cedm_ray.search.study import FitRecord
from cedm_ray.search.trial import run_trial

SEEDS = [5, 6, 7, 123456789]


def batches(seed=0):
    images = np.random.default_rng(seed).integers(0, 256, (4, 3, 8, 8), dtype=np.uint8)
    return images, [images[:3], images[3:]]


def pixels_of(data):
    with Image.open(io.BytesIO(data)) as picture:
        return np.asarray(picture).transpose(2, 0, 1)


NAMES = ["00000005.png", "00000006.png", "00000007.png", "123456789.png"]


def test_a_folder_holds_one_png_a_seed(tmp_path):
    images, parts = batches()
    write_samples(parts, SEEDS, tmp_path / "out")
    files = sorted((tmp_path / "out").iterdir())
    assert [path.name for path in files] == NAMES
    assert all(np.array_equal(pixels_of(path.read_bytes()), image) for path, image in zip(files, images, strict=True))


def test_a_zip_holds_one_png_a_seed_and_is_the_same_each_time(tmp_path):
    images, parts = batches()
    for name in ("one.zip", "other.zip"):
        write_samples(parts, SEEDS, tmp_path / "deep" / name)
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["one.zip", "other.zip"]
    assert (tmp_path / "deep" / "one.zip").read_bytes() == (tmp_path / "deep" / "other.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "deep" / "one.zip") as archive:
        assert archive.namelist() == NAMES
        assert archive.testzip() is None
        for name, image in zip(NAMES, images, strict=True):
            assert np.array_equal(pixels_of(archive.read(name)), image)


def test_an_npz_holds_images_and_seeds(tmp_path):
    images, parts = batches()
    write_samples(parts, SEEDS, tmp_path / "out.npz")
    with np.load(tmp_path / "out.npz", allow_pickle=False) as found:
        assert np.array_equal(found["images"], images.transpose(0, 2, 3, 1))
        assert found["seeds"].tolist() == SEEDS


@pytest.mark.parametrize("name", ["out.zip", "out.npz", "folder"])
def test_a_generator_that_fails_leaves_no_file_that_looks_whole(tmp_path, name):
    def failing():
        yield batches()[1][0]
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        write_samples(failing(), SEEDS, tmp_path / name)
    assert not (tmp_path / name).is_file()
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".tmp")]


@pytest.mark.parametrize("name", ["file/out.zip", "file/out.npz", "file/folder"])
def test_a_place_that_cannot_be_written_is_a_storage_error(tmp_path, name):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="cannot write"):
        write_samples(batches()[1], SEEDS, tmp_path / name)


def sample(study, seeds, trial=None, cluster=None, steps=None, grid=None, out=None):
    shown = []
    sample_to_files(study, trial, seeds, cluster=cluster, steps=steps, grid=grid, out=out, show=shown.append)
    return shown


def test_images_are_the_models_own_whatever_they_are_written_to(finished, tmp_path):
    model = find_model(finished, None, "cpu", [].append)
    expected = np.concatenate(list(model.sample(range(3, 43))))
    for name in ("out.zip", "out.npz", "folder"):
        shown = sample(finished, range(3, 43), out=tmp_path / name)
        # The model samples 32 at once.
        assert [event.done for event in shown] == [32, 40]
        assert all(isinstance(event, Progress) and event.total == 40 for event in shown)
    with np.load(tmp_path / "out.npz", allow_pickle=False) as found:
        assert np.array_equal(found["images"].transpose(0, 3, 1, 2), expected)
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        assert np.array_equal([pixels_of(archive.read(name)) for name in archive.namelist()], expected)
    assert np.array_equal([pixels_of(p.read_bytes()) for p in sorted((tmp_path / "folder").iterdir())], expected)


def test_images_of_one_cluster_are_those_of_its_class(fresh, tiny_space, tmp_path):
    # Of nine clusters only 2 and 7 are in use: they are the classes 0 and 1 of the network.
    record = FitRecord(num_clusters=9, repeat=0, num_used=2, loss=0.0, seconds=0.0)
    fresh.write_fit(record, "c00009-r0", {"labels": np.array([7, 2, 2] * 100, dtype=np.int32)}, {"method": "by hand"})
    next(event for event in run_trial(fresh, tiny_space, 9, device="cpu") if isinstance(event, TrialReport))
    sample(fresh, range(4), trial="c00009", cluster=7, out=tmp_path / "out.npz")
    (expected,) = find_model(fresh, "c00009", "cpu", [].append).sample(range(4), classes=[1] * 4)
    with pytest.raises(ConfigurationError, match="its 2 used clusters lie between 2 and 7"):
        sample(fresh, range(4), trial="c00009", cluster=1, out=tmp_path / "other.npz")
    with np.load(tmp_path / "out.npz", allow_pickle=False) as found:
        assert np.array_equal(found["images"].transpose(0, 3, 1, 2), expected)


def test_steps_of_the_sampler_can_be_others(finished, tmp_path):
    for steps in (None, 4, 9):
        sample(finished, range(2), steps=steps, out=tmp_path / f"{steps}.npz")
    images = {}
    for steps in (None, 4, 9):
        with np.load(tmp_path / f"{steps}.npz", allow_pickle=False) as found:
            images[steps] = found["images"]
    assert np.array_equal(images[None], images[4])
    assert not np.array_equal(images[None], images[9])


def test_a_picture_alone_and_a_picture_beside_the_images(finished, tmp_path):
    sample(finished, range(9), trial="unconditional", grid=tmp_path / "grid.png")
    sample(finished, range(9), trial="unconditional", grid=tmp_path / "both.png", out=tmp_path / "out")
    assert (tmp_path / "grid.png").read_bytes() == (tmp_path / "both.png").read_bytes()
    with Image.open(tmp_path / "grid.png") as picture:
        assert picture.width == picture.height >= 24
    assert len(list((tmp_path / "out").iterdir())) == 9


def test_a_cluster_that_the_model_does_not_know_is_refused(finished, tmp_path):
    with pytest.raises(ConfigurationError, match=r"was not trained on a cluster 99: its \d+ used clusters lie between"):
        sample(finished, [0], cluster=99, out=tmp_path / "out")
    with pytest.raises(ConfigurationError, match="not trained on a cluster 0: it is unconditional"):
        sample(finished, [0], trial="unconditional", cluster=0, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_unknown_trial_is_refused(finished, tmp_path):
    with pytest.raises(ConfigurationError, match="no trained model of 'c09999'"):
        sample(finished, [0], trial="c09999", out=tmp_path / "out")
