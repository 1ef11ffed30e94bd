from dataclasses import dataclass

import numpy as np
import pytest
import torch

from cedm_ray.data.image_set import ImageSet
from cedm_ray.durable import read_record
from cedm_ray.errors import InputDataError, IntegrityError
from cedm_ray.features.store import extract_features, extract_shard, feature_key, open_features

ROWS = 8  # per shard; 20 images make shards of 8, 8 and 4 rows.


@dataclass
class FirstPixels:
    """[B, 3, S, S] -> [B, 3]: the first pixel's color, and what was asked for. bad: image rows that give NaN."""

    key: str = "first"
    bad: tuple[int, ...] = ()
    constant: bool = False
    name: str = "first"
    dim: int = 3

    def __post_init__(self):
        self.device = torch.device("cpu")
        self.batches: list[int] = []

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        self.batches.append(len(images))
        features = images[:, :, 0, 0].float()
        for row in self.bad:
            features[images[:, 0, 1, 1] == row] = torch.nan
        return torch.ones_like(features) if self.constant else features


@pytest.fixture
def images():
    """20 random images; image i has the value i at row 1, column 1."""
    pixels = np.random.default_rng(0).integers(0, 256, (20, 3, 2, 2), dtype=np.uint8)
    pixels[:, :, 1, 1] = np.arange(20)[:, None]
    return ImageSet(name="x", names=tuple(f"{i}.png" for i in range(20)), pixels=pixels, digest="0")


def run(images, extractor, folder, batch_size=3, shard_rows=ROWS):
    """The progress and the features."""
    generator, values = extract_features(images, extractor, folder, batch_size=batch_size, shard_rows=shard_rows), []
    while True:
        try:
            values.append(next(generator))
        except StopIteration as stop:
            return values, stop.value


def bytes_of(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("shard_rows", [4, 8, 19, 20, 100])
def test_row_i_is_the_feature_of_image_i_however_it_is_sharded(images, tmp_path, shard_rows):
    _, features = run(images, FirstPixels(), tmp_path, shard_rows=shard_rows)
    assert isinstance(features, np.memmap)
    assert features.dtype == np.float32
    assert np.array_equal(features, images.pixels[:, :, 0, 0])
    assert np.array_equal(open_features(tmp_path), features)


def test_batches_start_anew_in_every_shard(images, tmp_path):
    extractor = FirstPixels()
    progress, _ = run(images, extractor, tmp_path)
    assert extractor.batches == [3, 3, 2, 3, 3, 2, 3, 1]
    assert [p.done for p in progress] == [3, 6, 8, 8, 11, 14, 16, 16, 19, 20, 20]
    assert {p.total for p in progress} == {20}


@pytest.mark.parametrize("stop_after", [0, 1, 4, 9])
def test_an_interrupted_extraction_goes_on_at_its_shard_and_gives_the_same_bytes(images, tmp_path, stop_after):
    run(images, FirstPixels(), tmp_path / "whole")
    generator = extract_features(images, FirstPixels(), tmp_path / "cut", batch_size=3, shard_rows=ROWS)
    for _ in range(stop_after + 1):
        next(generator)
    generator.close()
    finished = len(list((tmp_path / "cut").glob("shard-*.json"))) if stop_after else 0
    extractor = FirstPixels()
    run(images, extractor, tmp_path / "cut")
    assert sum(extractor.batches) == 20 - ROWS * finished
    assert bytes_of(tmp_path / "cut") == bytes_of(tmp_path / "whole")


def test_shards_made_in_any_order_by_anyone_give_the_same_bytes(images, tmp_path):
    run(images, FirstPixels(), tmp_path / "whole")
    for index in (2, 0, 1):
        for _ in extract_shard(images, FirstPixels(), tmp_path / "apart", index, batch_size=3, shard_rows=ROWS):
            pass
    extractor = FirstPixels()
    run(images, extractor, tmp_path / "apart")
    assert extractor.batches == []
    assert bytes_of(tmp_path / "apart") == bytes_of(tmp_path / "whole")


@pytest.mark.parametrize("name", ["shard-00001.npy", "shard-00001.json"])
@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_a_damaged_shard_is_computed_again_and_named(images, tmp_path, name, damage):
    run(images, FirstPixels(), tmp_path)
    before = bytes_of(tmp_path)
    path = tmp_path / name
    if damage == "remove":
        path.unlink()
    elif damage == "truncate":
        path.write_bytes(before[name][:-5])
    else:
        data = bytearray(before[name])
        data[-9] ^= 1
        path.write_bytes(data)
    extractor = FirstPixels()
    progress, features = run(images, extractor, tmp_path)
    notes = [p.note for p in progress if p.note]
    assert extractor.batches == [3, 3, 2]
    # Without a record there never was a shard, so that nothing is wrong with it.
    expected = 0 if (name, damage) == ("shard-00001.json", "remove") else 1
    assert len(notes) == expected
    assert all("shard-00001.npy is computed again: its " in note for note in notes)
    assert np.array_equal(features, images.pixels[:, :, 0, 0])
    assert bytes_of(tmp_path) == before


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
@pytest.mark.parametrize("name", ["features.npy", "features.json"])
def test_damaged_merged_features_are_rebuilt_from_the_shards(images, tmp_path, name, damage):
    run(images, FirstPixels(), tmp_path)
    before = bytes_of(tmp_path)
    if damage == "remove":
        (tmp_path / name).unlink()
    else:
        data = bytearray(before[name])
        data[-9] ^= 1
        (tmp_path / name).write_bytes(data if damage == "flip" else data[:-5])
    extractor = FirstPixels()
    run(images, extractor, tmp_path)
    assert extractor.batches == []
    assert bytes_of(tmp_path) == before


def test_features_of_another_extractor_are_never_taken_for_these(images, tmp_path):
    run(images, FirstPixels(key="one"), tmp_path)
    extractor = FirstPixels(key="two")
    progress, _ = run(images, extractor, tmp_path)
    assert sum(extractor.batches) == 20
    assert next(p.note for p in progress if p.note).endswith("it belongs to other images or another extractor")
    assert read_record(tmp_path / "features.json")["key"] == feature_key(images, extractor)


def test_another_shard_size_in_the_same_folder_is_noticed(images, tmp_path):
    run(images, FirstPixels(), tmp_path, shard_rows=8)
    progress, features = run(images, FirstPixels(), tmp_path, shard_rows=10)
    assert sum(p.note is not None for p in progress) == 2
    assert np.array_equal(features, images.pixels[:, :, 0, 0])


def test_features_that_are_not_finite_are_refused_with_their_images(images, tmp_path):
    with pytest.raises(InputDataError, match=r"first gives NaN .* for 2 of 8 images: 9.png, 11.png"):
        run(images, FirstPixels(bad=(9, 11)), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shard-00000.json", "shard-00000.npy"]
    with pytest.raises(InputDataError, match=r"for 7 of 8 images: 0.png, 1.png, 2.png, 3.png, 4.png, \.\.\."):
        run(images, FirstPixels(key="b", bad=tuple(range(7))), tmp_path)


def test_features_that_are_all_equal_are_refused(images, tmp_path):
    with pytest.raises(InputDataError, match="first gives the same features for all 20 images"):
        run(images, FirstPixels(constant=True), tmp_path)


def test_unfinished_features_do_not_open(images, tmp_path):
    with pytest.raises(InputDataError, match=r"features in .* are not finished"):
        open_features(tmp_path)
    generator = extract_features(images, FirstPixels(), tmp_path, batch_size=20, shard_rows=ROWS)
    next(generator)
    next(generator)
    generator.close()
    with pytest.raises(InputDataError, match=r"features in .* are not finished"):
        open_features(tmp_path)


@pytest.mark.parametrize("shard_rows", [8, 20])
def test_features_that_do_not_fit_their_record_are_named(images, tmp_path, shard_rows):
    run(images, FirstPixels(), tmp_path, shard_rows=shard_rows)
    path = tmp_path / ("features.npy" if shard_rows == 8 else "shard-00000.npy")
    data = path.read_bytes()
    path.write_bytes(data[:-4])
    with pytest.raises(IntegrityError, match=f"{path.name} is not the file that was written"):
        open_features(tmp_path)
    np.save(path, np.zeros((20, 2), np.float32))
    with pytest.raises(IntegrityError, match=r"holds float32 \[20, 2\], its record says float32 \[20, 3\]"):
        open_features(tmp_path)


def test_arguments_out_of_range_are_named(images, tmp_path):
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        run(images, FirstPixels(), tmp_path, batch_size=0)
    with pytest.raises(ValueError, match=r"index must lie in \[0, 3\), got 3"):
        next(extract_shard(images, FirstPixels(), tmp_path, 3, batch_size=1, shard_rows=ROWS))
