"""Guidance against its formula, term by term, and against the Gaussian whose guided denoiser has a closed form."""

import numpy as np
import pytest
import torch

from cedm_ray.diffusion.edm import Denoiser, EDMConfig
from cedm_ray.diffusion.guidance import Autoguidance, ClassifierFreeGuidance, guided
from cedm_ray.diffusion.sample import SampleConfig, denoise, draw_latents_and_conditions, sample
from cedm_ray.diffusion.unet import UNet, UNetConfig

CLASSES = 4


def network(num_classes, seed, *, label_dropout=0.1, channels=16):
    """A small network whose every weight is large enough to matter."""
    config = UNetConfig(
        model_channels=channels,
        channel_mult=(1,),
        num_blocks=1,
        attention_resolutions=(),
        label_dropout=label_dropout,
    )
    net = UNet(config, 8, num_classes, 0)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in net.named_parameters():
            if "norm" not in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.1)
    return Denoiser(net, EDMConfig()).eval()


class FeatureDenoiser(torch.nn.Module):
    """The ideal denoiser of y ~ N(first feature, 0.3^2); a guided one is that of another mean."""

    num_classes, feature_dim = 0, 2

    def __init__(self):
        super().__init__()
        self.net = torch.nn.Module()
        self.net.config = UNetConfig(label_dropout=0.1)
        self.eval()

    def forward(self, x, sigma, conditions):
        mean, sigma = conditions[:, 0].view(-1, 1, 1, 1), sigma.view(-1, 1, 1, 1)
        return mean + 0.09 / (0.09 + sigma**2) * (x - mean)


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(3, 3, 8, 8, generator=generator)
    return x, torch.tensor([0.1, 1.0, 20.0]), torch.tensor([2, 0, 3])


@torch.inference_mode()
def test_classifier_free_guidance_is_its_formula(inputs):
    x, sigma, classes = inputs
    denoiser = network(CLASSES, 0)
    got = ClassifierFreeGuidance(denoiser, 1.5)(x, sigma, classes)
    expected = 2.5 * denoiser(x, sigma, classes) - 1.5 * denoiser(x, sigma, torch.full((3,), -1))
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    assert (got - denoiser(x, sigma, classes)).abs().max() > 0.01


@torch.inference_mode()
@pytest.mark.parametrize("guide_classes", [0, CLASSES])
def test_autoguidance_is_its_formula(inputs, guide_classes):
    x, sigma, classes = inputs
    strong, weak = network(CLASSES, 0), network(guide_classes, 1, channels=8)
    weaker = weak(x, sigma, classes if guide_classes else None)
    # As Karras et al. 2024 write it: D_weak + w (D_strong - D_weak), whose w is one more than ours.
    expected = weaker + 3.0 * (strong(x, sigma, classes) - weaker)
    torch.testing.assert_close(Autoguidance(strong, weak, 2.0)(x, sigma, classes), expected, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_an_unconditional_model_can_be_guided_by_another(inputs):
    x, sigma, _ = inputs
    strong, weak = network(0, 0), network(0, 1)
    expected = 1.5 * strong(x, sigma) - 0.5 * weak(x, sigma)
    torch.testing.assert_close(Autoguidance(strong, weak, 0.5)(x, sigma, None), expected, atol=1e-5, rtol=1e-5)


def test_guided_gaussian_is_the_gaussian_around_the_extrapolated_mean():
    # (1 + w) D(c) - w D(0) of N(m, s^2) against N(0, s^2) is the ideal denoiser of N((1 + w) m, s^2).
    latents = torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    features = torch.tensor([[0.1, 0], [0.2, 0], [-0.1, 0], [0.0, 0]])
    config = SampleConfig(num_steps=64)
    led = denoise(guided(FeatureDenoiser(), 2.0), latents, features, config=config)
    plain = denoise(FeatureDenoiser(), latents, 3 * features, config=config)
    torch.testing.assert_close(led, plain, atol=1e-5, rtol=1e-5)


def test_no_weight_is_no_guidance_and_an_unconditional_model_has_none():
    denoiser, unconditional = network(CLASSES, 0), network(0, 0)
    assert guided(denoiser, 0) is denoiser
    assert guided(unconditional, 2.0) is unconditional


@pytest.mark.parametrize("churn", [0.0, 5.0])
@pytest.mark.parametrize("guide", [None, network(CLASSES, 1)])
def test_guided_image_is_the_same_whatever_the_batch(churn, guide):
    denoiser = network(CLASSES, 0)

    def images(seeds, batch_size, guidance=1.0):
        config = SampleConfig(num_steps=5, s_churn=churn, batch_size=batch_size, guidance=guidance)
        counts = np.arange(1, CLASSES + 1)
        worse = guide if guidance else None
        found = sample(denoiser, seeds, config=config, image_size=8, counts=counts, guide=worse, device="cpu")
        return np.concatenate(list(found)).astype(int)

    together = images(range(10), 10)
    # Matrix products of other sizes round differently, and truncation turns that into a gray level or two.
    assert np.abs(images(range(10), 3) - together).max() <= 2
    assert np.abs(images([7, 2], 1) - together[[7, 2]]).max() <= 2
    assert np.abs(images(range(10), 10, guidance=0) - together).max() > 8


def test_what_cannot_guide_is_refused():
    with pytest.raises(ValueError, match="label_dropout must have been above 0 in training"):
        guided(network(CLASSES, 0, label_dropout=0), 1.0)
    with pytest.raises(ValueError, match="weight must be at least 0, got -1"):
        guided(network(CLASSES, 0), -1)
    with pytest.raises(ValueError, match="weight must be above 0 where a guide is given"):
        guided(network(CLASSES, 0), 0, network(CLASSES, 1))
    with pytest.raises(ValueError, match="take the model's 4 classes and features of width 0, got 5 classes"):
        guided(network(CLASSES, 0), 1.0, network(5, 1))
    with pytest.raises(ValueError, match="guide must be in eval mode"):
        guided(network(CLASSES, 0), 1.0, network(CLASSES, 1).train())
    with pytest.raises(ValueError, match="denoiser must be conditional"):
        ClassifierFreeGuidance(network(0, 0), 1.0)
    config = SampleConfig(guidance=1.0)
    with pytest.raises(ValueError, match="denoiser must be in eval mode"):
        list(sample(network(CLASSES, 0).train(), [0], config=config, image_size=8, classes=0, device="cpu"))


def test_features_are_conditions_one_row_a_seed():
    rows = np.array([[0.5, 0], [-0.5, 0], [0.0, 0]], dtype=np.float64)

    def images(features, seeds=(0, 1, 2), batch_size=2):
        config = SampleConfig(num_steps=40, batch_size=batch_size)
        found = sample(FeatureDenoiser(), seeds, config=config, image_size=8, features=features, device="cpu")
        return np.concatenate(list(found)).astype(float)

    means = images(rows).mean(axis=(1, 2, 3)) / 127.5 - 1
    # The mean over 192 pixels of standard deviation 0.3.
    assert means == pytest.approx(rows[:, 0], abs=0.08)
    assert np.array_equal(images(rows[[2, 0]], (2, 0), 1), images(rows)[[2, 0]])
    for bad in (rows[:2], rows[:, :1], np.full((3, 2), np.nan), rows.astype(int)):
        with pytest.raises(ValueError, match=r"features must be finite floats \[3, 2\]"):
            images(bad)
    with pytest.raises(ValueError, match="got none for width 2"):
        images(None)
    with pytest.raises(ValueError, match="got features for width 0"):
        list(sample(network(0, 0), [0], config=SampleConfig(), image_size=8, features=rows[:1], device="cpu"))


def test_a_row_of_a_bank_is_drawn_by_each_seed():
    bank = np.array([[0.5, 0], [-0.5, 0], [0.0, 0]], dtype=np.float32)
    settings = {"config": SampleConfig(num_steps=4, batch_size=3), "image_size": 8, "device": "cpu"}
    seeds = list(range(10))
    _, rows = draw_latents_and_conditions(seeds, 8, np.ones(3, dtype=np.int64))
    assert set(rows.tolist()) == {0, 1, 2}
    found = np.concatenate(list(sample(FeatureDenoiser(), seeds, bank=bank, **settings)))
    listed = np.concatenate(list(sample(FeatureDenoiser(), seeds, features=bank[rows.numpy()], **settings)))
    assert np.array_equal(found, listed)
    for bad in (bank[:0], bank[:, :1], bank.astype(int), bank[0]):
        with pytest.raises(ValueError, match=r"bank must be floats \[N, 2\]"):
            list(sample(FeatureDenoiser(), seeds, bank=bad, **settings))
    with pytest.raises(ValueError, match="got features and a bank for width 2"):
        list(sample(FeatureDenoiser(), [0], bank=bank, features=bank[:1], **settings))
