"""What a training step launches, counted: few operations, and nothing that waits for the device."""

from collections import Counter
from pathlib import Path

import numpy as np
import yaml
from torch.utils._python_dispatch import TorchDispatchMode

from cedm_ray.data.order import TrainingOrder
from cedm_ray.diffusion import train as training
from cedm_ray.diffusion.augment import AugmentConfig
from cedm_ray.diffusion.edm import EDMConfig
from cedm_ray.diffusion.train import TrainConfig, TrainState, train
from cedm_ray.diffusion.unet import UNetConfig

NET = UNetConfig(model_channels=8, channel_mult=(1, 2), num_blocks=1, attention_resolutions=(4,), dropout=0.0)
NO_AUGMENT = AugmentConfig(probability=0)

VIEWS = {
    "alias", "as_strided", "detach", "diagonal", "empty", "empty_like", "empty_strided", "expand", "lift_fresh",
    "new_empty", "new_empty_strided", "permute", "select", "slice", "split", "split_with_sizes", "squeeze", "t",
    "transpose", "unbind", "unsqueeze", "view", "_reshape_alias", "_unsafe_view",
}  # fmt: skip
"""What moves no data and launches nothing."""


class _Operations(TorchDispatchMode):
    """Counts what reaches a device, views and allocations excluded."""

    def __init__(self):
        super().__init__()
        self.count = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.removeprefix("aten::")
        if name not in VIEWS:
            self.count[name] += 1
        return function(*args, **(kwargs or {}))


def _count_step(unet, augment):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 3, 32, 32), dtype=np.uint8)
    config = TrainConfig(batch_size=4)
    state = TrainState.create(unet, EDMConfig(), config, augment, 32, 100, 0, "cpu")
    settings = {"config": config, "augment": augment, "order": TrainingOrder(num_images=64, seed=0), "seed": 0}
    counts = []
    # One step, then the same and another: the difference is a step alone.
    for until in (4, 12):
        with _Operations() as operations:
            list(
                train(
                    state,
                    pixels,
                    np.zeros(64, dtype=np.int64),
                    **settings,
                    until_images=until,
                    total_kimg=1,
                    progress_every=10**9,
                )
            )
        counts.append(operations.count)
    return (counts[1] - counts[0]).total(), counts[1]


def test_a_training_step_of_the_cifar10_preset_needs_at_most_1300_operations():
    """Of the preset's shape at an eighth of its width, which takes part in no count on a device with a queue.

    On a CPU, where an operation costs no launch, wide convolutions take some twenty more each (`convolution.py`).
    """
    preset = yaml.safe_load((Path(__file__).parents[2] / "search_spaces/cifar10.yaml").read_text())
    unet = UNetConfig.model_validate({**preset["network"], "model_channels": 16})
    count, _ = _count_step(unet, AugmentConfig.model_validate(preset["augmentation"]))
    # 1,266 when this was written, 187 of them for augmentation; a straightforward step needs some 6,500.
    assert 900 < count <= 1300


def test_nothing_is_read_back_from_the_device_within_a_step(monkeypatch):
    # A CPU has no queue to wait for and reads its values at once; as on a GPU, it must not have to.
    monkeypatch.setattr(training, "_waits_anyway", lambda device: False)
    _, operations = _count_step(NET, NO_AUGMENT)
    # At the end of a call alone: the count of skipped steps, the longest row of them, the two sums of losses, and
    # the norm of the last gradient.
    assert operations["_local_scalar_dense"] <= 5
    assert operations["nonzero"] == 0
