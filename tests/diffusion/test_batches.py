"""A step's images, noise and augmentation against their definition: positions of the order, cut after drawing."""

import numpy as np
import pytest
import torch

from cedm_ray.data.order import TrainingOrder
from cedm_ray.diffusion.augment import AugmentConfig
from cedm_ray.diffusion.batches import BatchSource, stream_seed
from cedm_ray.diffusion.edm import EDMConfig

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 3, 4, 4), dtype=np.uint8)
CLASSES = np.arange(20)
ORDER = TrainingOrder(num_images=20, seed=1)


def _source(
    share: slice, probability: float = 0.5, pixels: np.ndarray = PIXELS, prefetch: bool | None = None
) -> BatchSource:
    return BatchSource(
        pixels,
        CLASSES,
        batch_size=12,
        share=share,
        edm=EDMConfig(),
        augment=AugmentConfig(probability=probability),
        order=ORDER,
        seed=7,
        device=torch.device("cpu"),
        prefetch=prefetch,
    )


def _fields(batch):
    return [batch.pixels, batch.conditions, batch.draws, batch.sigma, batch.noise]


def test_images_are_those_of_the_order():
    batch = _source(slice(0, 12)).draw(36)
    rows = ORDER.rows(36, 12)
    assert np.array_equal(batch.pixels.numpy(), PIXELS[rows])
    assert batch.conditions.tolist() == rows.tolist()


def test_shares_and_pieces_are_cuts_of_the_whole_batch():
    whole = _source(slice(0, 12)).draw(24)
    shares = [_source(slice(start, start + 4)).draw(24) for start in (0, 4, 8)]
    pieces = [whole.piece(start, 5) for start in (0, 5, 10)]
    assert [len(piece.pixels) for piece in pieces] == [5, 5, 2]
    for parts in (shares, pieces):
        for expected, *got in zip(_fields(whole), *map(_fields, parts), strict=True):
            assert torch.equal(expected, torch.cat(got))


def test_draws_are_a_function_of_seed_and_images_seen():
    source = _source(slice(0, 12))
    first = source.draw(24)
    other = source.draw(36)
    assert all(torch.equal(a, b) for a, b in zip(_fields(first), _fields(source.draw(24)), strict=True))
    assert not torch.equal(first.noise, other.noise)
    assert not torch.equal(first.sigma, other.sigma)
    assert not torch.equal(first.draws, other.draws)


def test_augmentation_does_not_change_noise_and_noise_levels():
    with_it, without = _source(slice(0, 12)).draw(0), _source(slice(0, 12), probability=0).draw(0)
    assert without.draws is None
    assert torch.equal(with_it.noise, without.noise)
    assert torch.equal(with_it.sigma, without.sigma)


def test_clean_images_lie_in_minus_one_to_one():
    batch = _source(slice(0, 12), probability=0).draw(0)
    clean, labels = batch.clean_images()
    assert labels is None
    np.testing.assert_allclose(clean.numpy(), batch.pixels.numpy() / 127.5 - 1, atol=1e-6)
    assert _source(slice(0, 12)).draw(0).clean_images()[1].shape == (12, 9)


def test_a_memory_map_serves_as_well_as_an_array(tmp_path):
    np.save(tmp_path / "pixels.npy", PIXELS)
    mapped = np.load(tmp_path / "pixels.npy", mmap_mode="r")
    batch = _source(slice(0, 12), pixels=mapped).draw(0)
    assert torch.equal(batch.pixels, _source(slice(0, 12)).draw(0).pixels)


def test_streams_steps_and_ranks_have_seeds_of_their_own():
    seeds = {
        stream_seed(s, seen, stream, rank) for s in (0, 1) for seen in (0, 512) for stream in (0, 2) for rank in (0, 1)
    }
    assert len(seeds) == 16
    with pytest.raises(ValueError, match="non-negative"):
        stream_seed(-1, 0, 0)


def test_reading_ahead_changes_nothing_wherever_one_continues():
    plain, ahead = _source(slice(2, 9)), _source(slice(2, 9), prefetch=True)
    # In order, from another place, and back: what was read ahead in vain is not used.
    for images_seen in (0, 12, 24, 120, 132, 0):
        for expected, got in zip(_fields(plain.draw(images_seen)), _fields(ahead.draw(images_seen)), strict=True):
            assert torch.equal(expected, got)
    ahead.close()
    ahead.close()


def test_features_are_taken_in_single_precision():
    source = _source(slice(0, 12))
    source.conditions = np.random.default_rng(2).normal(size=(20, 3)).astype(np.float16)
    taken = source.draw(36).conditions
    assert taken.dtype == torch.float32
    assert np.array_equal(taken.numpy(), source.conditions[ORDER.rows(36, 12)].astype(np.float32))
