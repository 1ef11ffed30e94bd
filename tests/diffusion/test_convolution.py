"""The convolutions of a CPU are those of torch, their gradients exact."""

import pytest
import torch
import torch.nn.functional as F

from cedm_ray import products
from cedm_ray.diffusion import convolution
from cedm_ray.diffusion.convolution import FEW, LONG, WIDE, convolve, weight_gradient
from cedm_ray.products import has_512_bits


def _drawn(*shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def _last(*tensors):
    return [tensor.contiguous(memory_format=torch.channels_last).requires_grad_() for tensor in tensors]


def test_the_weight_gradient_is_the_sum_over_all_pairs_of_pixels():
    x, gradient = _drawn(2, 3, 4, 5), _drawn(2, 2, 4, 5, seed=1)
    expected = torch.zeros(2, 3, 3, 3, dtype=torch.float64)
    for row in range(4):
        for column in range(5):
            for down in range(3):
                for right in range(3):
                    y, z = row + down - 1, column + right - 1
                    if 0 <= y < 4 and 0 <= z < 5:
                        expected[:, :, down, right] += gradient[:, :, row, column].T @ x[:, :, y, z]
    torch.testing.assert_close(weight_gradient(x, gradient), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("side", [2, 6, 8])
@pytest.mark.parametrize("kernel", [1, 3])
def test_values_and_gradients_are_those_of_torch(kernel, side):
    x, weight = _last(_drawn(2, WIDE, side, side), _drawn(WIDE + 3, WIDE, kernel, kernel, seed=1))
    bias = _drawn(WIDE + 3, seed=2).requires_grad_()
    values, expected = convolve(x, weight, bias), F.conv2d(x, weight, bias, padding=kernel // 2)
    assert type(values.grad_fn) is not type(expected.grad_fn)
    torch.testing.assert_close(values, expected, rtol=1e-12, atol=1e-12)
    upstream = _drawn(*values.shape, seed=3)
    found, wanted = (torch.autograd.grad(out, (x, weight, bias), upstream) for out in (values, expected))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)
    assert found[1].is_contiguous(memory_format=torch.channels_last)


def test_a_weight_gradient_in_float32_rounds_no_worse_than_the_direct_one():
    x, weight = _last(_drawn(2, WIDE, 32, 32), _drawn(WIDE, WIDE, 3, 3, seed=1))
    upstream = _drawn(2, WIDE, 32, 32, seed=2)
    (exact,) = torch.autograd.grad(F.conv2d(x, weight, padding=1), weight, upstream)
    x, weight = _last(x.detach().float(), weight.detach().float())
    (direct,) = torch.autograd.grad(F.conv2d(x, weight, padding=1), weight, upstream.float())
    ours = weight_gradient(x.detach(), upstream.float())
    errors = [(found.double() - exact).abs().max() / exact.abs().max() for found in (ours, direct)]
    assert errors[0] < 1e-6
    assert errors[0] < 2 * errors[1]


@pytest.mark.parametrize(
    ("shape", "kernel", "layout"),
    [
        ((1, WIDE, 7, 8), 3, torch.channels_last),
        ((1, WIDE, 8, 8), 3, torch.contiguous_format),
        ((1, WIDE, 8, 8), 5, torch.channels_last),
        ((1, WIDE - 1, 8, 8), 3, torch.channels_last),
    ],
    ids=["an odd number of rows", "channels first", "another kernel", "narrow"],
)
def test_what_does_not_suit_is_left_to_torch(shape, kernel, layout, monkeypatch):
    monkeypatch.setattr(convolution, "weight_gradient", None)
    x = _drawn(*shape).contiguous(memory_format=layout).requires_grad_()
    weight, bias = _drawn(WIDE, shape[1], kernel, kernel, seed=1).requires_grad_(), _drawn(WIDE)
    values = convolve(x, weight, bias)
    assert torch.equal(values, F.conv2d(x, weight, bias, padding=kernel // 2))
    values.sum().backward()
    assert weight.grad is not None


@pytest.mark.parametrize(
    ("channels", "has_512", "onednn_faster", "of_products"),
    [
        (WIDE, False, False, True),
        (WIDE, True, False, False),
        (3 * WIDE, True, False, True),
        (3 * WIDE, True, True, False),
    ],
    ids=["AVX2", "narrower with AVX-512", "AVX-512", "AVX-512 that one library lacks"],
)
def test_the_processor_decides_who_computes_the_weight_gradient_in_float32(
    channels, has_512, onednn_faster, of_products, monkeypatch
):
    x, weight = _last(_drawn(2, channels, 4, 4), _drawn(channels, channels, 3, 3, seed=1))
    bias = _drawn(channels, seed=2)
    (exact,) = torch.autograd.grad(convolve(x, weight, bias).square().sum(), weight)
    taken = []
    monkeypatch.setattr(convolution, "weight_gradient", lambda *a: taken.append(1) or weight_gradient(*a))
    monkeypatch.setattr(convolution, "has_512_bits", lambda: has_512)
    monkeypatch.setattr(convolution, "onednn_is_faster", lambda: onednn_faster)
    x, weight = _last(x.detach().float(), weight.detach().float())
    (found,) = torch.autograd.grad(convolve(x, weight, bias.float()).square().sum(), weight)
    assert bool(taken) is of_products
    torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-4 * exact.abs().max().item())


@pytest.mark.parametrize("faster", [True, False], ids=["oneDNN's gradient", "products"])
@pytest.mark.parametrize("channels_out", [1, 3, FEW, FEW + 1, 3 * WIDE])
def test_sums_of_many_channels_and_their_gradients_are_those_of_float64(channels_out, faster, monkeypatch):
    monkeypatch.setattr(convolution, "has_512_bits", lambda: True)
    monkeypatch.setattr(convolution, "onednn_is_faster", lambda: faster)
    x, weight = _last(_drawn(3, LONG, 8, 10).float(), _drawn(channels_out, LONG, 3, 3, seed=1).float())
    bias = _drawn(channels_out, seed=2).float().requires_grad_()
    values = convolve(x, weight, bias)
    assert values.is_contiguous(memory_format=torch.channels_last)
    exact = [tensor.detach().double().requires_grad_() for tensor in (x, weight, bias)]
    expected = F.conv2d(*exact, padding=1)
    torch.testing.assert_close(values.double(), expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())
    upstream = _drawn(*values.shape, seed=3)
    found = torch.autograd.grad(values, (x, weight, bias), upstream.float())
    for one, other in zip(found, torch.autograd.grad(expected, exact, upstream), strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-5 * other.abs().max().item())


@pytest.mark.skipif(not has_512_bits(), reason="oneDNN's kernel of 256 bits rounds alike whatever the layout")
@pytest.mark.parametrize("channels_out", [3, LONG])
def test_sums_of_many_channels_round_much_less_than_one_after_the_other(channels_out):
    x, weight = _last(_drawn(2, 2 * LONG, 16, 16), _drawn(channels_out, 2 * LONG, 3, 3, seed=1))
    bias = _drawn(channels_out, seed=2)
    exact = F.conv2d(x, weight, bias, padding=1)
    one_by_one = torch.zeros(exact.shape, dtype=torch.float32)
    for channel in range(2 * LONG):
        for down in range(3):
            for right in range(3):
                shifted = F.pad(x[:, channel, None].float(), (1, 1, 1, 1))[:, :, down : down + 16, right : right + 16]
                one_by_one.addcmul_(shifted, weight[:, channel, down, right].float()[:, None, None])
    errors = [
        ((found.double() - exact).square().mean() / exact.square().mean()).sqrt()
        for found in (convolve(x.float(), weight.float(), bias.float()), one_by_one + bias.float()[:, None, None])
    ]
    assert errors[0] < 4e-7
    assert errors[0] < errors[1] / 2


@pytest.mark.skipif(not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="this torch has no oneDNN")
@pytest.mark.parametrize("faster", [True, False])
def test_a_1x1_convolution_in_float32_is_the_same_by_either_library(faster, monkeypatch):
    monkeypatch.setattr(products, "onednn_is_faster", lambda: faster)
    x, weight = _last(_drawn(4, 2 * WIDE, 16, 16).float(), _drawn(3 * WIDE, 2 * WIDE, 1, 1, seed=1).float())
    bias = _drawn(3 * WIDE, seed=2).float().requires_grad_()
    values = convolve(x, weight, bias)
    assert values.is_contiguous(memory_format=torch.channels_last)
    upstream = _drawn(*values.shape, seed=3)
    found = torch.autograd.grad(values, (x, weight, bias), upstream.float())
    exact = [tensor.detach().double().requires_grad_() for tensor in (x, weight, bias)]
    expected = F.conv2d(*exact)
    torch.testing.assert_close(values.double(), expected, rtol=1e-4, atol=1e-4)
    for one, other in zip(found, torch.autograd.grad(expected, exact, upstream), strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-5 * other.abs().max().item())


@pytest.mark.parametrize("products", [True, False])
def test_gradients_that_nobody_wants_are_not_computed(products, monkeypatch):
    monkeypatch.setattr(convolution, "weight_gradient", None)
    monkeypatch.setattr(convolution, "_products_pay", lambda *_: products)
    monkeypatch.setattr(convolution, "_rounds_much", lambda *_: True)
    (x,) = _last(_drawn(1, WIDE, 4, 4))
    weight, bias = _drawn(WIDE, WIDE, 3, 3, seed=1), _drawn(WIDE)
    convolve(x, weight, bias).sum().backward()
    assert x.grad is not None


def test_an_odd_number_of_rows_is_refused():
    with pytest.raises(ValueError, match="x must have an even number of rows, got 3"):
        weight_gradient(_drawn(1, 2, 3, 4), _drawn(1, 2, 3, 4))
