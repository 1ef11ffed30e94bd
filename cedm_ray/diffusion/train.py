"""Training of the denoiser: Adam, a learning-rate ramp and an average of the weights, all counted in images.

Shapes: N images, B global batch, W workers, S image side. What a step sees is a function of (seed, images seen) and
is cut into shares of workers and microbatches (`batches.py`), so that every split optimizes the same thing; only
dropout is drawn by each worker for itself.

Source: Karras et al. 2022, Table 1 and appendix F; method.md 3.4.
"""

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from cedm_ray.data.order import TrainingOrder
from cedm_ray.diffusion.augment import AugmentConfig
from cedm_ray.diffusion.batches import DROPOUT, Batch, BatchSource, seeded, stream_seed
from cedm_ray.diffusion.compilation import compile_blocks
from cedm_ray.diffusion.edm import edm_loss
from cedm_ray.diffusion.ema import ema_decay, update_ema
from cedm_ray.diffusion.state import TrainConfig, TrainState, learning_rate_at

UNIT_TOLERANCE = 1e-2
"""How far the length of a feature condition may be from 1: float16 features that were normalized pass."""


class DivergedError(FloatingPointError):
    """Too many steps in a row had a loss or a gradient that is not finite."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TrainProgress:
    """Where training stands.

    images_seen: images so far. loss: mean per image since the last progress, None if no step counted since.
    learning_rate: of the last step. skipped_steps: steps so far whose loss or gradient was not finite. note: what a
    user should know and what ended nothing, None where there is nothing. gradient_norm: Euclidean, of the last step's
    gradient over all workers, None where that was not finite or there was no step. images_per_s: of all workers since
    the last progress, time that was spent on what is done between two of them excepted; None where there was no step.
    It is a matter of the machine, and two progress values that differ in nothing else are equal.
    """

    images_seen: int
    loss: float | None
    learning_rate: float
    skipped_steps: int
    note: str | None = None
    gradient_norm: float | None = None
    images_per_s: float | None = dataclasses.field(default=None, compare=False)


def train(
    state: TrainState,
    pixels: np.ndarray,
    conditions: np.ndarray | None,
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

    pixels: uint8 [N, 3, S, S], may be a memory map. conditions: classes int64 [N], -1 = null label; or features [N, D]
    of unit length, zeros = null; or None exactly when the network is unconditional. seed: of noise, augmentation and
    dropout, at least 0. total_kimg: budget of the whole run in thousand images, of which this call may be a part; it
    sets the ramp when config leaves that open.

    With torch.distributed initialized, each of the W workers calls this with the same arguments and takes its share.
    Between yields `state` is whole and may be saved. torch's global generators are left as they were.

    Raises ValueError for arguments that do not fit each other, DivergedError after config.max_skipped_steps steps in a
    row without a finite loss and gradient; on a GPU it may notice that up to as many steps late, which changes nothing
    because skipped steps leave the weights alone.
    """
    parallel = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    rank, workers = (dist.get_rank(), dist.get_world_size()) if parallel else (0, 1)
    _check(state, pixels, conditions, config, augment, order, seed, progress_every, workers)
    batches = BatchSource(
        pixels,
        conditions,
        batch_size=config.batch_size,
        share=slice(rank * config.batch_size // workers, (rank + 1) * config.batch_size // workers),
        edm=state.net.config,
        augment=augment,
        order=order,
        seed=seed,
        device=state.device,
    )
    with contextlib.closing(batches):
        yield from _steps(state, batches, config, until_images, total_kimg, progress_every, rank, workers)


def _steps(
    state: TrainState,
    batches: BatchSource,
    config: TrainConfig,
    until_images: int,
    total_kimg: float,
    progress_every: int,
    rank: int,
    workers: int,
) -> Iterator[TrainProgress]:
    weights, averages = list(state.net.parameters()), list(state.ema.parameters())
    on_cpu = _waits_anyway(state.device)
    state.net.train()
    note = _prepare(state, batches, config, workers) if state.images_seen < until_images else None
    tally = _Tally(state, config.max_skipped_steps)
    rate = learning_rate_at(state.images_seen, config, total_kimg)
    steps = 0
    while state.images_seen < until_images:
        rate = learning_rate_at(state.images_seen, config, total_kimg)
        state.optimizer.param_groups[0]["lr"] = rate
        with seeded(state.device, stream_seed(batches.seed, state.images_seen, DROPOUT, rank)):
            loss = accumulate_gradients(state, batches.draw(state.images_seen), config, workers)
        if state.scaler is not None:
            state.scaler.unscale_(state.optimizer)
        norm = gradient_norm(weights)
        bad = not_finite(norm)
        step_unless(bad, state)
        decay = ema_decay(
            state.images_seen,
            config.batch_size,
            halflife_kimg=config.ema_halflife_kimg,
            rampup_ratio=config.ema_rampup_ratio,
        )
        # On a GPU `bad` is not read back: waiting for it would leave the device idle between steps.
        share = (1 - decay) * (1 - bad)
        update_ema(averages, weights, share.item() if on_cpu else share)
        tally.add(bad, loss, config.batch_size // workers, norm)

        steps += 1
        before, state.images_seen = state.images_seen, state.images_seen + config.batch_size
        due = before // progress_every < state.images_seen // progress_every and state.images_seen < until_images
        if due or on_cpu or steps % config.max_skipped_steps == 0:
            tally.check()
        if due:
            yield tally.progress(rate, workers > 1, note)
            tally.resume()
            note = None
    tally.check()
    yield tally.progress(rate, workers > 1, note)


def _waits_anyway(device: torch.device) -> bool:
    """Whether reading a value back costs nothing, because the device has no queue of its own."""
    return device.type == "cpu"


def _prepare(state: TrainState, batches: BatchSource, config: TrainConfig, workers: int) -> str | None:
    """Compile and wrap the network where that is wanted and not done yet; returns a note where compiling failed."""
    note = None
    if state.device.type == "cuda":
        # Shapes are the same at every step, so that trying cuDNN's algorithms out once pays.
        torch.backends.cudnn.benchmark = True
    if state.compiled is None:
        wanted = state.device.type == "cuda" if config.compile is None else config.compile
        if wanted:
            share = config.batch_size // workers
            batch = batches.draw(state.images_seen).piece(0, min(config.microbatch or share, share))
            with seeded(state.device, 0):
                note = compile_blocks(state.net, batch)
        state.compiled = wanted and note is None
    if workers > 1 and state.replica is None:
        state.replica = DistributedDataParallel(state.net, broadcast_buffers=False)
    return note


def _check(
    state: TrainState,
    pixels: np.ndarray,
    conditions: np.ndarray | None,
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
    _check_conditions(conditions, len(pixels), net.num_classes, net.feature_dim)
    if bool(augment.probability) != bool(net.augment_dim):
        rule = "augment.probability must be 0 exactly for a network without augmentation labels"
        raise ValueError(f"{rule}, got {augment.probability}")
    if seed < 0:
        raise ValueError(f"seed must be at least 0, got {seed}")
    if progress_every < 1:
        raise ValueError(f"progress_every must be at least 1, got {progress_every}")
    if config.batch_size % workers:
        raise ValueError(f"batch_size must be divisible by the {workers} workers, got {config.batch_size}")


def _check_conditions(conditions: np.ndarray | None, num_images: int, num_classes: int, feature_dim: int) -> None:
    if (conditions is None) != (num_classes == 0 and feature_dim == 0):
        got = f"{'None' if conditions is None else 'an array'} for {num_classes} classes and {feature_dim} features"
        raise ValueError(f"conditions must be None exactly for an unconditional network, got {got}")
    if conditions is None:
        return
    shape = (num_images, feature_dim) if feature_dim else (num_images,)
    if conditions.shape != shape:
        raise ValueError(f"conditions must have shape {list(shape)}, got {list(conditions.shape)}")
    if feature_dim:
        lengths = np.linalg.norm(np.asarray(conditions, dtype=np.float32), axis=1)
        wrong = (lengths != 0) & ~(np.abs(lengths - 1) <= UNIT_TOLERANCE)
        if wrong.any():
            row = int(wrong.argmax())
            raise ValueError(f"features must have length 1 (or 0, the null one), got {lengths[row]:g} in row {row}")
        return
    low, high = int(conditions.min()), int(conditions.max())
    if low < -1 or high >= num_classes:
        raise ValueError(f"classes must lie in [-1, {num_classes - 1}], got {low} to {high}")


def accumulate_gradients(state: TrainState, batch: Batch, config: TrainConfig, workers: int) -> Tensor:
    """Fill the gradients with those of the mean loss over the global batch; returns this worker's sum of losses."""
    state.optimizer.zero_grad(set_to_none=True)
    model = state.net if state.replica is None else state.replica
    sigma_data = state.net.config.sigma_data
    share = len(batch.pixels)
    microbatch = config.microbatch or share
    total = torch.zeros((), device=state.device)
    for start in range(0, share, microbatch):
        piece = batch.piece(start, microbatch)
        last = start + microbatch >= share
        with contextlib.nullcontext() if last or state.replica is None else state.replica.no_sync():
            clean, labels = piece.clean_images()
            known = (piece.conditions, labels)
            loss = edm_loss(model, clean, *known, piece.sigma, piece.noise, sigma_data=sigma_data).sum()
            # The mean over workers, which the wrapper takes, makes this the mean over the batch. The last factor is 1,
            # or NaN for a loss that is not finite, so that every worker finds it by looking at the gradients.
            objective = loss * (workers / config.batch_size) * (loss.detach() * 0 + 1)
            (objective if state.scaler is None else state.scaler.scale(objective)).backward()
        total += loss.detach()
    return total


def gradient_norm(weights: list[Tensor]) -> Tensor:
    """The Euclidean norm of the gradient of all weights together; a scalar on their device."""
    return torch.nn.utils.get_total_norm([weight.grad for weight in weights])


def not_finite(norm: Tensor) -> Tensor:
    """1 where a gradient of that norm is not finite, else 0; a scalar on its device.

    By the Euclidean norm, which a CPU takes nine times faster than the largest element. It also overflows where an
    element is above 1e19, and that is no gradient to follow either.
    """
    return (~norm.isfinite()).float()


def step_unless(bad: Tensor, state: TrainState) -> None:
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
        # Of the last step; before the first there is none.
        self.norm = torch.full((), float("nan"), device=state.device)
        self.resume()

    def resume(self) -> None:
        """The next step is about to begin: what images per second are counted from."""
        self.since, self.images_before = time.monotonic(), self.state.images_seen

    def add(self, bad: Tensor, loss: Tensor, count: int, norm: Tensor) -> None:
        self.norm = norm
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

    def progress(self, rate: float, parallel: bool, note: str | None) -> TrainProgress:
        if parallel:
            dist.all_reduce(self.losses)
        total, count = self.losses.tolist()
        self.losses.zero_()
        # The values above were waited for, so that the steps they are of are done.
        seconds, images = time.monotonic() - self.since, self.state.images_seen - self.images_before
        norm = self.norm.item()
        return TrainProgress(
            images_seen=self.state.images_seen,
            loss=total / count if count else None,
            learning_rate=rate,
            skipped_steps=self.state.skipped_steps,
            note=note,
            gradient_norm=norm if math.isfinite(norm) else None,
            images_per_s=images / seconds if images and seconds > 0 else None,
        )
