"""A frozen network with its transform: what every kind of extractor comes down to.

Shapes: B batch, S image side, D feature width.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F

from cedm_ray.errors import InputDataError


class Extractor(Protocol):
    """A frozen network. Calling it maps uint8 [B, 3, S, S] on `device` to float32 [B, D] there, without gradients.

    name: short, for naming metrics. dim: D. key: SHA-256 (hex) of kind, weights and transform; equal keys mean equal
    features of equal images. device: where it runs. weight_bytes: memory of its weights, 0 where that is nothing to
    speak of.
    """

    name: str
    dim: int
    key: str
    device: torch.device
    weight_bytes: int

    def __call__(self, images: torch.Tensor) -> torch.Tensor: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkExtractor:
    """A network together with its transform. forward: uint8 [B, 3, S, S] -> features [B, D], on `device`. weight_bytes:
    memory of its weights."""

    name: str
    dim: int
    key: str
    device: torch.device
    forward: Callable[[torch.Tensor], torch.Tensor]
    weight_bytes: int = 0

    @torch.inference_mode()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return self.forward(images).float()


@dataclass(frozen=True, slots=True, kw_only=True)
class Transform:
    """How images are brought to a network: bicubic or another resize to `side` pixels, then (x / 255 - mean) / std.

    Image sets are square, so that a resize of the shorter side, one of both sides, and one followed by a central crop
    of `side` pixels are the same. mean, std: of each channel, in [0, 1].
    """

    side: int
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 [B, 3, S, S] -> float32 [B, 3, side, side]."""
        mean, std = (torch.tensor(v, device=images.device).view(1, 3, 1, 1) for v in (self.mean, self.std))
        return (resized(images.float(), self.side, self.interpolation) / 255 - mean) / std

    def to_plain(self) -> dict[str, object]:
        """What a key is made from."""
        return {
            "input_size": (3, self.side, self.side),
            "interpolation": self.interpolation,
            "rounded": "after each pass",
            "mean": self.mean,
            "std": self.std,
        }


def resized(values: torch.Tensor, side: int, interpolation: str) -> torch.Tensor:
    """[B, 3, S, S] in [0, 255] to exactly `side`, as Pillow resizes an image: antialiased, first across and then down,
    each time rounded to the 256 levels and cut off at 0 and 255. What overshoots at an edge is cut off between the two,
    which a resize in one go does not do: that differs by up to 20 levels on noise."""
    if values.shape[-1] == side:
        return values
    for size in ((values.shape[-2], side), (side, side)):
        values = F.interpolate(values, size=size, mode=interpolation, antialias=True).round().clamp(0, 255)
    return values


def try_out(
    forward: Callable[[torch.Tensor], torch.Tensor], size: int, device: torch.device, what: str, mend: str
) -> int:
    """D, found by two images of size S. Raises InputDataError where `forward` does not map them to features [2, D]."""
    probe = torch.zeros(2, 3, size, size, dtype=torch.uint8, device=device)
    try:
        with torch.inference_mode():
            features = forward(probe)
    except (RuntimeError, ValueError, TypeError, AssertionError, torch.jit.Error) as error:
        # TorchScript prints its own traceback first.
        reason = str(error).strip().rpartition("\n")[2]
        raise InputDataError(f"{what} failed on uint8 [2, 3, {size}, {size}]: {reason}", mend=mend) from None
    if not isinstance(features, torch.Tensor) or features.ndim != 2 or len(features) != 2:
        got = list(features.shape) if isinstance(features, torch.Tensor) else type(features).__name__
        raise InputDataError(f"{what} returned {got} for 2 images, not [2, D]", mend=mend)
    if not features.is_floating_point():
        raise InputDataError(f"{what} returned {features.dtype}, not floating point", mend=mend)
    return features.shape[1]


def weight_bytes(network: torch.nn.Module) -> int:
    """Memory of a network's parameters and buffers."""
    return sum(tensor.numel() * tensor.element_size() for tensor in (*network.parameters(), *network.buffers()))


def hash_weights(network: torch.nn.Module) -> str:
    """SHA-256 (hex) over the names and bytes of all weights, wherever they were loaded from."""
    hasher = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        array = value.detach().cpu().contiguous().numpy()
        hasher.update(f"{name}|{array.dtype.str}|{array.shape}|".encode())
        hasher.update(array.tobytes())
    return hasher.hexdigest()
