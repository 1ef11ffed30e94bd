"""The predicted peak against what torch's allocator reports while the real step runs."""

import json

import numpy as np
import pytest
from torch.profiler import profile

from cedm_ray.data.order import TrainingOrder
from cedm_ray.diffusion.augment import AugmentConfig
from cedm_ray.diffusion.edm import EDMConfig
from cedm_ray.diffusion.memory import predict_memory
from cedm_ray.diffusion.state import TrainConfig, TrainState
from cedm_ray.diffusion.train import train
from cedm_ray.diffusion.unet import UNetConfig

UNET = UNetConfig(model_channels=16, channel_mult=(1, 2), num_blocks=1)


def _measured_peak(folder, training, augment, size, num_classes, feature_dim):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (64, 3, size, size), dtype=np.uint8)
    conditions = rng.integers(0, num_classes, 64) if num_classes else None
    if feature_dim:
        conditions = np.eye(feature_dim, dtype=np.float32)[rng.integers(0, feature_dim, 64)]
    with profile(profile_memory=True) as profiled:
        state = TrainState.create(
            UNET, EDMConfig(), training, augment, size, num_classes, 0, "cpu", feature_dim=feature_dim
        )
        steps = train(
            state,
            pixels,
            conditions,
            config=training,
            augment=augment,
            order=TrainingOrder(num_images=64, seed=0),
            seed=0,
            until_images=2 * training.batch_size,
            total_kimg=1,
            progress_every=10**9,
        )
        list(steps)
    profiled.export_chrome_trace(str(folder / "trace.json"))
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    allocated = [event["args"]["Total Allocated"] for event in events if event.get("name") == "[memory]"]
    # Not from zero: other tests may have left tensors behind.
    return max(allocated) - allocated[0]


@pytest.mark.parametrize(
    ("training", "probability", "num_classes", "feature_dim"),
    [
        (TrainConfig(batch_size=16), 0.0, 10, 0),
        (TrainConfig(batch_size=16, microbatch=4), 0.0, 0, 0),
        (TrainConfig(batch_size=8), 0.12, 0, 12),
        (TrainConfig(batch_size=8, precision="bfloat16"), 0.0, 10, 0),
    ],
)
def test_prediction_is_within_a_tenth_of_the_allocator(tmp_path, training, probability, num_classes, feature_dim):
    augment = AugmentConfig(probability=probability)
    predicted = predict_memory(
        UNET,
        training,
        image_size=16,
        augment=augment,
        num_classes=num_classes,
        feature_dim=feature_dim,
        precision="bfloat16" if training.precision == "bfloat16" else "float32",
    )
    measured = _measured_peak(tmp_path, training, augment, 16, num_classes, feature_dim)
    assert predicted == pytest.approx(measured, rel=0.1)


def test_prediction_grows_as_it_must():
    def predicted(**changes):
        settings = {"image_size": 16, "augment": AugmentConfig(probability=0), **changes}
        return predict_memory(UNET, TrainConfig(batch_size=settings.pop("batch_size", 16)), **settings)

    whole = predicted()
    # Twice the batch needs less than twice the memory, because the weights stay, and half the precision less than one.
    assert whole < predicted(batch_size=32) < 2 * whole
    assert predicted(precision="bfloat16") < whole
    assert predicted(workers=2) < whole
    # On a GPU the average moves by a difference as large as the weights, and compiled blocks keep less.
    assert predicted(device_type="cuda") < whole
    assert predicted(resident_bytes=10**9) == whole + 10**9
    with pytest.raises(ValueError, match="batch_size must be divisible by the 3 workers, got 16"):
        predicted(workers=3)


@pytest.mark.parametrize(
    ("network", "size", "batch_size", "gib"),
    [(UNetConfig(), 32, 256, 11.848), (UNetConfig(channel_mult=(1, 2, 2, 2), dropout=0.05), 64, 128, 14.877)],
)
def test_prediction_is_within_a_tenth_of_what_an_h200_took(network, size, batch_size, gib):
    """benchmarks/edm_gpu.py: the compiled step in float16."""
    training = TrainConfig(batch_size=batch_size, precision="float16")
    about = {"image_size": size, "augment": AugmentConfig(), "num_classes": 100, "precision": "float16"}
    predicted = predict_memory(network, training, device_type="cuda", **about) / 2**30
    assert predicted == pytest.approx(gib, rel=0.1)
    assert predicted > gib
    plain = training.model_copy(update={"compile": False})
    assert predict_memory(network, plain, device_type="cuda", **about) / 2**30 > 1.25 * predicted
