"""Sampling with Heun's method (Karras et al. 2022, Algorithms 1 and 2), each image from its own seed.

Shapes: B images at once, n images in all, N steps, K classes, D width of a feature condition, S image side. An image's
latent, condition and, in the stochastic variant, noise come from a CPU generator with the image's seed, in this order:
the image is a function of (network, seed) whatever the batch, the number of workers or the kind of device, up to the
rounding of the network; and one seed gives the same latent for every network and every K.
"""

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from cedm_ray.config import Config
from cedm_ray.diffusion.compilation import compiled, try_forward
from cedm_ray.diffusion.guidance import feature_dim, guided
from cedm_ray.diffusion.state import compute_dtype
from cedm_ray.diffusion.unet import UNet

MAX_CHURN = 2**0.5 - 1
"""Largest relative increase of the noise level by one step of the stochastic variant."""

WORTH_COMPILING = 100_000
"""Evaluations of the network, counted in images, from which on compiling it first saves time on a GPU."""


class SampleConfig(Config):
    """The path from noise to image; the defaults are EDM's deterministic sampler for CIFAR-10 (35 network calls)."""

    num_steps: int = Field(18, ge=2, description="Noise levels visited before zero; 2 num_steps - 1 network calls.")
    sigma_min: float = Field(0.002, gt=0, description="Lowest noise level before zero.")
    sigma_max: float = Field(80.0, gt=0, description="Noise level of the start.")
    rho: float = Field(7.0, gt=0, description="How much denser the steps are at low noise; 1 = evenly spaced.")
    s_churn: float = Field(0.0, ge=0, description="Noise added and removed over the whole path; 0 = deterministic.")
    s_min: float = Field(0.0, ge=0, description="Lowest noise level at which noise is added.")
    s_max: float | None = Field(None, gt=0, description="Highest noise level at which noise is added. None = no limit.")
    s_noise: float = Field(
        1.0, gt=0, description="Standard deviation of the added noise, relative to what the path loses."
    )
    guidance: float = Field(
        0.0, ge=0, description="Weight w of guidance; 0 = none. Classifier-free needs network.label_dropout above 0."
    )
    batch_size: int = Field(256, ge=1, description="Images generated at once; memory only, not the result.")
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="What the network's activations are held in; the path itself is float64. auto = float16 on CUDA "
        "devices, with a batch that overflows it computed again in float32, and float32 on CPUs.",
    )
    compile: bool | None = Field(
        None,
        description="Whether torch.compile fuses the network's blocks first; changes speed only. None = on CUDA "
        "devices where there is enough to sample for it to pay.",
    )


def sigma_steps(config: SampleConfig) -> Tensor:
    """The noise levels t_0 .. t_N, float64 [N + 1], from sigma_max down to sigma_min and then 0 (Table 1)."""
    if config.sigma_min >= config.sigma_max:
        raise ValueError(f"sigma_min must be below sigma_max {config.sigma_max}, got {config.sigma_min}")
    high, low = config.sigma_max ** (1 / config.rho), config.sigma_min ** (1 / config.rho)
    ramp = torch.arange(config.num_steps, dtype=torch.float64) / (config.num_steps - 1)
    return torch.cat(((high + ramp * (low - high)) ** config.rho, torch.zeros(1, dtype=torch.float64)))


def draw_latents_and_conditions(
    seeds: Sequence[int], image_size: int, counts: np.ndarray | None
) -> tuple[Tensor, Tensor | None]:
    """Unit normal latents float32 [B, 3, S, S]; for counts int64 [K] also classes int64 [B] in their proportion."""
    return _draw(_generators(seeds), image_size, counts)


def _generators(seeds: Sequence[int]) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(int(seed)) for seed in seeds]


def _draw(
    generators: list[torch.Generator], image_size: int, counts: np.ndarray | None
) -> tuple[Tensor, Tensor | None]:
    latents = torch.stack([torch.randn(3, image_size, image_size, generator=g) for g in generators])
    # Drawn even when there is nothing to choose, so that what a generator yields next does not depend on it.
    uniform = torch.stack([torch.rand((), dtype=torch.float64, generator=g) for g in generators]).numpy()
    if counts is None:
        return latents, None
    cumulative = np.cumsum(counts)
    # In whole images, so that a class without images is never drawn.
    position = np.floor(uniform * cumulative[-1])
    return latents, torch.from_numpy(np.searchsorted(cumulative, position, side="right"))


def denoise(
    denoiser: nn.Module,
    latents: Tensor,
    conditions: Tensor | None,
    *,
    config: SampleConfig,
    generators: Sequence[torch.Generator] | None = None,
) -> Tensor:
    """Follow the path from latents [B, 3, S, S] (unit normal) to images, float64 [B, 3, S, S] in about [-1, 1].

    conditions: classes int64 [B], features float [B, D], or None. generators: one CPU generator per image for the noise
    of the stochastic variant; needed exactly when s_churn > 0. The state is float64, the network sees float32.
    """
    if config.s_churn and generators is None:
        raise ValueError(f"generators must be given when s_churn > 0, got None for {config.s_churn}")
    steps = sigma_steps(config).tolist()
    churn = min(config.s_churn / config.num_steps, MAX_CHURN)
    highest = float("inf") if config.s_max is None else config.s_max

    def slope(x: Tensor, sigma: float) -> Tensor:
        """dx/dsigma of the probability flow at x."""
        level = torch.full((len(x),), sigma, dtype=torch.float32, device=x.device)
        return (x - denoiser(x.float(), level, conditions).double()) / sigma

    x = latents.double() * steps[0]
    for sigma, lower in itertools.pairwise(steps):
        if churn and config.s_min <= sigma <= highest:
            raised = sigma * (1 + churn)
            noise = torch.stack([torch.randn(x.shape[1:], generator=g) for g in generators])
            x = x + noise.to(x) * (config.s_noise * (raised**2 - sigma**2) ** 0.5)
            sigma = raised
        here = slope(x, sigma)
        euler = x + (lower - sigma) * here
        x = euler if lower == 0 else x + (lower - sigma) * (here + slope(euler, lower)) / 2
    return x


def sample(
    denoiser: nn.Module,
    seeds: Sequence[int],
    *,
    config: SampleConfig,
    image_size: int,
    counts: np.ndarray | None = None,
    classes: Sequence[int] | int | None = None,
    features: np.ndarray | None = None,
    bank: np.ndarray | None = None,
    guide: nn.Module | None = None,
    device: torch.device | str,
) -> Iterator[np.ndarray]:
    """Generate one image per seed, in the seeds' order, in batches uint8 [B, 3, S, S] of NumPy.

    The arguments are those of `sample_on_device`.
    """
    on_device = sample_on_device(
        denoiser,
        seeds,
        config=config,
        image_size=image_size,
        counts=counts,
        classes=classes,
        features=features,
        bank=bank,
        guide=guide,
        device=device,
    )
    for images in on_device:
        yield images.cpu().numpy()


def sample_on_device(
    denoiser: nn.Module,
    seeds: Sequence[int],
    *,
    config: SampleConfig,
    image_size: int,
    counts: np.ndarray | None = None,
    classes: Sequence[int] | int | None = None,
    features: np.ndarray | None = None,
    bank: np.ndarray | None = None,
    guide: nn.Module | None = None,
    device: torch.device | str,
) -> Iterator[Tensor]:
    """Generate one image per seed, in the seeds' order, in batches uint8 [B, 3, S, S] that stay on the device.

    denoiser: a `Denoiser` on `device` in eval mode. seeds: integers in [0, 2^32). For a network with K classes give
    either counts, int64 [K], to draw conditions in their proportion, or classes, one for each seed or one for all
    (-1 = null label); for one conditioned on features (its `feature_dim` is D) either features, float [n, D], a row for
    each seed, or bank, float [N, D], of which each image draws a row by its own seed, all alike likely; for an
    unconditional network none of them. guide: the worse model of autoguidance, likewise on `device` in
    eval mode; None = classifier-free where config.guidance is above 0.

    Raises ValueError for arguments that do not fit the network, and as `guided`.
    """
    chosen = _check(denoiser, seeds, counts, classes, features, bank)
    about = {"config": config, "image_size": image_size, "device": torch.device(device), "bank": bank}
    for images, _ in _batches(guided(denoiser, config.guidance, guide), seeds, chosen, counts, **about):
        yield images


def sample_with_classes(
    denoiser: nn.Module,
    seeds: Sequence[int],
    counts: np.ndarray,
    *,
    config: SampleConfig,
    image_size: int,
    guide: nn.Module | None = None,
    device: torch.device | str,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """As `sample` with counts, and with the images of a batch their classes, int64 [B]."""
    _check(denoiser, seeds, counts, None, None, None)
    about = {"config": config, "image_size": image_size, "device": torch.device(device)}
    for images, conditions in _batches(guided(denoiser, config.guidance, guide), seeds, None, counts, **about):
        yield images.cpu().numpy(), conditions.numpy()


def _batches(
    denoiser: nn.Module,
    seeds: Sequence[int],
    chosen: Tensor | None,
    counts: np.ndarray | None,
    *,
    config: SampleConfig,
    image_size: int,
    device: torch.device,
    bank: np.ndarray | None = None,
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Images uint8 [B, 3, S, S] on the device, and their conditions.

    chosen: the conditions of all images, [n] or [n, D], or None. bank: rows that conditions are drawn from, or None.
    """
    if bank is not None:
        counts = np.ones(len(bank), dtype=np.int64)
    starts = range(0, len(seeds), config.batch_size)
    nets = [module for module in denoiser.modules() if isinstance(module, UNet)]
    half = _half(config, device)
    wanted = config.compile
    if wanted is None:
        wanted = device.type == "cuda" and len(seeds) * (2 * config.num_steps - 1) >= WORTH_COMPILING

    def drawn(start: int) -> tuple[list[torch.Generator], Tensor, Tensor | None]:
        generators = _generators(seeds[start : start + config.batch_size])
        latents, conditions = _draw(generators, image_size, counts)
        if bank is not None:
            conditions = torch.from_numpy(bank[conditions.numpy()].astype(np.float32, copy=False))
        return generators, latents, conditions if chosen is None else chosen[start : start + config.batch_size]

    following = drawn(0) if len(seeds) else None
    if following is not None and wanted:
        _, latents, conditions = following
        inputs = latents.to(device), latents.new_ones(len(latents), device=device)
        with torch.inference_mode(), _computing_in(nets, half):
            wanted = try_forward(nets, denoiser, *inputs, None if conditions is None else conditions.to(device))
    for start in starts:
        # Within the loop, because a generator that is paused must not leave inference mode on for its caller.
        with torch.inference_mode():
            generators, latents, conditions = following
            on_device = latents.to(device), None if conditions is None else conditions.to(device)
            # The last batch may be a smaller one, and compiled code is of one size.
            whole = len(latents) == min(config.batch_size, len(seeds))
            with _computing_in(nets, half), compiled(nets if wanted and whole else []):
                x = denoise(denoiser, *on_device, config=config, generators=generators)
            if start != starts[-1]:
                # Before the images are asked for, because a GPU is still at work on them.
                following = drawn(start + config.batch_size)
            if half is not None and not x.isfinite().all():
                generators = _generators(seeds[start : start + config.batch_size])
                _draw(generators, image_size, counts)
                x = denoise(denoiser, *on_device, config=config, generators=generators)
            images = (x * 127.5 + 128).clip(0, 255).to(torch.uint8)
        yield images, conditions


def _half(config: SampleConfig, device: torch.device) -> torch.dtype | None:
    """What the activations are held in, None = float32."""
    automatic = "float16" if device.type == "cuda" else "float32"
    return compute_dtype(automatic if config.precision == "auto" else config.precision, device)


@contextlib.contextmanager
def _computing_in(nets: list[UNet], dtype: torch.dtype | None) -> Iterator[None]:
    """The networks hold their activations in `dtype` meanwhile."""
    before = [net.compute_dtype for net in nets]
    try:
        for net in nets:
            net.compute_dtype = dtype
        yield
    finally:
        for net, own in zip(nets, before, strict=True):
            net.compute_dtype = own


def _check(
    denoiser: nn.Module,
    seeds: Sequence[int],
    counts: np.ndarray | None,
    classes: Sequence[int] | int | None,
    features: np.ndarray | None,
    bank: np.ndarray | None,
) -> Tensor | None:
    """Refuse what does not fit; returns the explicit conditions, [n] or [n, D], or None."""
    if denoiser.training:
        raise ValueError("denoiser must be in eval mode, got one in training mode")
    outside = next((seed for seed in seeds if not 0 <= seed < 2**32), None)
    if outside is not None:
        raise ValueError(f"seeds must lie in [0, 2^32), got {outside}")
    width = feature_dim(denoiser)
    if (features is not None) + (bank is not None) != (width > 0):
        got = [name for name, given in (("features", features), ("a bank", bank)) if given is not None]
        rule = "features, or a bank of them, must be given exactly for a network of features"
        raise ValueError(f"{rule}, got {' and '.join(got) or 'none'} for width {width}")
    if features is not None:
        rows = np.asarray(features)
        if rows.shape != (len(seeds), width) or rows.dtype.kind != "f" or not np.isfinite(rows).all():
            got = f"{rows.dtype} {list(rows.shape)}"
            raise ValueError(f"features must be finite floats [{len(seeds)}, {width}], got {got}")
    if bank is not None and (bank.ndim != 2 or not len(bank) or bank.shape[1] != width or bank.dtype.kind != "f"):
        raise ValueError(f"bank must be floats [N, {width}], got {bank.dtype} {list(bank.shape)}")
    num_classes = denoiser.num_classes
    given = (counts is not None) + (classes is not None)
    if given != (num_classes > 0):
        rule = "either counts or classes must be given" if num_classes else "neither counts nor classes may be given"
        raise ValueError(f"{rule} for {num_classes} classes, got {given} of them")
    if counts is not None:
        counts = np.asarray(counts)
        if counts.shape != (num_classes,) or counts.min() < 0 or counts.sum() == 0:
            raise ValueError(f"counts must be [{num_classes}], at least 0 and not all 0, got {counts.tolist()}")
    if features is not None:
        return torch.from_numpy(rows.astype(np.float32))
    if classes is None:
        return None
    chosen = torch.as_tensor(classes, dtype=torch.int64)
    chosen = chosen.expand(len(seeds)) if chosen.ndim == 0 else chosen
    if chosen.shape != (len(seeds),):
        raise ValueError(f"classes must be one integer or {len(seeds)} of them, got shape {list(chosen.shape)}")
    if len(chosen) and not -1 <= int(chosen.min()) <= int(chosen.max()) < num_classes:
        raise ValueError(f"classes must lie in [-1, {num_classes - 1}], got {int(chosen.min())} to {int(chosen.max())}")
    return chosen
