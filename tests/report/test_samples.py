"""Generated images as files: bit by bit the model's, under the names of their seeds."""

import io
import tracemalloc
import zipfile

import numpy as np
import pytest
from PIL import Image

from cedm_ray.errors import ConfigurationError, StorageError
from cedm_ray.report.samples import ABOUT, Tally, sample_to_files, write_samples
from cedm_ray.search.model import find_model
from cedm_ray.search.results import Notice, Progress, TrialReport
from cedm_ray.search.sampling import Condition, Samples, open_sampler, settle_job
from cedm_ray.search.study import FitRecord
from cedm_ray.search.trial import run_trial

SEEDS = [5, 6, 7, 123456789]


def part_of(seeds, images, clusters=None, drawn=None):
    count = len(seeds) if drawn is None else drawn
    return Samples(
        seeds=np.asarray(seeds, dtype=np.int64), images=images, clusters=clusters, decided=len(seeds), drawn=count
    )


def batches(seed=0):
    images = np.random.default_rng(seed).integers(0, 256, (4, 3, 8, 8), dtype=np.uint8)
    return images, [part_of(SEEDS[:3], images[:3]), part_of(SEEDS[3:], images[3:])]


def pixels_of(data):
    with Image.open(io.BytesIO(data)) as picture:
        return np.asarray(picture).transpose(2, 0, 1)


NAMES = ["00000005.png", "00000006.png", "00000007.png", "123456789.png"]


def test_a_folder_holds_one_png_a_seed(tmp_path):
    images, parts = batches()
    write_samples(parts, tmp_path / "out")
    files = sorted((tmp_path / "out").iterdir())
    assert [path.name for path in files] == NAMES
    assert all(np.array_equal(pixels_of(path.read_bytes()), image) for path, image in zip(files, images, strict=True))


def test_a_zip_holds_one_png_a_seed_and_is_the_same_each_time(tmp_path):
    images, parts = batches()
    for name in ("one.zip", "other.zip"):
        write_samples(parts, tmp_path / "deep" / name)
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["one.zip", "other.zip"]
    assert (tmp_path / "deep" / "one.zip").read_bytes() == (tmp_path / "deep" / "other.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "deep" / "one.zip") as archive:
        assert archive.namelist() == NAMES
        assert archive.testzip() is None
        for name, image in zip(NAMES, images, strict=True):
            assert np.array_equal(pixels_of(archive.read(name)), image)


def test_an_npz_holds_images_and_seeds(tmp_path):
    images, parts = batches()
    write_samples(parts, tmp_path / "out.npz")
    with np.load(tmp_path / "out.npz", allow_pickle=False) as found:
        assert np.array_equal(found["images"], images.transpose(0, 2, 3, 1))
        assert found["seeds"].tolist() == SEEDS
        assert "clusters" not in found
    with_clusters = [part_of(SEEDS[:3], images[:3], np.array([5, 7, 5])), part_of([], images[:0], np.array([], int))]
    write_samples(with_clusters, tmp_path / "other.npz")
    with np.load(tmp_path / "other.npz", allow_pickle=False) as found:
        assert found["images"].shape == (3, 8, 8, 3)
        assert found["clusters"].tolist() == [5, 7, 5]
        assert found["clusters"].dtype == found["seeds"].dtype == np.int64
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.npz", "out.npz"]


def test_images_of_a_file_are_not_held(tmp_path):
    def many():
        for start in range(0, 4000, 100):
            yield part_of(range(start, start + 100), np.full((100, 3, 32, 32), start % 251, dtype=np.uint8))

    # 12 MB of images, of which a batch is 0.3 MB.
    for name in ("out.zip", "out.npz"):
        tracemalloc.start()
        write_samples(many(), tmp_path / name)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        # The directory of a zip is held, with the name of every image.
        assert peak < 6e6, name


@pytest.mark.parametrize("name", ["out.zip", "out.npz", "folder"])
def test_a_generator_that_fails_leaves_no_file_that_looks_whole(tmp_path, name):
    def failing():
        yield batches()[1][0]
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        write_samples(failing(), tmp_path / name)
    assert not (tmp_path / name).is_file()
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".tmp")]


@pytest.mark.parametrize("name", ["file/out.zip", "file/out.npz", "file/folder"])
def test_a_place_that_cannot_be_written_is_a_storage_error(tmp_path, name):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="cannot write"):
        write_samples(batches()[1], tmp_path / name)


def sample(study, space, seeds, grid=None, out=None, **wanted):
    """What the verb does, in this process: (what was shown, the tally)."""
    shown = []
    wanted = {"trial": None, "condition": Condition()} | wanted
    job = settle_job(study, space, show=shown.append, **wanted)
    made = sample_to_files(
        lambda missing: open_sampler(job, "cpu").generate(missing),
        seeds,
        job.about,
        grid=grid,
        out=out,
        show=shown.append,
    )
    return shown, made


def test_images_are_the_models_own_whatever_they_are_written_to(finished, tiny_space, tmp_path):
    model = find_model(finished, None, "cpu", [].append)
    expected = np.concatenate(list(model.sample(range(3, 43))))
    for name in ("out.zip", "out.npz", "folder"):
        shown, made = sample(finished, tiny_space, range(3, 43), out=tmp_path / name)
        # The model samples 32 at once.
        assert [event.done for event in shown] == [32, 40, 40]
        assert all(isinstance(event, Progress) and event.total == 40 for event in shown)
        assert made == Tally(found=0, kept=40, drawn=40, without=0)
    with np.load(tmp_path / "out.npz", allow_pickle=False) as found:
        assert np.array_equal(found["images"].transpose(0, 3, 1, 2), expected)
        assert set(found["clusters"]) <= set(model.meaning.class_ids)
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        assert np.array_equal([pixels_of(archive.read(name)) for name in archive.namelist()], expected)
    files = sorted((tmp_path / "folder").glob("*.png"))
    assert np.array_equal([pixels_of(p.read_bytes()) for p in files], expected)


def test_a_folder_is_gone_on_with_where_it_stopped(finished, tiny_space, tmp_path):
    out = tmp_path / "out"
    sample(finished, tiny_space, range(6), out=out)
    before = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.glob("*.png")}
    (out / "00000002.png").unlink()
    shown, made = sample(finished, tiny_space, range(1, 9), out=out, grid=tmp_path / "resumed.png")
    assert made == Tally(found=4, kept=4, drawn=4, without=0)
    assert any(isinstance(event, Notice) and "are in" in event.text for event in shown)
    for name, (written, data) in before.items():
        if name != "00000002.png":
            assert (out / name).stat().st_mtime_ns == written
        # Made again alone, it may differ by the rounding of another batch.
        assert np.abs(pixels_of((out / name).read_bytes()).astype(int) - pixels_of(data)).max() <= 1
    assert len(list(out.glob("*.png"))) == 9
    sample(finished, tiny_space, range(1, 9), grid=tmp_path / "at-once.png")
    with Image.open(tmp_path / "resumed.png") as resumed, Image.open(tmp_path / "at-once.png") as at_once:
        assert np.abs(np.asarray(resumed).astype(int) - np.asarray(at_once)).max() <= 1
    _, made = sample(finished, tiny_space, range(1, 9), out=out)
    assert made == Tally(found=8, kept=0, drawn=0, without=0)


def test_a_folder_of_other_images_is_left_alone(finished, tiny_space, tmp_path):
    sample(finished, tiny_space, range(2), out=tmp_path / "out")
    with pytest.raises(ConfigurationError, match=r"holds images of another sampling, says samples\.json"):
        sample(finished, tiny_space, range(4), steps=7, out=tmp_path / "out")
    with pytest.raises(ConfigurationError, match="of another model, says"):
        sample(finished, tiny_space, range(4), trial="unconditional", out=tmp_path / "out")
    assert len(list((tmp_path / "out").glob("*.png"))) == 2
    (tmp_path / "out" / ABOUT).unlink()
    with pytest.raises(ConfigurationError, match=r"holds images, and no samples\.json"):
        sample(finished, tiny_space, range(4), out=tmp_path / "out")


def test_images_of_one_cluster_are_those_of_its_class(fresh, tiny_space, tmp_path):
    # Of nine clusters only 2 and 7 are in use: they are the classes 0 and 1 of the network.
    record = FitRecord(num_clusters=9, repeat=0, num_used=2, loss=0.0, seconds=0.0)
    fresh.write_fit(record, "c00009-r0", {"labels": np.array([7, 2, 2] * 100, dtype=np.int32)}, {"method": "by hand"})
    next(event for event in run_trial(fresh, tiny_space, 9, device="cpu") if isinstance(event, TrialReport))
    sample(fresh, tiny_space, range(4), trial="c00009", condition=Condition.read("list:7"), out=tmp_path / "out.npz")
    (expected,) = find_model(fresh, "c00009", "cpu", [].append).sample(range(4), classes=[1] * 4)
    with np.load(tmp_path / "out.npz", allow_pickle=False) as found:
        assert np.array_equal(found["images"].transpose(0, 3, 1, 2), expected)


def test_steps_of_the_sampler_can_be_others(finished, tiny_space, tmp_path):
    images = {}
    for steps in (None, 4, 9):
        sample(finished, tiny_space, range(2), steps=steps, out=tmp_path / f"{steps}.npz")
        with np.load(tmp_path / f"{steps}.npz", allow_pickle=False) as found:
            images[steps] = found["images"]
    assert np.array_equal(images[None], images[4])
    assert not np.array_equal(images[None], images[9])


def test_a_picture_alone_and_a_picture_beside_the_images(finished, tiny_space, tmp_path):
    names = {"alone": None, "folder": "out", "zip": "out.zip"}
    for name, out in names.items():
        out = None if out is None else tmp_path / out
        sample(finished, tiny_space, range(9), trial="unconditional", grid=tmp_path / f"{name}.png", out=out)
    assert len({(tmp_path / f"{name}.png").read_bytes() for name in names}) == 1
    with Image.open(tmp_path / "alone.png") as picture:
        assert picture.width == picture.height >= 24
    assert len(list((tmp_path / "out").glob("*.png"))) == 9
    with pytest.raises(ConfigurationError, match="5,000 images do not fit into one picture"):
        sample(finished, tiny_space, range(5000), grid=tmp_path / "large.png")


def test_rejection_is_tallied_and_leaves_out_seeds(finished, tiny_space, tmp_path):
    shown, made = sample(finished, tiny_space, range(20), min_confidence=0.9999, max_tries=2, out=tmp_path / "out.npz")
    assert made.kept + made.without == 20
    assert made.drawn >= 20 + made.without
    with np.load(tmp_path / "out.npz", allow_pickle=False) as found:
        assert len(found["images"]) == len(found["seeds"]) == made.kept
    _, none = sample(finished, tiny_space, range(3), min_confidence=1.0, max_tries=1, grid=tmp_path / "none.png")
    assert none == Tally(found=0, kept=0, drawn=3, without=3)
    assert not (tmp_path / "none.png").exists()
    details = [event.detail for event in shown if isinstance(event, Progress)]
    assert f"kept {made.kept} of {made.drawn} drawn" in details
