"""What a search will cost, counted before anything is started.

All figures are floating-point operations of matrix products, convolutions and attention, a multiply-add counted as two,
as torch's FlopCounterMode counts them on tensors without data. Of a network's forward pass at one image:

    training     3 forward passes an image (a backward pass costs two)
    sampling     2 num_steps - 1 forward passes an image (Heun's method); twice that with guidance, which is of
                 conditional models
    detector     one forward pass of the detector an image

What is left out is small or not arithmetic: the optimizer, the augmentation, the Fréchet distance itself (some D^3 once
a rung), and the reference statistics, which are computed once a study.
"""

from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import torch
from torch.utils.flop_counter import FlopCounterMode

from cedm_ray.diffusion.sample import SampleConfig
from cedm_ray.diffusion.unet import UNet
from cedm_ray.errors import ConfigurationError
from cedm_ray.features.extractors import is_path
from cedm_ray.features.published import IMAGENET_224, PUBLISHED
from cedm_ray.search.space import SearchSpace

TRAINING_FORWARDS = 3
"""A training step in forward passes: the forward one, and a backward one that costs two."""

_INCEPTION_SIDE, _PIXELS_SIDE = 299, 32


@dataclass(frozen=True, slots=True, kw_only=True)
class RungCost:
    """What one trial costs from the rung before to this one.

    rung_kimg: the rung's level. images: training images in between. training_flops: of these. num_samples, num_steps:
    images generated at the rung, and noise levels of their sampler. sampling_flops: of generating them. detector_flops:
    of their features; None where the detector cannot be counted without its file.
    """

    rung_kimg: float
    images: int
    training_flops: int
    num_samples: int
    num_steps: int
    sampling_flops: int
    detector_flops: int | None

    @property
    def evaluation_flops(self) -> int:
        """Sampling and, where it is counted, the detector."""
        return self.sampling_flops + (self.detector_flops or 0)

    @property
    def share(self) -> float:
        """The evaluation's cost over that of the training since the rung before, at least 0."""
        return self.evaluation_flops / self.training_flops


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The cost of one trial of a space. forward_flops: of the denoiser, one image. image_calls: forward passes for one
    image by the space's own sampler. rungs: in their order."""

    image_size: int
    forward_flops: int
    image_calls: int
    rungs: tuple[RungCost, ...]

    @property
    def training_flops(self) -> int:
        """Of one trial through all rungs."""
        return sum(rung.training_flops for rung in self.rungs)

    @property
    def evaluation_flops(self) -> int:
        """Of all rungs of one trial."""
        return sum(rung.evaluation_flops for rung in self.rungs)


def plan_trial(space: SearchSpace, image_size: int) -> Plan:
    """Count one trial. image_size: S in pixels. Raises ConfigurationError where the network does not fit that size."""
    forward = denoiser_flops(space, image_size)
    detector = detector_flops(space, image_size)
    config, count = space.rung_sampling, space.evaluation.num_samples
    images = [round(rung * 1000) for rung in (0, *space.rungs.rungs_kimg)]
    rungs = tuple(
        RungCost(
            rung_kimg=level,
            images=images_now - images_before,
            training_flops=TRAINING_FORWARDS * forward * (images_now - images_before),
            num_samples=count,
            num_steps=config.num_steps,
            sampling_flops=count * network_calls(config) * forward,
            detector_flops=None if detector is None else count * detector,
        )
        for level, (images_before, images_now) in zip(space.rungs.rungs_kimg, pairwise(images), strict=True)
    )
    return Plan(image_size=image_size, forward_flops=forward, image_calls=network_calls(space.sampling), rungs=rungs)


def network_calls(config: SampleConfig) -> int:
    """Forward passes for one image of a conditional model: two a step of Heun's method, but one in the last, which
    goes to zero noise; guidance asks a second time at each."""
    return (2 * config.num_steps - 1) * (2 if config.guidance else 1)


def denoiser_flops(space: SearchSpace, image_size: int) -> int:
    """Of one forward pass of the space's U-Net at one image of S pixels a side. The number of classes adds nothing.

    Raises ConfigurationError for a size that the network's levels cannot halve.
    """
    try:
        # What is counted needs shapes alone.
        with torch.device("meta"):
            net = UNet(space.network, image_size, 0, 0).eval()
    except ValueError as error:
        mend = "set images.size, or fewer levels in network.channel_mult"
        raise ConfigurationError(f"network: {error}", mend=mend) from None
    return _count(lambda: net(_nothing(image_size), torch.empty(1, device="meta")))


def detector_flops(space: SearchSpace, image_size: int) -> int | None:
    """Of the space's detector at one image; None for a TorchScript file, which is not opened, and for OpenCLIP.

    `inception` is counted in timm's Inception-v3, whose convolutions are the same.
    """
    spec = space.evaluation.detector
    if is_path(spec):
        return None
    if spec == "pixels":
        width = 3 * min(image_size, _PIXELS_SIDE) ** 2
        return 2 * width * min(space.features.pixel_components, width)
    return _network_flops(spec)


@cache
def _network_flops(spec: str) -> int | None:
    """Of a published detector; remembered, since to make one takes seconds."""
    import timm

    name, side, more = spec, None, {}
    if spec in ("inception", "inception_clean"):
        name, side = "inception_v3", _INCEPTION_SIDE
    elif spec in PUBLISHED:
        name, side = PUBLISHED[spec].timm, IMAGENET_224.side
        more = {"img_size": side}
    if name is None or not timm.is_model(name.partition(".")[0]):
        return None
    with torch.device("meta"):
        network = timm.create_model(name, pretrained=False, num_classes=0, **more).eval()
    side = side or timm.data.resolve_model_data_config(network)["input_size"][-1]
    return _count(lambda: network(_nothing(side)))


def _nothing(side: int) -> torch.Tensor:
    """One image without data."""
    return torch.empty(1, 3, side, side, device="meta")


def _count(call) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()
