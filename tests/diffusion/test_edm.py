"""Preconditioning and loss against the published formulas' values (method.md 9) and a network known in closed form."""

import math

import pytest
import torch

from cedm_ray.diffusion.edm import Denoiser, EDMConfig, draw_sigma, edm_loss, loss_weight, preconditioning

GOLDEN = {
    # sigma: (c_skip, c_out, c_in, c_noise, weight)
    0.002: (0.999984, 0.001999984, 1.999984, -1.553652, 250004),
    0.1: (0.96153846, 0.098058068, 1.9611614, -0.57564627, 104),
    0.5: (0.5, 0.35355339, 1.4142136, -0.1732868, 8),
    1.0: (0.2, 0.4472136, 0.89442719, 0, 5),
    5.0: (0.0099009901, 0.4975186, 0.19900744, 0.40235948, 4.04),
    80.0: (3.9060974e-05, 0.49999023, 0.012499756, 1.0955067, 4.0001562),
}


class _ConstantNet(torch.nn.Module):
    """Answers the same value everywhere and keeps what it was asked."""

    num_classes = 0

    def __init__(self, value: float, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.value = value
        self.dtype = dtype

    def forward(self, x, c_noise, classes, augment_labels):
        self.asked = (x, c_noise, classes, augment_labels)
        return torch.full_like(x, self.value, dtype=self.dtype)


@pytest.mark.parametrize(("sigma", "expected"), GOLDEN.items())
def test_factors_and_weight_are_those_of_table_1(sigma, expected):
    level = torch.tensor(sigma, dtype=torch.float64)
    factors = preconditioning(level, 0.5)
    got = [factors.c_skip, factors.c_out, factors.c_in, factors.c_noise, loss_weight(level, 0.5)]
    assert [value.item() for value in got] == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_input_and_target_of_the_network_have_unit_variance():
    generator = torch.Generator().manual_seed(0)
    clean = 0.5 * torch.randn(200_000, generator=generator, dtype=torch.float64)
    noise = torch.randn(200_000, generator=generator, dtype=torch.float64)
    for sigma in (0.05, 0.7, 20.0):
        factors = preconditioning(torch.tensor(sigma, dtype=torch.float64), 0.5)
        noisy = clean + sigma * noise
        assert (factors.c_in * noisy).std().item() == pytest.approx(1, abs=0.01)
        assert ((clean - factors.c_skip * noisy) / factors.c_out).std().item() == pytest.approx(1, abs=0.01)


def test_denoiser_combines_input_and_network_output():
    net = _ConstantNet(3.0)
    x = torch.ones(2, 3, 4, 4)
    result = Denoiser(net, EDMConfig())(x, torch.tensor([0.5, 1.0]))
    torch.testing.assert_close(result[0], torch.full((3, 4, 4), 0.5 + 0.35355339 * 3))
    torch.testing.assert_close(result[1], torch.full((3, 4, 4), 0.2 + 0.4472136 * 3))
    asked, c_noise, classes, labels = net.asked
    torch.testing.assert_close(asked[1], torch.full((3, 4, 4), 0.89442719))
    torch.testing.assert_close(c_noise, torch.tensor([-0.1732868, 0.0]))
    assert classes is None
    assert labels is None


def test_denoiser_combines_in_the_precision_of_its_input():
    denoiser = Denoiser(_ConstantNet(0.0, torch.bfloat16), EDMConfig())
    x = torch.full((1, 3, 2, 2), 1.0009765625)
    result = denoiser(x, torch.tensor([0.002]))
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, x * 0.999984)


def test_loss_is_the_weighted_squared_error_summed_over_pixels():
    # With F = 0 and clean = 0 the error is c_skip sigma noise, so the loss is lambda c_skip^2 sigma^2 sum(noise^2).
    noise = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    sigma = torch.tensor([1.0, 5.0])
    losses = edm_loss(
        Denoiser(_ConstantNet(0.0), EDMConfig()), torch.zeros(2, 3, 4, 4), None, None, sigma, noise, sigma_data=0.5
    )
    energy = noise.square().sum(dim=(1, 2, 3))
    expected = torch.stack((5 * 0.2**2 * energy[0], 4.04 * 0.0099009901**2 * 25 * energy[1]))
    torch.testing.assert_close(losses, expected)


def test_noise_levels_are_lognormal():
    sigma = draw_sigma(200_000, EDMConfig(), torch.Generator().manual_seed(0))
    assert sigma.shape == (200_000,)
    assert sigma.log().mean().item() == pytest.approx(-1.2, abs=0.01)
    assert sigma.log().std().item() == pytest.approx(1.2, abs=0.01)
    assert sigma.median().item() == pytest.approx(math.exp(-1.2), rel=0.02)
