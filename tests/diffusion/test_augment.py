"""Augmentation against exact transformations, the wavelet's defining properties and the published label shares."""

import math

import pytest
import torch

from cedm_ray.diffusion import augment
from cedm_ray.diffusion.augment import (
    NUM_PARAMETERS,
    SYM6,
    AugmentConfig,
    apply_augmentation,
    augmentation_labels,
    draw_augmentation,
)

FLIP_X, FLIP_Y, SCALE, ANGLE, STRETCH, AXIS, SHIFT_X, SHIFT_Y = range(NUM_PARAMETERS)


def _draws(count: int = 1, **columns: float) -> torch.Tensor:
    draws = torch.zeros(count, NUM_PARAMETERS)
    for name, value in columns.items():
        draws[:, globals()[name.upper()]] = value
    return draws


def _noise_images(count: int, size: int) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def _smooth_image(size: int, inverse: torch.Tensor | None = None) -> torch.Tensor:
    """Three bumps off center, [1, 3, S, S], nearly 0 at the border; `inverse` [2, 2] evaluates them elsewhere."""
    line = torch.linspace(-1, 1, size)
    y, x = torch.meshgrid(line, line, indexing="ij")
    if inverse is not None:
        x, y = inverse[0, 0] * x + inverse[0, 1] * y, inverse[1, 0] * x + inverse[1, 1] * y
    centers = ((0.2, -0.3), (0, 0.2), (-0.3, 0))
    return torch.stack([torch.exp(-16 * ((x - a) ** 2 + (y - b) ** 2)) for a, b in centers])[None]


def test_wavelet_is_orthonormal():
    taps = torch.tensor(SYM6, dtype=torch.float64)
    assert taps.sum().item() == pytest.approx(math.sqrt(2), abs=1e-10)
    assert taps.square().sum().item() == pytest.approx(1, abs=1e-10)
    for shift in range(2, 12, 2):
        assert (taps[shift:] * taps[:-shift]).sum().item() == pytest.approx(0, abs=1e-10)


def test_wavelet_has_six_vanishing_moments():
    signs = (-1.0) ** torch.arange(12)
    for power in range(6):
        moment = (signs * torch.tensor(SYM6, dtype=torch.float64) * (torch.arange(12) - 5.5) ** power).sum()
        assert moment.item() == pytest.approx(0, abs=1e-7)


def test_zero_draws_return_the_images_exactly():
    images = _noise_images(4, 8)
    same, labels = apply_augmentation(images, _draws(4))
    assert torch.equal(same, images)
    assert same.data_ptr() != images.data_ptr()
    assert torch.equal(labels, torch.zeros(4, 9))


def test_identity_map_through_the_resampling_returns_the_images():
    images = _noise_images(2, 12)
    identity = torch.eye(2, 3, dtype=torch.float64).expand(2, 2, 3)
    torch.testing.assert_close(augment._warp(images, identity), images, rtol=0, atol=1e-5)


def test_flips_are_exact():
    images = _noise_images(3, 9)
    before = images.clone()
    draws = torch.cat((_draws(flip_x=1), _draws(flip_y=1), _draws(flip_x=1, flip_y=1)))
    flipped, labels = apply_augmentation(images, draws)
    assert torch.equal(flipped[0], images[0].flip(2))
    assert torch.equal(flipped[1], images[1].flip(1))
    assert torch.equal(flipped[2], images[2].flip(1, 2))
    assert torch.equal(labels[:, :2], torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
    assert torch.equal(images, before)


@pytest.mark.parametrize("quarters", [1, 2, -1])
@pytest.mark.parametrize("size", [32, 33])
def test_quarter_turns_agree_with_rot90(quarters, size):
    # What remains is the bilinear interpolation between pixels of the enlarged image.
    image = _smooth_image(size)
    turned, labels = apply_augmentation(image, _draws(angle=quarters * math.pi / 2))
    torch.testing.assert_close(turned, torch.rot90(image, quarters, (2, 3)), rtol=0, atol=1.2e-2)
    expected = [0, 0, 0, math.cos(quarters * math.pi / 2) - 1, math.sin(quarters * math.pi / 2), 0, 0, 0, 0]
    assert labels[0].tolist() == pytest.approx(expected, abs=1e-6)


def test_whole_pixel_shifts_are_exact_even_on_noise():
    images = _noise_images(1, 16)
    shifted, labels = apply_augmentation(images, _draws(shift_x=1.0, shift_y=-0.5))  # 2 right, 1 up
    torch.testing.assert_close(shifted[:, :, :-1, 2:], images[:, :, 1:, :-2], rtol=0, atol=2e-5)
    # What comes into view continues the image by reflection.
    torch.testing.assert_close(shifted[:, :, :-1, 1], images[:, :, 1:, 1], rtol=0, atol=2e-5)
    assert labels[0].tolist() == [0, 0, 0, 0, 0, 0, 0, 1.0, -0.5]


@pytest.mark.parametrize(
    ("draws", "linear"),
    [
        (_draws(scale=2.0), [[2**0.4, 0], [0, 2**0.4]]),
        (_draws(stretch=2.0), [[2**0.4, 0], [0, 2**-0.4]]),
        (_draws(stretch=2.0, axis=math.pi / 2), [[2**-0.4, 0], [0, 2**0.4]]),
        (_draws(angle=0.5), [[math.cos(0.5), math.sin(0.5)], [-math.sin(0.5), math.cos(0.5)]]),
    ],
    ids=["scale", "stretch along x", "stretch along y", "rotation"],
)
def test_geometry_agrees_with_the_moved_function(draws, linear):
    # Forward matrices in (x, y), y down, written by hand; the image is a function that can be evaluated anywhere.
    inverse = torch.linalg.inv(torch.tensor(linear))
    got, _ = apply_augmentation(_smooth_image(48), draws)
    line = torch.linspace(-1, 1, 48)
    y, x = torch.meshgrid(line, line, indexing="ij")
    # What comes into view from outside is a reflection, which the function does not have.
    inside = (inverse @ torch.stack((x.flatten(), y.flatten()))).abs().amax(dim=0).view(48, 48) < 0.9
    torch.testing.assert_close(got[..., inside], _smooth_image(48, inverse)[..., inside], rtol=0, atol=6e-3)


def test_zooming_out_shows_reflections_without_a_seam():
    # A constant image continued by reflection is the same constant wherever the view reaches.
    images = torch.full((2, 3, 16, 16), 0.7)
    draws = torch.cat((_draws(scale=-3.0), _draws(shift_x=3.0, angle=0.7)))
    torch.testing.assert_close(apply_augmentation(images, draws)[0], images, rtol=0, atol=1e-4)


def test_an_image_is_augmented_the_same_whatever_its_batch():
    images = _noise_images(60, 8)
    draws = draw_augmentation(60, AugmentConfig(probability=0.5), torch.Generator().manual_seed(1))
    together, labels = apply_augmentation(images, draws)
    pieces = [apply_augmentation(images[i : i + 7], draws[i : i + 7]) for i in range(0, 60, 7)]
    torch.testing.assert_close(together, torch.cat([piece for piece, _ in pieces]), rtol=0, atol=2e-5)
    assert torch.equal(labels, torch.cat([piece for _, piece in pieces]))


def test_label_shares_are_the_published_ones():
    published = [0.506, 0.063, 0.117, 0.124, 0.124, 0.117, 0.056, 0.113, 0.113]  # of 4,000 images
    draws = draw_augmentation(200_000, AugmentConfig(probability=0.12), torch.Generator().manual_seed(0))
    shares = (augmentation_labels(draws) != 0).float().mean(dim=0).tolist()
    assert shares == pytest.approx(published, abs=0.024)
    assert shares == pytest.approx([0.5, 0.06, 0.12, 0.12, 0.12, 0.12, 0.06, 0.12, 0.12], abs=0.004)


def test_parameters_have_their_distributions():
    draws = draw_augmentation(50_000, AugmentConfig(probability=1.0), torch.Generator().manual_seed(0))
    for column in (SCALE, STRETCH, SHIFT_X, SHIFT_Y):
        assert draws[:, column].mean().item() == pytest.approx(0, abs=0.02)
        assert draws[:, column].std().item() == pytest.approx(1, abs=0.02)
    for angles in (draws[:, ANGLE], draws[draws[:, AXIS] != 0, AXIS]):
        assert angles.min().item() == pytest.approx(-math.pi, abs=0.01)
        assert angles.max().item() == pytest.approx(math.pi, abs=0.01)
        assert angles.std().item() == pytest.approx(math.pi / math.sqrt(3), rel=0.01)


def test_labels_of_a_stretch_point_along_its_axis():
    labels = augmentation_labels(_draws(stretch=2.0, axis=0.3))
    assert labels[0, 5:7].tolist() == pytest.approx([2 * math.cos(0.3), 2 * math.sin(0.3)])


def test_probability_zero_draws_nothing_at_all():
    draws = draw_augmentation(100, AugmentConfig(probability=0), torch.Generator().manual_seed(0))
    assert torch.equal(draws, torch.zeros(100, NUM_PARAMETERS))


def test_draws_of_another_length_are_refused():
    with pytest.raises(ValueError, match=r"draws must be \[2, 8\], got \[3, 8\]"):
        apply_augmentation(_noise_images(2, 8), _draws(3))
