"""Training of the denoiser: Adam, a learning-rate ramp and an average of the weights, all counted in images.

Shapes: N images, B global batch, W workers, S image side. What a step sees is a function of (seed, images seen) and
is cut into shares of workers and microbatches (`batches.py`), so that every split optimizes the same thing; only
dropout is drawn by each worker for itself.

Source: Karras et al. 2022, Table 1 and appendix F; method.md 3.4.
"""

import contextlib
import copy
import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist
from pydantic import Field
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from cedm_ray.config import Config
from cedm_ray.data.order import TrainingOrder
from cedm_ray.diffusion.augment import NUM_LABELS, AugmentConfig
from cedm_ray.diffusion.batches import DROPOUT, Batch, BatchSource, seeded, stream_seed
from cedm_ray.diffusion.edm import Denoiser, EDMConfig, edm_loss
from cedm_ray.diffusion.ema import ema_decay, update_ema
from cedm_ray.diffusion.unet import UNet, UNetConfig

MAX_RAMPUP_KIMG = 10_000
"""Ramp of the paper's runs, and the longest one that `lr_rampup_kimg = None` chooses."""


class DivergedError(FloatingPointError):
    """Too many steps in a row had a loss or a gradient that is not finite."""


class TrainConfig(Config):
    """How the denoiser is optimized."""

    batch_size: int = Field(512, ge=1, description="Images per optimizer step, over all workers.")
    microbatch: int | None = Field(
        None, ge=1, description="Images per forward pass and worker; gradients add up. None = a worker's whole share."
    )
    learning_rate: float = Field(1e-3, gt=0, description="Adam's learning rate after the ramp.")
    lr_rampup_kimg: float | None = Field(
        MAX_RAMPUP_KIMG,
        ge=0,
        description="Thousands of images over which the learning rate rises linearly from 0; 0 = no ramp. None = a "
        "tenth of the run's budget, at most 10,000.",
    )
    ema_halflife_kimg: float = Field(500, ge=0, description="Half-life of the weight average, in thousands of images.")
    ema_rampup_ratio: float | None = Field(
        0.05, gt=0, description="The half-life is at most this share of the images seen. None = no such bound."
    )
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="What the network computes in (weights and loss stay float32). auto = bfloat16 on CUDA devices of "
        "capability 8 and later, float16 with loss scaling on older ones, float32 on CPUs.",
    )
    max_skipped_steps: int = Field(
        20, ge=1, description="Steps in a row without a finite loss and gradient after which training has diverged."
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TrainProgress:
    """Where training stands.

    images_seen: images so far. loss: mean per image since the last progress, None if no step counted since.
    learning_rate: of the last step. skipped_steps: steps so far whose loss or gradient was not finite.
    """

    images_seen: int
    loss: float | None
    learning_rate: float
    skipped_steps: int


@dataclasses.dataclass(slots=True, kw_only=True)
class TrainState:
    """All that training changes. `tensors()` with the two counters is a checkpoint that fits any number of workers.

    net: the denoiser that is optimized. ema: its average, in eval mode, which is what samples are drawn from.
    scaler: loss scaling, only for float16. images_seen: images so far, those of skipped steps included.
    skipped_steps: steps so far whose loss or gradient was not finite. replica: `net` wrapped for data-parallel
    training, made when it is first needed.
    """

    net: Denoiser
    ema: Denoiser
    optimizer: torch.optim.Adam
    scaler: torch.amp.GradScaler | None
    images_seen: int = 0
    skipped_steps: int = 0
    replica: DistributedDataParallel | None = None

    @classmethod
    def create(
        cls,
        unet_config: UNetConfig,
        edm_config: EDMConfig,
        train_config: TrainConfig,
        augment_config: AugmentConfig,
        image_size: int,
        num_classes: int,
        seed: int,
        device: torch.device | str,
    ) -> "TrainState":
        """A fresh state: a function of the configurations and the seed. num_classes = 0: unconditional."""
        device = torch.device(device)
        augment_dim = NUM_LABELS if augment_config.probability else 0
        net = Denoiser(UNet(unet_config, image_size, num_classes, augment_dim, seed=seed), edm_config)
        # Convolutions are faster with the channels last, on tensor cores and (measured, by 8 %) on a CPU.
        net = net.to(device, memory_format=torch.channels_last)
        ema = copy.deepcopy(net).eval().requires_grad_(False)
        optimizer = torch.optim.Adam(net.parameters(), lr=train_config.learning_rate, fused=True)
        for weight in net.parameters():
            # What Adam would make in its first step, made now so that every checkpoint has the same tensors.
            optimizer.state[weight] = {
                "step": torch.zeros((), device=device),
                "exp_avg": torch.zeros_like(weight),
                "exp_avg_sq": torch.zeros_like(weight),
            }
        half = _autocast_dtype(train_config.precision, device) == torch.float16
        return cls(net=net, ema=ema, optimizer=optimizer, scaler=torch.amp.GradScaler(device.type) if half else None)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.net.net.conv_in.weight.device

    def tensors(self) -> dict[str, Tensor]:
        """Copies on the CPU, by flat names: net.*, ema.*, optimizer.*.{step,exp_avg,exp_avg_sq} and scaler.*."""
        copies = {
            name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
            for name, tensor in self._live_tensors().items()
        }
        if self.scaler is not None:
            scaler = self.scaler.state_dict()
            copies["scaler.scale"] = torch.tensor(scaler["scale"], dtype=torch.float64)
            copies["scaler.growth_tracker"] = torch.tensor(scaler["_growth_tracker"])
        return copies

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor], images_seen: int, skipped_steps: int) -> None:
        """Take over what `tensors()` and the counters of another state were.

        The scaler's tensors are read by a state with loss scaling only, so that a run can move to other hardware.
        Raises ValueError when names or shapes are not those of this state; nothing is changed then.
        """
        live = self._live_tensors()
        weights = {name for name in tensors if not name.startswith("scaler.")}
        if weights != live.keys():
            name = min(weights ^ live.keys())
            raise ValueError(
                f"tensors must be those of this network, {name} is {'not' if name in live else 'only'} there"
            )
        for name, tensor in live.items():
            if tensors[name].shape != tensor.shape:
                raise ValueError(f"{name} must have shape {list(tensor.shape)}, got {list(tensors[name].shape)}")
        for name, tensor in live.items():
            tensor.copy_(tensors[name])
        if self.scaler is not None and "scaler.scale" in tensors:
            scaler = self.scaler.state_dict()
            scaler["scale"] = tensors["scaler.scale"].item()
            scaler["_growth_tracker"] = int(tensors["scaler.growth_tracker"])
            self.scaler.load_state_dict(scaler)
        self.images_seen = images_seen
        self.skipped_steps = skipped_steps

    def _live_tensors(self) -> dict[str, Tensor]:
        live = {f"net.{name}": weight for name, weight in self.net.net.named_parameters()}
        live |= {f"ema.{name}": weight for name, weight in self.ema.net.named_parameters()}
        for name, weight in self.net.net.named_parameters():
            live |= {f"optimizer.{name}.{key}": tensor for key, tensor in self.optimizer.state[weight].items()}
        return live


def learning_rate_at(images_seen: int, config: TrainConfig, total_kimg: float) -> float:
    """Learning rate of the step that follows `images_seen` images, in a run of total_kimg thousand images."""
    ramp_kimg = config.lr_rampup_kimg
    if ramp_kimg is None:
        ramp_kimg = min(MAX_RAMPUP_KIMG, total_kimg / 10)
    if ramp_kimg == 0:
        return config.learning_rate
    return config.learning_rate * min(images_seen / (ramp_kimg * 1000), 1.0)


def train(
    state: TrainState,
    pixels: np.ndarray,
    classes: np.ndarray | None,
    *,
    config: TrainConfig,
    augment: AugmentConfig,
    order: TrainingOrder,
    seed: int,
    until_images: int,
    total_kimg: float,
    progress_every: int,
) -> Iterator[TrainProgress]:
    """Train until state.images_seen >= until_images, yielding after every progress_every images and at the end.

    pixels: uint8 [N, 3, S, S], may be a memory map. classes: int64 [N], -1 = null label, or None exactly when the
    network is unconditional. seed: of noise, augmentation and dropout, at least 0. total_kimg: budget of the whole run
    in thousand images, of which this call may be a part; it sets the ramp when config leaves that open.

    With torch.distributed initialized, each of the W workers calls this with the same arguments and takes its share.
    Between yields `state` is whole and may be saved. torch's global generators are left as they were.

    Raises ValueError for arguments that do not fit each other, DivergedError after config.max_skipped_steps steps in a
    row without a finite loss and gradient; on a GPU it may notice that up to as many steps late, which changes nothing
    because skipped steps leave the weights alone.
    """
    parallel = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    rank, workers = (dist.get_rank(), dist.get_world_size()) if parallel else (0, 1)
    _check(state, pixels, classes, config, augment, order, seed, progress_every, workers)
    if parallel and state.replica is None:
        state.replica = DistributedDataParallel(state.net, broadcast_buffers=False)
    batches = BatchSource(
        pixels,
        classes,
        batch_size=config.batch_size,
        share=slice(rank * config.batch_size // workers, (rank + 1) * config.batch_size // workers),
        edm=state.net.config,
        augment=augment,
        order=order,
        seed=seed,
        device=state.device,
    )
    weights, averages = list(state.net.parameters()), list(state.ema.parameters())
    on_cpu = state.device.type == "cpu"
    tally = _Tally(state, config.max_skipped_steps)
    rate = learning_rate_at(state.images_seen, config, total_kimg)
    state.net.train()
    steps = 0
    while state.images_seen < until_images:
        rate = learning_rate_at(state.images_seen, config, total_kimg)
        state.optimizer.param_groups[0]["lr"] = rate
        with seeded(state.device, stream_seed(seed, state.images_seen, DROPOUT, rank)):
            loss = _accumulate_gradients(state, batches.draw(state.images_seen), config, workers)
        if state.scaler is not None:
            state.scaler.unscale_(state.optimizer)
        norm = torch.nn.utils.get_total_norm([weight.grad for weight in weights], norm_type=math.inf)
        bad = (~norm.isfinite()).float()
        _step_unless(bad, state)
        decay = ema_decay(
            state.images_seen,
            config.batch_size,
            halflife_kimg=config.ema_halflife_kimg,
            rampup_ratio=config.ema_rampup_ratio,
        )
        # On a GPU `bad` is not read back: waiting for it would leave the device idle between steps.
        share = (1 - decay) * (1 - bad)
        update_ema(averages, weights, share.item() if on_cpu else share)
        tally.add(bad, loss, config.batch_size // workers)

        steps += 1
        before, state.images_seen = state.images_seen, state.images_seen + config.batch_size
        due = before // progress_every < state.images_seen // progress_every and state.images_seen < until_images
        if due or on_cpu or steps % config.max_skipped_steps == 0:
            tally.check()
        if due:
            yield tally.progress(rate, parallel)
    tally.check()
    yield tally.progress(rate, parallel)


def _check(
    state: TrainState,
    pixels: np.ndarray,
    classes: np.ndarray | None,
    config: TrainConfig,
    augment: AugmentConfig,
    order: TrainingOrder,
    seed: int,
    progress_every: int,
    workers: int,
) -> None:
    net = state.net.net
    shape = (order.num_images, 3, net.image_size, net.image_size)
    if pixels.dtype != np.uint8 or pixels.shape != shape:
        raise ValueError(f"pixels must be uint8 {list(shape)}, got {pixels.dtype} {list(pixels.shape)}")
    if (classes is None) != (net.num_classes == 0):
        got = "None" if classes is None else "an array"
        raise ValueError(f"classes must be None exactly when num_classes is 0, got {got} for {net.num_classes}")
    if classes is not None:
        if classes.shape != (len(pixels),):
            raise ValueError(f"classes must have shape [{len(pixels)}], got {list(classes.shape)}")
        low, high = int(classes.min()), int(classes.max())
        if low < -1 or high >= net.num_classes:
            raise ValueError(f"classes must lie in [-1, {net.num_classes - 1}], got {low} to {high}")
    if bool(augment.probability) != bool(net.augment_dim):
        rule = "augment.probability must be 0 exactly for a network without augmentation labels"
        raise ValueError(f"{rule}, got {augment.probability}")
    if seed < 0:
        raise ValueError(f"seed must be at least 0, got {seed}")
    if progress_every < 1:
        raise ValueError(f"progress_every must be at least 1, got {progress_every}")
    if config.batch_size % workers:
        raise ValueError(f"batch_size must be divisible by the {workers} workers, got {config.batch_size}")


def _accumulate_gradients(state: TrainState, batch: Batch, config: TrainConfig, workers: int) -> Tensor:
    """Fill the gradients with those of the mean loss over the global batch; returns this worker's sum of losses."""
    state.optimizer.zero_grad(set_to_none=True)
    model = state.net if state.replica is None else state.replica
    sigma_data = state.net.config.sigma_data
    dtype = _autocast_dtype(config.precision, state.device)
    share = len(batch.pixels)
    microbatch = config.microbatch or share
    total = torch.zeros((), device=state.device)
    for start in range(0, share, microbatch):
        piece = batch.piece(start, microbatch)
        last = start + microbatch >= share
        with contextlib.nullcontext() if last or state.replica is None else state.replica.no_sync():
            clean, labels = piece.clean_images()
            with torch.autocast(state.device.type, dtype=dtype, enabled=dtype is not None):
                conditions = (piece.classes, labels)
                losses = edm_loss(model, clean, *conditions, piece.sigma, piece.noise, sigma_data=sigma_data)
            loss = losses.sum()
            # The mean over workers, which the wrapper takes, makes this the mean over the batch. The last factor is 1,
            # or NaN for a loss that is not finite, so that every worker finds it by looking at the gradients.
            objective = loss * (workers / config.batch_size) * (loss.detach() * 0 + 1)
            (objective if state.scaler is None else state.scaler.scale(objective)).backward()
        total += loss.detach()
    return total


def _step_unless(bad: Tensor, state: TrainState) -> None:
    """Adam's step, which the fused kernel leaves out, counter and moments included, where bad is 1."""
    if state.scaler is not None:
        state.scaler.step(state.optimizer)
        state.scaler.update()
        return
    # The two attributes by which loss scaling talks to fused optimizers; they work as well without a scale.
    state.optimizer.grad_scale, state.optimizer.found_inf = None, bad
    state.optimizer.step()
    del state.optimizer.grad_scale, state.optimizer.found_inf


class _Tally:
    """Losses since the last progress and skipped steps, counted on the device."""

    def __init__(self, state: TrainState, limit: int) -> None:
        self.state = state
        self.limit = limit
        self.skipped_before = state.skipped_steps
        self.losses = torch.zeros(2, dtype=torch.float64, device=state.device)
        # Skipped steps: all, in a row up to now, most in a row.
        self.skipped, self.in_a_row, self.longest = torch.zeros(3, device=state.device).unbind()

    def add(self, bad: Tensor, loss: Tensor, count: int) -> None:
        self.losses += torch.where(bad > 0, 0.0, torch.stack((loss, torch.full_like(loss, count))))
        self.skipped += bad
        self.in_a_row.add_(1).mul_(bad)
        torch.maximum(self.longest, self.in_a_row, out=self.longest)

    def check(self) -> None:
        self.state.skipped_steps = self.skipped_before + int(self.skipped)
        if self.longest >= self.limit:
            raise DivergedError(
                f"the loss or its gradient was not finite in {self.limit} steps in a row, up to image "
                f"{self.state.images_seen:,}"
            )

    def progress(self, rate: float, parallel: bool) -> TrainProgress:
        if parallel:
            dist.all_reduce(self.losses)
        total, count = self.losses.tolist()
        self.losses.zero_()
        return TrainProgress(
            images_seen=self.state.images_seen,
            loss=total / count if count else None,
            learning_rate=rate,
            skipped_steps=self.state.skipped_steps,
        )


def _autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """What autocast uses on the device, None for float32 throughout."""
    if precision == "auto":
        if device.type != "cuda":
            return None
        return torch.bfloat16 if torch.cuda.get_device_capability(device)[0] >= 8 else torch.float16
    return {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}[precision]
