"""The peak memory of training, predicted without training: a step on tensors that have shapes and no data.

torch runs the very step of `train.py`, forward, backward and optimizer, on fake tensors, and every storage is counted
from the operation that makes it until nothing refers to it any more. What the prediction cannot see is what kernels
allocate for themselves (convolution workspaces, reordered copies) and what an allocator rounds up or keeps.

Compiled blocks, as on a GPU, keep less for the backward pass: what is cheap to compute again is not kept. Here that is
selective checkpointing of each block. Measured on an H200 in float16: 11.85 GiB for the `cifar10` network at 256 images
and 14.88 for `ffhq64` at 128, of which this says 8 % more.

Shapes: B images of a worker's step, b of a microbatch, S image side.
"""

import functools
import warnings
import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from cedm_ray.diffusion.augment import NUM_LABELS, AugmentConfig
from cedm_ray.diffusion.batches import Batch
from cedm_ray.diffusion.edm import EDMConfig
from cedm_ray.diffusion.state import TrainConfig, TrainState
from cedm_ray.diffusion.train import accumulate_gradients, gradient_norm, not_finite, step_unless
from cedm_ray.diffusion.unet import UNetConfig


def predict_memory(
    network: UNetConfig,
    training: TrainConfig,
    *,
    image_size: int,
    augment: AugmentConfig,
    num_classes: int = 0,
    feature_dim: int = 0,
    precision: str = "float32",
    workers: int = 1,
    device_type: str = "cpu",
    resident_bytes: int = 0,
) -> int:
    """Peak bytes of one worker's training step: weights, gradients, Adam, average, activations and the step's batch.

    training: batch_size over all workers, microbatch. precision: float32, bfloat16 or float16, what "auto" comes to on
    the device meant. device_type: cpu or cuda. resident_bytes: what is held besides, such as all images on a GPU.

    Raises ValueError for a network that does not fit the image size, or a batch that the workers do not divide.
    """
    if training.batch_size % workers:
        raise ValueError(f"batch_size must be divisible by the {workers} workers, got {training.batch_size}")
    settings = training.model_copy(update={"precision": precision})
    share = training.batch_size // workers
    with warnings.catch_warnings(), FakeTensorMode(), _Storages() as storages, torch.random.fork_rng(devices=[]):
        # Copying a tensor without data makes torch look for its address, and warn of that.
        warnings.simplefilter("ignore")
        state = TrainState.create(
            network,
            EDMConfig(),
            settings.model_copy(update={"precision": "bfloat16" if precision == "float16" else precision}),
            augment,
            image_size,
            num_classes,
            0,
            "cpu",
            feature_dim=feature_dim,
        )
        state.net.train()
        if device_type == "cuda" and training.compile is not False:
            for block in state.net.net.blocks():
                _keep_as_compiled(block)
        conditions = torch.zeros(share, dtype=torch.int64) if num_classes else None
        batch = Batch(
            pixels=torch.empty(share, 3, image_size, image_size, dtype=torch.uint8),
            conditions=torch.zeros(share, feature_dim) if feature_dim else conditions,
            draws=None,
            sigma=torch.ones(share),
            # The noise of all workers is drawn and then cut, so that no split changes it.
            noise=torch.empty(training.batch_size, 3, image_size, image_size)[:share],
        )
        if augment.probability:
            batch = _Augmented(batch)
        weights = list(state.net.parameters())
        accumulate_gradients(state, batch, settings, workers)
        step_unless(not_finite(gradient_norm(weights)), state)
        # The average is moved by a difference as large as the weights where its rate stays on the device (`ema.py`).
        moving = 0 if device_type == "cpu" else sum(weight.untyped_storage().nbytes() for weight in weights)
    return max(storages.peak_bytes, storages.bytes + moving) + resident_bytes


# What compiled blocks keep: results of matrix products, and what convolutions take.
_KEPT = ("aten.convolution", "aten._scaled_dot_product", "aten.linear", "aten.addmm", "aten.mm", "aten.silu.")


def _keep_as_compiled(block: nn.Module) -> None:
    """Let a block compute everything again in the backward pass but what it would keep if it were compiled."""

    def policy(context: Any, operation: Any, *_: Any, **__: Any) -> CheckpointPolicy:
        kept = str(operation).startswith(_KEPT)
        return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE

    contexts = functools.partial(create_selective_checkpoint_contexts, policy)
    about = {"use_reentrant": False, "preserve_rng_state": False, "context_fn": contexts}
    block.forward = functools.partial(checkpoint, block.forward, **about)


class _Augmented:
    """A batch whose augmentation is left out, because it asks for values, but whose labels and copies are there."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.pixels = batch.pixels

    def piece(self, start: int, count: int) -> "_Augmented":
        return _Augmented(self.batch.piece(start, count))

    def clean_images(self) -> tuple[Tensor, Tensor]:
        clean, _ = self.batch.clean_images()
        return clean.clone(), torch.zeros(len(clean), NUM_LABELS)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.batch, name)


class _Storages(TorchDispatchMode):
    """Counts the bytes of all storages that operations make and that are still referred to."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self.peak_bytes = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        self._known.add(storage)
        size = storage.nbytes()
        self.bytes += size
        self.peak_bytes = max(self.peak_bytes, self.bytes)
        weakref.finalize(storage, self._forget, size)

    def _forget(self, size: int) -> None:
        self.bytes -= size
