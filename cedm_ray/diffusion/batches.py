"""What one optimizer step sees, as a function of (seed, images seen).

Shapes: N images, B global batch, W workers, S image side, D width of a feature condition. A step's images are those at
positions images_seen .. images_seen + B - 1 of the training order; its noise levels, noise and augmentation are drawn
for the whole batch and then cut, so that no split into workers and microbatches changes them.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from cedm_ray.data.order import TrainingOrder
from cedm_ray.diffusion.augment import AugmentConfig, apply_augmentation, draw_augmentation, send
from cedm_ray.diffusion.edm import EDMConfig, draw_sigma

NOISE, AUGMENTATION, DROPOUT = range(3)
"""The streams of random numbers of a step."""


def stream_seed(seed: int, images_seen: int, stream: int, rank: int = 0) -> int:
    """The 64-bit seed of one stream of the step after images_seen images; rank: whose, where workers draw apart."""
    return int(np.random.SeedSequence((seed, images_seen, stream, rank)).generate_state(1, np.uint64)[0])


@contextlib.contextmanager
def seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Dropout draws from torch's global generator: seed it for one step and put it back as it was."""
    if device.type == "cuda":
        generator = torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index]
    else:
        generator = torch.default_generator
    before = generator.get_state()
    generator.manual_seed(seed)
    try:
        yield
    finally:
        generator.set_state(before)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One worker's share of a step, B / W images, or a microbatch of it.

    pixels: uint8 [B, 3, S, S]. conditions: classes int64 [B], features float32 [B, D], or None. draws: augmentation
    parameters on the CPU, None without augmentation. sigma: [B]. noise: [B, 3, S, S], unit normal. All but the draws
    are on the device.
    """

    pixels: Tensor
    conditions: Tensor | None
    draws: Tensor | None
    sigma: Tensor
    noise: Tensor

    def piece(self, start: int, count: int) -> "Batch":
        """The images start .. start + count - 1."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return Batch(**{name: v if v is None else v[start : start + count] for name, v in values.items()})

    def clean_images(self) -> tuple[Tensor, Tensor | None]:
        """The images in [-1, 1], augmented, and their labels [B, 9], None without augmentation."""
        clean = self.pixels.to(torch.float32).div_(127.5).sub_(1)
        return (clean, None) if self.draws is None else apply_augmentation(clean, self.draws)


class BatchSource:
    """Assembles one worker's share of any step.

    pixels: uint8 [N, 3, S, S], may be a memory map; held on a CUDA device when it takes less than half of its free
    memory. conditions: classes int64 [N], features [N, D], or None. share: the worker's part of the positions 0 ..
    B - 1. prefetch: whether a thread reads the images of the next step meanwhile; None = on a CUDA device that does not
    hold the images. `close` ends that thread.
    """

    def __init__(
        self,
        pixels: np.ndarray,
        conditions: np.ndarray | None,
        *,
        batch_size: int,
        share: slice,
        edm: EDMConfig,
        augment: AugmentConfig,
        order: TrainingOrder,
        seed: int,
        device: torch.device,
        prefetch: bool | None = None,
    ) -> None:
        self.pixels = pixels
        self.conditions = conditions
        self.batch_size = batch_size
        self.share = share
        self.edm = edm
        self.augment = augment
        self.order = order
        self.seed = seed
        self.device = device
        self.resident = _upload(pixels, device)
        self.generator = torch.Generator(device)
        self.cpu_generator = torch.Generator()
        if prefetch is None:
            prefetch = device.type == "cuda" and self.resident is None
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="images") if prefetch else None
        self._ahead: tuple[int, Future[Tensor]] | None = None

    def close(self) -> None:
        """End the thread that reads ahead."""
        if self._reader is not None:
            self._reader.shutdown(cancel_futures=True)

    def draw(self, images_seen: int) -> Batch:
        """The share of the step that follows images_seen images."""
        rows = self._rows(images_seen)
        self.generator.manual_seed(stream_seed(self.seed, images_seen, NOISE))
        sigma = draw_sigma(self.batch_size, self.edm, self.generator)
        shape = (self.batch_size, *self.pixels.shape[1:])
        noise = torch.randn(shape, generator=self.generator, device=self.device)
        draws = None
        if self.augment.probability:
            self.cpu_generator.manual_seed(stream_seed(self.seed, images_seen, AUGMENTATION))
            draws = draw_augmentation(self.batch_size, self.augment, self.cpu_generator)[self.share]
        return Batch(
            pixels=self._take_pixels(images_seen, rows),
            conditions=self._take_conditions(rows),
            draws=draws,
            sigma=sigma[self.share],
            noise=noise[self.share],
        )

    def _rows(self, images_seen: int) -> np.ndarray:
        return self.order.rows(images_seen, self.batch_size)[self.share]

    def _take_pixels(self, images_seen: int, rows: np.ndarray) -> Tensor:
        if self.resident is not None:
            return self.resident[send(torch.from_numpy(rows), self.device)]
        if self._reader is None:
            return send(torch.from_numpy(np.asarray(self.pixels[rows])), self.device)
        expected, pending = self._ahead or (None, None)
        if expected != images_seen:
            pending = self._reader.submit(self._read, images_seen)
        following = images_seen + self.batch_size
        self._ahead = following, self._reader.submit(self._read, following)
        return pending.result().to(self.device, non_blocking=True)

    def _read(self, images_seen: int) -> Tensor:
        """The pixels of a step on the host, pinned where a CUDA device waits for them."""
        pixels = torch.from_numpy(np.asarray(self.pixels[self._rows(images_seen)]))
        return pixels.pin_memory() if self.device.type == "cuda" else pixels

    def _take_conditions(self, rows: np.ndarray) -> Tensor | None:
        if self.conditions is None:
            return None
        dtype = np.int64 if self.conditions.ndim == 1 else np.float32
        return send(torch.from_numpy(self.conditions[rows].astype(dtype, copy=False)), self.device)


def _upload(pixels: np.ndarray, device: torch.device) -> Tensor | None:
    """All images on a CUDA device when they take less than half of its free memory, else None."""
    if device.type != "cuda" or pixels.nbytes > torch.cuda.mem_get_info(device)[0] / 2:
        return None
    resident = torch.empty(pixels.shape, dtype=torch.uint8, device=device)
    for start in range(0, len(pixels), 4096):
        # A copy, because a memory map is read-only and torch would warn of that.
        resident[start : start + 4096] = torch.from_numpy(np.array(pixels[start : start + 4096]))
    return resident
