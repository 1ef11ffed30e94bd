"""Compiled blocks answer as they did, and failing to compile leaves them as they were."""

import numpy as np
import pytest
import torch

from cedm_ray.data.order import TrainingOrder
from cedm_ray.diffusion import compilation
from cedm_ray.diffusion.augment import AugmentConfig
from cedm_ray.diffusion.batches import BatchSource
from cedm_ray.diffusion.edm import Denoiser, EDMConfig
from cedm_ray.diffusion.unet import UNet, UNetConfig


@pytest.fixture
def denoiser():
    unet = UNetConfig(model_channels=8, channel_mult=(1, 2), num_blocks=1, attention_resolutions=(4,), dropout=0.0)
    return Denoiser(UNet(unet, 8, 3, 9), EDMConfig()).train()


@pytest.fixture
def batch():
    source = BatchSource(
        np.random.default_rng(0).integers(0, 256, (20, 3, 8, 8), dtype=np.uint8),
        np.arange(20) % 3,
        batch_size=4,
        share=slice(0, 4),
        edm=EDMConfig(),
        augment=AugmentConfig(),
        order=TrainingOrder(num_images=20, seed=0),
        seed=0,
        device=torch.device("cpu"),
    )
    return source.draw(0)


def _answer(denoiser, batch):
    clean, labels = batch.clean_images()
    with torch.no_grad():
        return denoiser(clean, batch.sigma, batch.conditions, labels)


@pytest.mark.parametrize("backend", ["eager", "none of this name"])
def test_a_denoiser_answers_the_same_after_it_whether_it_worked_or_not(monkeypatch, denoiser, batch, backend):
    monkeypatch.setattr(compilation, "BACKEND", backend)
    expected = _answer(denoiser, batch)
    note = compilation.compile_blocks(denoiser, batch)
    compiled = [block._compiled_call_impl is not None for block in denoiser.net.blocks()]
    if backend == "eager":
        assert note is None
        assert all(compiled)
    else:
        assert "goes on without torch.compile, which failed: Invalid backend" in note
        assert not any(compiled)
    torch.testing.assert_close(_answer(denoiser, batch), expected)
    assert all(weight.grad is None for weight in denoiser.parameters())
