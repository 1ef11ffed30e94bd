"""Non-leaking augmentation (Karras et al. 2020; Karras et al. 2022, appendix F.2): random flips, scaling, rotation,
stretching and translation, and the nine labels that tell the network what was done to each image.

Sampling omits the labels, which means "nothing was done", so no augmentation leaks into what is generated.

Shapes: B batch, S image side, P parameters, R rows of an enlarged image. Geometry other than flips is composed into one
affine map per image and executed once, on an image enlarged twofold by the sym6 wavelet, with the adjoint of the
enlargement on the way back; both filters are dense [R, S] matrices, applied as matrix products. Only images that
need it go through, and which these are is known without waiting for a device, because the draws stay on the CPU.
"""

import functools
import math

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from cedm_ray.config import Config

NUM_LABELS = 9
"""Flip x, flip y, scale, rotation (cos - 1, sin), stretch (along x, along y), shift x, shift y; 0 = not done."""

SYM6 = (
    0.015404109327027373,
    0.0034907120842174702,
    -0.11799011114819057,
    -0.048311742585633,
    0.4910559419267466,
    0.787641141030194,
    0.3379294217276218,
    -0.07263752278646252,
    -0.021060292512300564,
    0.04472490177066578,
    0.0017677118642428036,
    -0.007800708325034148,
)
"""Low-pass filter of the sym6 wavelet (Daubechies' least asymmetric, 6 vanishing moments); orthonormal, sum sqrt(2)."""

SYM6_DELAY = sum(index * tap for index, tap in enumerate(SYM6)) / sum(SYM6)
"""Where the mass of the filter lies, in taps. Positions account for it, so that rotations turn about the center."""

SCALE_OCTAVES = 0.2
"""Standard deviation of the logarithms (base 2) of scaling and stretching."""

SHIFT_SHARE = 0.125
"""Standard deviation of a translation, as a share of S."""

NUM_PARAMETERS = 8
_FLIP_X, _FLIP_Y, _SCALE, _ANGLE, _STRETCH, _STRETCH_AXIS, _SHIFT_X, _SHIFT_Y = range(NUM_PARAMETERS)


class AugmentConfig(Config):
    """How often images are augmented."""

    probability: float = Field(
        0.12,
        ge=0,
        le=1,
        description="Probability of each operation after the horizontal flip, which happens every other time in any "
        "case (a vertical flip, once chosen, happens every other time). 0 = no augmentation at all.",
    )


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on the device, through pinned memory, so that the host does not wait for what the device is at."""
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def draw_augmentation(count: int, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    """Parameters [count, P] float32 of `count` images, from a CPU generator; a row of zeros is the identity.

    Columns: flip x and flip y (0 or 1), scale (normal), angle (radians), stretch (normal), stretch axis (radians),
    shift x and shift y (normal). Slices of rows can be applied wherever their images are.
    """
    draws = torch.zeros(count, NUM_PARAMETERS)
    if config.probability == 0:
        return draws
    chances = torch.rand(count, 8, generator=generator)
    angles = (torch.rand(count, 2, generator=generator) * 2 - 1) * math.pi
    normal = torch.randn(count, 4, generator=generator)
    flip_y, scale, rotate, stretch, shift = (chances[:, :5] < config.probability).float().unbind(1)
    heads_x, heads_y, heads_axis = (chances[:, 5:] < 0.5).float().unbind(1)
    draws[:, _FLIP_X] = heads_x
    draws[:, _FLIP_Y] = flip_y * heads_y
    draws[:, _SCALE] = scale * normal[:, 0]
    draws[:, _ANGLE] = rotate * angles[:, 0]
    draws[:, _STRETCH] = stretch * normal[:, 1]
    draws[:, _STRETCH_AXIS] = stretch * heads_axis * angles[:, 1]
    draws[:, _SHIFT_X] = shift * normal[:, 2]
    draws[:, _SHIFT_Y] = shift * normal[:, 3]
    return draws


def augmentation_labels(draws: Tensor) -> Tensor:
    """The nine labels [B, 9] of parameters [B, P]; the order of `NUM_LABELS`."""
    flip_x, flip_y, scale, angle, stretch, axis, shift_x, shift_y = draws.unbind(1)
    return torch.stack(
        (
            flip_x,
            flip_y,
            scale,
            angle.cos() - 1,
            angle.sin(),
            stretch * axis.cos(),
            stretch * axis.sin(),
            shift_x,
            shift_y,
        ),
        dim=1,
    )


def apply_augmentation(images: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
    """Augment images [B, 3, S, S] (float, on any device) by parameters [B, P] (on the CPU).

    Returns new images of the same shape and their labels [B, 9], both on the images' device. Flips are exact, and
    images without another operation keep their pixels exactly. An angle turns counterclockwise, as torch.rot90 does; a
    positive shift moves right and down.
    """
    if draws.shape != (len(images), NUM_PARAMETERS):
        raise ValueError(f"draws must be [{len(images)}, {NUM_PARAMETERS}], got {list(draws.shape)}")
    labels = send(augmentation_labels(draws), images.device)
    images = images.clone()
    # Flips come first in the composition, so that they can be done without resampling.
    for column, dim in ((_FLIP_X, 3), (_FLIP_Y, 2)):
        rows = draws[:, column].nonzero().flatten()
        if len(rows):
            rows = send(rows, images.device)
            images[rows] = images[rows].flip(dim)
    rows = (draws[:, _SCALE:] != 0).any(dim=1).nonzero().flatten()
    if len(rows):
        maps = _inverse_maps(draws[rows].double(), images.shape[2])
        rows = send(rows, images.device)
        images[rows] = _warp(images[rows], maps)
    return images, labels


def _inverse_maps(draws: Tensor, size: int) -> Tensor:
    """For each image, the affine map [B, 2, 3] from a pixel of the result to the place in the image it shows.

    Coordinates are (x, y), x to the right and y down, in pixels from the center of the image. The image is scaled, then
    rotated, stretched and shifted; the inverse undoes these from the last to the first.
    """
    _, _, scale, angle, stretch, axis, shift_x, shift_y = draws.unbind(1)
    unscale = torch.exp2(-SCALE_OCTAVES * scale)
    unstretch = torch.exp2(-SCALE_OCTAVES * stretch)
    turn = _rotation(axis)
    narrow = torch.diag_embed(torch.stack((unstretch, 1 / unstretch), dim=1))
    linear = unscale[:, None, None] * (_rotation(-angle) @ turn @ narrow @ turn.mT)
    shift = torch.stack((shift_x, shift_y), dim=1)[:, :, None] * (SHIFT_SHARE * size)
    return torch.cat((linear, -linear @ shift), dim=2)


def _rotation(angle: Tensor) -> Tensor:
    """Matrices [B, 2, 2] that turn (x, y) counterclockwise as seen; y points down."""
    cos, sin = angle.cos(), angle.sin()
    return torch.stack((cos, sin, -sin, cos), dim=1).unflatten(1, (2, 2))


def _warp(images: Tensor, maps: Tensor) -> Tensor:
    """Resample images [B, 3, S, S] by inverse maps [B, 2, 3] (float64, on the CPU).

    The image is continued by reflection for as far as the maps reach, at most S - 1 pixels, and is zero beyond.
    """
    size = images.shape[2]
    taps = len(SYM6)
    center = (size - 1) / 2
    # Row r of an image enlarged twofold lies at pixel (r - delay) / 2; the result has 2 S + taps - 2 such rows.
    num_rows = 2 * size + taps - 2
    first, last = -SYM6_DELAY / 2 - center, (num_rows - 1 - SYM6_DELAY) / 2 - center
    corners = torch.tensor([[first, first, last, last], [first, last, first, last], [1, 1, 1, 1]], dtype=torch.float64)
    reach = maps @ corners + center
    # An enlarged row is whole when all taps / 2 pixels under the filter exist.
    before = (taps - 2 - SYM6_DELAY) / 2 - reach.min().item()
    after = reach.max().item() + (SYM6_DELAY - 1) / 2 - (size - 1)
    margin = min(max(math.ceil(max(before, after)) + 1, 0), size - 1)

    enlarge = _enlargement(size, margin, images.device)
    reduce = _enlargement(size, 0, images.device) / 2
    grid = send(_sampling_grid(maps, size, margin).float(), images.device)
    enlarged = enlarge @ (images @ enlarge.mT)
    sampled = F.grid_sample(
        enlarged,
        F.affine_grid(grid, [len(images), 3, num_rows, num_rows], align_corners=True),
        mode="bilinear",
        padding_mode="zeros",
        align_corners=True,
    )
    return reduce.mT @ (sampled @ reduce)


def _sampling_grid(maps: Tensor, size: int, margin: int) -> Tensor:
    """The inverse maps [B, 2, 3] in the coordinates of torch's affine_grid: -1 and 1 are the first and last row.

    Both ends are rows of enlarged images: row r of the result lies (r - delay) / 2 - center pixels from the center, and
    the enlarged source begins 2 margin rows earlier.
    """
    taps = len(SYM6)
    center = (size - 1) / 2
    half_result = (2 * size + taps - 3) / 2
    half_source = (2 * (size + 2 * margin) + taps - 3) / 2
    # The middle row of either lies at the same place, because the margins are equal.
    middle = (half_result - SYM6_DELAY) / 2 - center
    linear, shift = maps[:, :, :2], maps[:, :, 2:]
    offset = linear.sum(dim=2, keepdim=True) * middle + shift - middle
    return torch.cat((linear * (half_result / half_source), offset * (2 / half_source)), dim=2)


@functools.lru_cache(maxsize=512)
def _enlargement(size: int, margin: int, device: torch.device) -> Tensor:
    """The matrix [2 (S + 2 margin) + taps - 2, S] float32 that continues a line by reflection and doubles its rows.

    Inner products of its columns without margin are 2 (identity), since the wavelet is orthonormal: its transpose
    halved brings an enlarged line back.
    """
    taps = torch.tensor(SYM6, dtype=torch.float64) * math.sqrt(2)
    matrix = torch.zeros(2 * (size + 2 * margin) + len(taps) - 2, size, dtype=torch.float64)
    for position in range(-margin, size + margin):
        source = abs(position)
        source = min(source, 2 * (size - 1) - source)
        first = 2 * (position + margin)
        matrix[first : first + len(taps), source] += taps
    return matrix.float().to(device)
