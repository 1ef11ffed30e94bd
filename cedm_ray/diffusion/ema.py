"""Exponential moving average of the weights with a half-life counted in images (Karras et al. 2022, appendix F.2)."""

import torch
from torch import Tensor


def ema_decay(images_seen: int, batch_size: int, *, halflife_kimg: float, rampup_ratio: float | None) -> float:
    """beta of a step over `batch_size` images, in [0, 1): the average becomes beta average + (1 - beta) weights.

    images_seen: images before the step. halflife_kimg: thousands of images after which a weight counts half, 0 = no
    averaging. rampup_ratio: the half-life is at most this share of images_seen, so that the random start is forgotten;
    None = no ramp. At 0 images with a ramp beta is 0: the average is a copy.
    """
    halflife = halflife_kimg * 1000
    if rampup_ratio is not None:
        halflife = min(halflife, rampup_ratio * images_seen)
    return 0.5 ** (batch_size / halflife) if halflife > 0 else 0.0


@torch.no_grad()
def update_ema(average: list[Tensor], weights: list[Tensor], rate: float | Tensor) -> None:
    """Move each average toward its weight by the share `rate` = 1 - beta, in place.

    rate: a float, or a scalar tensor on the weights' device when only the device knows whether the step counts (0 = it
    does not); reading it back would stall the device.
    """
    if isinstance(rate, float):
        torch._foreach_lerp_(average, weights, rate)
    else:
        difference = torch._foreach_sub(weights, average)
        torch._foreach_mul_(difference, rate)
        torch._foreach_add_(average, difference)
