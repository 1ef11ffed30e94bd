"""How fast a GPU trains: measured by a study, measured elsewhere and written here, or estimated from both and said so.

Speeds are counted in operations: floating-point operations of the denoiser a second, 3 forward passes to a training
image (`plan.py`), so that what was measured on one network says something of another.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from cedm_ray.errors import ConfigurationError
from cedm_ray.search.plan import TRAINING_FORWARDS
from cedm_ray.search.results import TrialReport

_GFLOP = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedRate:
    """images_per_s: training images a second of one GPU. forward_flops: of the network that was trained, one image."""

    gpu: str
    images_per_s: float
    forward_flops: float
    source: str


PUBLISHED_RATES = (
    # performance.md 2.4: the code's README and the paper say "~1 day" of 4 A100 for CIFAR-10, taken as 200 million
    # images; 42.38 GFLOP is counted there on EDM's network (2.1).
    PublishedRate(
        gpu="A100",
        images_per_s=579,
        forward_flops=42.38 * _GFLOP,
        source="the C-EDM paper's day of four A100 for 200 million CIFAR-10 images",
    ),
    # performance.md 2.4: the paper says more than 2 days of 4 A100 for 200 million images of FFHQ-64, so at most 289
    # images/s; 83.2 GFLOP is this project's count of that network.
    PublishedRate(
        gpu="A100",
        images_per_s=289,
        forward_flops=83.2 * _GFLOP,
        source="the C-EDM paper's two days of four A100 for 200 million FFHQ-64 images",
    ),
    # performance.md 2.4: EDM's README says some 2 and 4 days of 8 V100, in float32, for 200 million images.
    PublishedRate(
        gpu="V100",
        images_per_s=145,
        forward_flops=42.38 * _GFLOP,
        source="EDM's two days of eight V100 for 200 million CIFAR-10 images",
    ),
    PublishedRate(
        gpu="V100",
        images_per_s=72,
        forward_flops=83.2 * _GFLOP,
        source="EDM's four days of eight V100 for 200 million FFHQ-64 images",
    ),
    # Measured: this code's step, float16, compiled, 256 images of 32 pixels and 128 of 64 at once
    # (benchmarks/edm_gpu.py).
    PublishedRate(
        gpu="H200",
        images_per_s=2541,
        forward_flops=42.38 * _GFLOP,
        source="this code's step on an H200, the CIFAR-10 network in float16",
    ),
    PublishedRate(
        gpu="H200",
        images_per_s=1128,
        forward_flops=83.2 * _GFLOP,
        source="this code's step on an H200, the FFHQ-64 network in float16",
    ),
)

# Operations a second that the hardware can do at the most, in half precision (performance.md 2.4; the H100 has the
# H200's processor).
_PEAK_FLOPS = {"A100": 312e12, "H200": 790e12, "H100": 790e12}
_SAME_NETWORK, _SMALLEST = 0.01, 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """Training images a second of one GPU (or of one trial on CPUs), and where that is from, in words for people."""

    images_per_s: float
    source: str


def parse_gpus(text: str) -> tuple[int, str]:
    """`8xA100` as (8, "A100"); `A100` alone is one. Raises ConfigurationError."""
    found = re.fullmatch(r"(?:(\d+)\s*[xX])?\s*([A-Za-z][\w -]*)", text.strip())
    if found is None or found[1] == "0":
        raise ConfigurationError(f"--gpus must be such as 8xA100, got {text!r}")
    return int(found[1] or 1), found[2]


def known_gpu(name: str) -> str | None:
    """The table's name of a GPU by the name that its driver gives it ("NVIDIA A100-SXM4-80GB"); None if it has none."""
    words = re.findall(r"[A-Za-z0-9]+", name)
    return next((gpu for gpu in (*_PEAK_FLOPS, *{r.gpu for r in PUBLISHED_RATES}) if gpu in words), None)


def rate_of(gpu: str, forward_flops: float) -> Rate | None:
    """What one such GPU trains of a network; None for a GPU of which nothing is known.

    forward_flops: of the denoiser at one image. Where the very network was measured on it, that is taken; else its
    speed on the most alike one in operations a second; else the A100's share of its peak on that, of this GPU's peak.
    A network of a tenth of the operations or less waits for its launches and not for arithmetic: nothing is said of it.
    """
    name = known_gpu(gpu)
    measured = [rate for rate in PUBLISHED_RATES if rate.gpu == name]
    if name is None or forward_flops < _SMALLEST * min(rate.forward_flops for rate in PUBLISHED_RATES):
        return None
    alike = measured or [rate for rate in PUBLISHED_RATES if rate.gpu == "A100"]
    nearest = min(alike, key=lambda rate: abs(rate.forward_flops - forward_flops))
    if measured and abs(nearest.forward_flops / forward_flops - 1) < _SAME_NETWORK:
        return Rate(images_per_s=nearest.images_per_s, source=nearest.source)
    speed = nearest.images_per_s * nearest.forward_flops / forward_flops
    if measured:
        return Rate(images_per_s=speed, source=f"an estimate by operations from {nearest.source}")
    speed *= _PEAK_FLOPS[name] / _PEAK_FLOPS["A100"]
    share = TRAINING_FORWARDS * nearest.images_per_s * nearest.forward_flops / _PEAK_FLOPS["A100"]
    return Rate(
        images_per_s=speed,
        source=f"an estimate: {share:.1%} of {_PEAK_FLOPS[name] / 1e12:g} TFLOP/s, the share of an A100's peak that "
        f"{nearest.source} come to",
    )


def measured_rate(reports: Sequence[TrialReport]) -> Rate | None:
    """What the trials of a study trained a second for each GPU that they held, or each trial where they held none.

    None where no report says.
    """
    known = [report for report in reports if report.trained_images and report.train_s > 0 and report.gpus is not None]
    if not known:
        return None
    # One kind of hardware: where some trials had GPUs, the others are of no interest.
    on_gpus = [report for report in known if report.gpus]
    images = sum(report.trained_images for report in on_gpus or known)
    seconds = sum(report.train_s * (report.gpus or 1.0) for report in on_gpus or known)
    each = "GPU" if on_gpus else "trial on CPUs"
    return Rate(images_per_s=images / seconds, source=f"measured in this study, for each {each}")
