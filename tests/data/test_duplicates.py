"""Copies, exact and near: every step against brute force or another library, and planted copies are found."""

import io
import itertools

import numpy as np
import pytest
from PIL import Image
from scipy.fft import dctn
from scipy.ndimage import gaussian_filter

from cedm_ray.data import duplicates
from cedm_ray.data.duplicates import MAX_BITS, DuplicateFinder, perceptual_hashes

RNG = np.random.default_rng(5)


def pictures(count: int, side: int = 34, seed: int = 0) -> np.ndarray:
    """Random pictures, no two alike, whose colors change more slowly than their light, as photographs' do; uint8
    [count, 3, side, side]."""
    rng = np.random.default_rng(seed)
    light, color = (
        gaussian_filter(rng.normal(size=(count, channels, side, side)), sigma=(0, 0, sigma, sigma))
        for channels, sigma in ((1, 1.5), (3, 6))
    )
    return np.clip(128 + 40 * light / light.std() + 15 * color / color.std(), 0, 255).astype(np.uint8)


def find(images) -> duplicates.Duplicates:
    with DuplicateFinder() as finder:
        for number, pixels in enumerate(images):
            finder.add(number, pixels)
        return finder.find()


def jpeg(pixels: np.ndarray, quality: int) -> np.ndarray:
    data = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(data, "JPEG", quality=quality)
    return np.asarray(Image.open(data)).transpose(2, 0, 1)


def test_the_bits_are_signs_of_the_lowest_cosine_coefficients():
    grey = RNG.uniform(0, 255, (20, 32, 32)).astype(np.float32)
    hashes = perceptual_hashes(grey)
    places = sorted(((u, v) for u in range(30) for v in range(30)), key=lambda p: (p[0] + p[1], p[0], p[1]))[1:65]
    for (y, x), column in zip(((1, 1), (1, 2), (2, 1), (2, 2), (2, 0)), hashes.T, strict=True):
        coefficients = dctn(grey[:, y : y + 30, x : x + 30].astype(np.float64), axes=(1, 2), norm="ortho")
        for image, found in zip(coefficients, column, strict=True):
            values = np.array([image[place] for place in places])
            bits = values > 0.05 * np.abs(values).mean()
            assert int(found) == sum(1 << k for k, bit in enumerate(bits) if bit)


def test_every_pair_within_five_bits_is_a_candidate_and_none_beyond_ten():
    count = 120
    base = RNG.integers(0, 2**64, (count, 5), dtype=np.uint64)
    # Hashes that differ from another image's center in so many bits anywhere.
    for image in range(60, count):
        column, bits = RNG.integers(0, 5), RNG.choice(64, RNG.integers(0, 14), replace=False)
        base[image, column] = base[image - 60, 0] ^ np.uint64(sum(1 << int(bit) for bit in bits))
    found = {tuple(row) for row in duplicates._candidates(base).tolist()}
    for shifted, center, window in itertools.product(range(count), range(count), range(5)):
        if shifted == center:
            continue
        bits = (int(base[shifted, window]) ^ int(base[center, 0])).bit_count()
        named = (shifted, center, window) in found or (window == 0 and (center, shifted, window) in found)
        assert named or bits > 5, (shifted, center, window, bits)
        assert not named or bits <= MAX_BITS


def test_correlations_are_numpys():
    a, b = RNG.normal(size=(2, 6, 30, 30))
    expected = [np.corrcoef(x.ravel(), y.ravel())[0, 1] for x, y in zip(a, b, strict=True)]
    assert duplicates._correlations(a, b) == pytest.approx(expected)


def test_equal_pixels_are_found_as_a_dictionary_finds_them():
    images = list(pictures(30))
    # More than one batch, and copies of several images far apart.
    order = RNG.integers(0, 30, 600)
    groups: dict[bytes, list[int]] = {}
    for number, image in enumerate(order):
        groups.setdefault(images[image].tobytes(), []).append(number)
    found = find(images[image] for image in order)
    assert found.exact == tuple(sorted(tuple(group) for group in groups.values() if len(group) > 1))
    assert found.near == ()


def test_equal_bytes_of_another_shape_are_no_copy():
    assert find([np.zeros((3, 4, 4), np.uint8), np.zeros((3, 8, 8), np.uint8)]).exact == ()


@pytest.mark.parametrize(("down", "across"), [p for p in itertools.product((-1, 0, 1), repeat=2) if any(p)])
def test_a_shift_by_one_pixel_in_any_direction_is_a_near_copy(down, across):
    whole = pictures(40)
    centers = whole[:, :, 1:33, 1:33]
    moved = whole[:, :, 1 + down : 33 + down, 1 + across : 33 + across]
    found = find([*centers, *moved])
    assert found.near == tuple((i, i + 40) for i in range(40))


@pytest.mark.parametrize(
    "change",
    [
        lambda x: jpeg(x, 75),
        lambda x: jpeg(x, 40),
        lambda x: (x * 0.8).astype(np.uint8),
        lambda x: np.clip(x.astype(int) + 20, 0, 255).astype(np.uint8),
        lambda x: np.asarray(Image.fromarray(x.transpose(1, 2, 0)).resize((64, 64))).transpose(2, 0, 1),
        lambda x: np.clip(x + np.random.default_rng(1).normal(0, 5, x.shape), 0, 255).astype(np.uint8),
    ],
    ids=["jpeg 75", "jpeg 40", "darker", "brighter", "larger", "noise"],
)
def test_a_changed_picture_is_a_near_copy_of_its_original_and_of_no_other(change):
    originals = pictures(60, side=32)
    found = find([*originals, *map(change, originals)])
    assert found.exact == ()
    assert found.near == tuple((i, i + 60) for i in range(60))


def test_pictures_that_have_nothing_to_do_with_each_other_are_no_copies():
    assert find(pictures(500, side=32)).near == ()


def test_another_color_is_another_picture():
    grey = pictures(5, side=32)[:, :1].repeat(3, axis=1)
    tinted = np.clip(grey * np.array([1.0, 0.4, 0.4])[:, None, None], 0, 255).astype(np.uint8)
    assert find([*grey, *tinted]).near == ()


def test_many_alike_are_linked_to_one_group_though_not_every_pair_is_looked_at():
    rng = np.random.default_rng(3)
    (original,) = pictures(1, side=32).astype(int)
    copies = [np.clip(original + rng.integers(-3, 4, original.shape), 0, 255).astype(np.uint8) for _ in range(300)]
    assert find(copies).near == (tuple(range(300)),)


def test_only_the_first_of_equal_images_is_among_the_near():
    (original,) = pictures(1, side=32)
    assert find([original, original, jpeg(original, 75)]) == duplicates.Duplicates(
        exact=((0, 1),), near=((0, 2),), num_flat=0
    )


def test_images_without_contrast_are_counted_and_near_none():
    flat = [np.full((3, 32, 32), level, np.uint8) for level in (10, 11, 12)]
    found = find([*flat, flat[0]])
    assert found == duplicates.Duplicates(exact=((0, 3),), near=(), num_flat=4)


@pytest.mark.parametrize("side", [1, 2, 7, 31, 33, 500])
def test_images_of_any_side_are_taken(side):
    image = RNG.integers(0, 256, (3, side, side), dtype=np.uint8)
    assert find([image, image]).exact == ((0, 1),)


def test_no_images_have_no_copies():
    assert find([]) == duplicates.Duplicates(exact=(), near=(), num_flat=0)


def test_memory_of_an_image_is_its_hashes():
    """1,000 images of 27 kB each leave less than a hundred bytes each in memory."""
    import tracemalloc

    images = pictures(8, side=96)
    with DuplicateFinder() as finder:
        finder.add(0, images[0])
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        for number in range(1, 1025):
            finder.add(number, images[number % 8])
        held = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
    # Growing arrays hold up to an eighth more, and a part of a batch waits to be hashed.
    assert held < 1024 * 80 + 256 * 1056
