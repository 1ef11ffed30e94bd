"""The training state: what it holds, how it is saved, and how the learning rate follows the images."""

import pytest
import torch
from pydantic import ValidationError

from cedm_ray.diffusion.augment import AugmentConfig
from cedm_ray.diffusion.edm import EDMConfig
from cedm_ray.diffusion.state import TrainConfig, TrainState, compute_dtype, learning_rate_at
from cedm_ray.diffusion.unet import UNetConfig

NET = UNetConfig(model_channels=8, channel_mult=(1, 2), num_blocks=1, attention_resolutions=(4,), dropout=0.0)


def _state(num_classes=4, unet=NET) -> TrainState:
    return TrainState.create(
        unet, EDMConfig(), TrainConfig(), AugmentConfig(probability=0), 8, num_classes, seed=0, device="cpu"
    )


def test_learning_rate_rises_with_the_images_seen():
    config = TrainConfig(learning_rate=1e-3)
    rates = [learning_rate_at(seen, config, 200_000) for seen in (0, 2_500_000, 10_000_000, 50_000_000)]
    assert rates == pytest.approx([0, 2.5e-4, 1e-3, 1e-3])
    # A short budget has a short ramp, so that its rungs do not lie inside it.
    assert learning_rate_at(2_500, config, 50) == pytest.approx(5e-4)
    assert learning_rate_at(5_000, config, 50) == pytest.approx(1e-3)
    fixed = config.model_copy(update={"lr_rampup_kimg": 10_000.0})
    assert learning_rate_at(2_500, fixed, 50) == pytest.approx(2.5e-7)
    assert learning_rate_at(0, config.model_copy(update={"lr_rampup_kimg": 0.0}), 50) == 1e-3


def test_tensors_are_copies_with_flat_names():
    state = _state()
    tensors = state.tensors()
    assert {name.split(".")[0] for name in tensors} == {"net", "ema", "optimizer"}
    for name in ("net.conv_in.weight", "ema.conv_in.weight", "optimizer.conv_in.weight.exp_avg_sq"):
        assert tensors[name].is_contiguous()
        tensors[name].fill_(7)
        assert not torch.equal(state.tensors()[name], tensors[name])


def test_tensors_of_another_network_are_refused_and_change_nothing():
    state = _state()
    before = state.tensors()
    with pytest.raises(ValueError, match=r"net\.conv_in\.bias is not there"):
        state.load({name: t + 1 for name, t in before.items() if name != "net.conv_in.bias"}, 5, 0)
    with pytest.raises(ValueError, match="zzz is only there"):
        state.load(before | {"zzz": torch.zeros(1)}, 5, 0)
    with pytest.raises(ValueError, match=r"map_class.weight must have shape \[4, 8\], got \[5, 8\]"):
        state.load(_state(num_classes=5).tensors(), 5, 0)
    assert state.images_seen == 0
    assert all(torch.equal(before[name], tensor) for name, tensor in state.tensors().items())


@pytest.mark.parametrize("field", [{"batch_size": 0}, {"microbatch": 0}, {"learning_rate": 0}, {"precision": "half"}])
def test_impossible_configurations_are_refused(field):
    with pytest.raises(ValidationError):
        TrainConfig(**field)


def test_weights_lie_with_the_channels_last():
    state = _state()
    weight = state.net.net.encoder[0].conv0.weight
    assert state.net.net.memory_format == state.ema.net.memory_format == torch.channels_last
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert state.ema.net.encoder[0].conv0.weight.is_contiguous(memory_format=torch.channels_last)
    assert state.optimizer.state[weight]["exp_avg"].is_contiguous(memory_format=torch.channels_last)
    # What is saved does not depend on it.
    assert state.tensors()["net.encoder.0.conv0.weight"].is_contiguous()


def test_precision_follows_the_device():
    cpu = torch.device("cpu")
    assert compute_dtype("auto", cpu) is None
    assert compute_dtype("float32", cpu) is None
    assert compute_dtype("bfloat16", cpu) == torch.bfloat16
    assert compute_dtype("float16", cpu) == torch.float16
