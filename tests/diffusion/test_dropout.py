"""Dropout against its definition: a share is zero, the mean is kept, the gradient passes where the value did."""

import pytest
import torch

from cedm_ray.diffusion.dropout import dropout


def _seeded(x, probability, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return dropout(x, probability)


@pytest.mark.parametrize("probability", [0.13, 0.5, 0.9])
def test_a_share_is_zero_and_the_rest_is_scaled_so_that_the_mean_is_kept(probability):
    result = _seeded(torch.ones(400, 999), probability)
    share = (result == 0).float().mean().item()
    # Five standard deviations of a share over 399,600 draws.
    assert share == pytest.approx(probability, abs=5 * (probability * (1 - probability) / 399_600) ** 0.5)
    dropped = round(probability * 65_536)
    assert result.max().item() == pytest.approx(65_536 / (65_536 - dropped), rel=1e-6)
    assert result.mean().item() == pytest.approx(1, abs=0.02)


def test_elements_are_dropped_independently():
    kept = (_seeded(torch.ones(4096, 64), 0.5) != 0).double()
    for shift in (1, 2, 3, 4, 64):
        # Neighbors share one 64-bit draw; their correlation is that of independent bits.
        a, b = kept.flatten()[:-shift], kept.flatten()[shift:]
        assert abs(torch.corrcoef(torch.stack((a, b)))[0, 1].item()) < 0.01


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_gradient_passes_where_the_value_did(memory_format):
    x = torch.randn(2, 6, 5, 7, generator=torch.Generator().manual_seed(1)).to(memory_format=memory_format)
    x.requires_grad_()
    result = _seeded(x, 0.3)
    assert result.is_contiguous(memory_format=memory_format)
    gradient = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    result.backward(gradient)
    factor = torch.where(result == 0, 0.0, 65_536 / (65_536 - 19_661))
    torch.testing.assert_close(result, x * factor)
    torch.testing.assert_close(x.grad, gradient * factor)


def test_the_mask_is_a_function_of_the_global_generator():
    x = torch.ones(50, 7)
    assert torch.equal(_seeded(x, 0.5), _seeded(x, 0.5))
    assert not torch.equal(_seeded(x, 0.5), _seeded(x, 0.5, seed=1))


def test_probability_zero_returns_its_input_and_others_are_refused():
    x = torch.ones(5)
    assert dropout(x, 0.0) is x
    for probability in (-0.1, 1.0):
        with pytest.raises(ValueError, match=f"probability must lie in \\[0, 1\\), got {probability}"):
            dropout(x, probability)
