"""3x3 convolution whose weight gradient costs a CPU two thirds of the multiplications: Winograd's algorithm along rows.

With AVX2 oneDNN computes the gradient of the weights of a 3x3 convolution at two thirds of the speed of its other two
passes. As matrix products it runs at the speed of a GEMM, and taken two rows at a time it needs fewer of them. Along
one axis the gradient is a correlation of three outputs w_k with two taps g_0, g_1 of the output's gradient over four
inputs d_0 .. d_3, summed over all pairs of rows. Winograd's F(3, 2) computes it with four products instead of six:

    m_0 = g_0 (d_0 - d_2)            w_0 = m_0 + (m_1 + m_2) / 2
    m_1 = (g_0 + g_1) (d_1 + d_2)    w_1 = (m_1 - m_2) / 2
    m_2 = (g_0 - g_1) (d_2 - d_1)    w_2 = m_3 + (m_1 + m_2) / 2
    m_3 = g_1 (d_3 - d_1)

Sums over images and pixels are inside the products, which are then matrix products of all channels with all channels.
The result is exact, and no rounding is worse than that of the direct sums: the factors are 1 and 1/2.

Source: Winograd 1980; Lavin and Gray 2016 (arXiv 1509.09308), section 4. Shapes: B batch, H and W rows and columns, I
channels in, O channels out.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from cedm_ray.products import onednn_is_faster, product

WIDE = 64
"""Channels on both sides from which on the matrix products are worth their preparation."""


def convolve(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The convolution that keeps the resolution: x [B, I, H, W], weight [O, I, K, K], K odd, bias [O] to [B, O, H, W].

    All in one precision and on one device. On a CPU, where both sides are wide and the channels lie last in memory, a
    1x1 convolution is a linear layer of the pixels, for which torch would bring the channels to the front and back at
    small batches, and the gradient of a 3x3 weight is `weight_gradient` where the processor gains by it. Everywhere
    else everything is torch's.
    """
    kernel = weight.shape[-1]
    if _suits(x, weight):
        if kernel == 1:
            return _Pointwise.apply(x, weight, bias)
        if kernel == 3 and x.shape[2] % 2 == 0 and _products_pay(x):
            return _Convolution.apply(x, weight, bias)
    return F.conv2d(x, weight, bias, padding=kernel // 2)


def _suits(x: Tensor, weight: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.float64)
        and min(weight.shape[:2]) >= WIDE
        and x.is_contiguous(memory_format=torch.channels_last)
        # A compiler would take the steps apart, and has its own way with convolutions.
        and not torch.compiler.is_compiling()
    )


def _products_pay(x: Tensor) -> bool:
    """Whether `weight_gradient` is faster than torch's own, which a processor's kind decides.

    Where oneDNN has 512-bit instructions for a processor and MKL has not, oneDNN's gradient of the weights runs at the
    speed of its other passes, and even oneDNN's own products, tried in place of MKL's, do not catch up with it.
    """
    return x.dtype == torch.float64 or not onednn_is_faster()


class _Pointwise(torch.autograd.Function):
    """A 1x1 convolution as a linear layer of the pixels."""

    @staticmethod
    def forward(context, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        context.save_for_backward(x, weight)
        return _image(product(_pixels(x), weight.flatten(1).T, bias), x)

    @staticmethod
    def backward(context, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = context.saved_tensors
        wants_x, wants_weight, wants_bias = context.needs_input_grad
        pixels = _pixels(gradient)
        return (
            _image(product(pixels, weight.flatten(1)), x) if wants_x else None,
            product(pixels.T, _pixels(x)).view(weight.shape) if wants_weight else None,
            pixels.sum(0) if wants_bias else None,
        )


def _pixels(x: Tensor) -> Tensor:
    """x [B, C, H, W] as rows of pixels, [B * H * W, C]; no copy where the channels lie last."""
    return x.permute(0, 2, 3, 1).flatten(0, 2)


def _image(pixels: Tensor, like: Tensor) -> Tensor:
    """Rows of pixels [B * H * W, C] as images [B, C, H, W] of the size of `like`, the channels last in memory."""
    return pixels.unflatten(0, (len(like), *like.shape[2:])).permute(0, 3, 1, 2)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(context, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        context.save_for_backward(x, weight)
        return F.conv2d(x, weight, bias, padding=1)

    @staticmethod
    def backward(context, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = context.saved_tensors
        wants_x, wants_weight, wants_bias = context.needs_input_grad
        of_x = None
        if wants_x:
            ones, wanted = [1, 1], [True, False, False]
            known = (gradient, x, weight, None, ones, ones, ones, False, [0, 0], 1)
            of_x = torch.ops.aten.convolution_backward(*known, wanted)[0]
        return (
            of_x,
            weight_gradient(x, gradient) if wants_weight else None,
            gradient.sum((0, 2, 3)) if wants_bias else None,
        )


@torch.no_grad()
def weight_gradient(x: Tensor, gradient: Tensor) -> Tensor:
    """Gradient [O, I, 3, 3] of the weight of a 3x3 convolution with a padding of 1, channels last in memory.

    x: its input [B, I, H, W]. gradient: of its output, [B, O, H, W]. H must be even. Fast where both lie with the
    channels last; raises ValueError for an odd H.
    """
    batch, channels_in, height, width = x.shape
    channels_out = gradient.shape[1]
    if height % 2:
        raise ValueError(f"x must have an even number of rows, got {height}")
    # Pixels are numbered through, with a zero one after each row: a pixel's neighbor at the left or the right is then
    # the next number, and one shift of a whole matrix serves all pixels, borders included.
    lines = batch, height // 2, width + 1
    length = batch * (height // 2) * (width + 1)

    taps = gradient.new_empty(4, length, channels_out)
    into = taps.unflatten(1, lines)
    into[..., width, :] = 0
    into = into[..., :width, :]
    g0, g1 = gradient.permute(0, 2, 3, 1).unflatten(1, (-1, 2)).unbind(2)
    into[0].copy_(g0)
    torch.add(g0, g1, out=into[1])
    torch.sub(g0, g1, out=into[2])
    into[3].copy_(g1)

    inputs = x.new_empty(4, 1 + length + 1, channels_in)
    inputs[:, 0] = 0
    inputs[:, -1] = 0
    into = inputs[:, 1:-1].unflatten(1, lines)
    into[..., width, :] = 0
    into = into[..., :width, :]
    rows = F.pad(x.permute(0, 2, 3, 1), (0, 0, 0, 0, 1, 1))
    d0, d1, d2, d3 = (rows[:, first : first + height : 2] for first in range(4))
    torch.sub(d0, d2, out=into[0])
    torch.add(d1, d2, out=into[1])
    torch.sub(d2, d1, out=into[2])
    torch.sub(d3, d1, out=into[3])

    # One for each column of the kernel.
    products = x.new_empty(3, 4, channels_out, channels_in)
    for column, of_column in enumerate(products):
        torch.bmm(taps.mT, inputs[:, column : column + length], out=of_column)
    m0, m1, m2, m3 = products.unbind(1)
    weight = x.new_empty(channels_out, 3, 3, channels_in).permute(0, 3, 1, 2)
    w0, w1, w2 = weight.permute(2, 3, 0, 1)
    both = m1 + m2
    torch.add(m0, both, alpha=0.5, out=w0)
    torch.sub(m1, m2, out=w1).mul_(0.5)
    torch.add(m3, both, alpha=0.5, out=w2)
    return weight
