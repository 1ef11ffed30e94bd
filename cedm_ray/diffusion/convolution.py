"""Convolutions on a CPU: gradients of wide 3x3 weights by fewer multiplications, and sums of many channels with less
rounding.

**Gradients of weights.** With AVX2 oneDNN computes the gradient of the weights of a 3x3 convolution at two thirds of
the speed of its other two passes. As matrix products it runs at the speed of a GEMM, and taken two rows at a time it
needs fewer of them, by Winograd's algorithm. Along one axis the gradient is a correlation of three outputs w_k with two
taps g_0, g_1 of the output's gradient over four inputs d_0 .. d_3, summed over all pairs of rows. Winograd's F(3, 2)
computes it with four products instead of six:

    m_0 = g_0 (d_0 - d_2)            w_0 = m_0 + (m_1 + m_2) / 2
    m_1 = (g_0 + g_1) (d_1 + d_2)    w_1 = (m_1 - m_2) / 2
    m_2 = (g_0 - g_1) (d_2 - d_1)    w_2 = m_3 + (m_1 + m_2) / 2
    m_3 = g_1 (d_3 - d_1)

Sums over images and pixels are inside the products, which are then matrix products of all channels with all channels.
The result is exact, and no rounding is worse than that of the direct sums: the factors are 1 and 1/2.

**Sums of many channels.** Where the channels lie last, oneDNN adds the 9 I products of an output one after the other in
float32, and the rounding grows with the root of their number: 8.5e-7 of the outputs' size at 256 channels, 1.2e-6 at
512. With the channels first its kernel of 512 bits adds them 16 channels at a time, which leaves 2.3e-7. So long sums
are computed that way, and the gradients, which the optimizer needs no better, with the channels last.

Source: Winograd 1980; Lavin and Gray 2016 (arXiv 1509.09308), section 4. Shapes: B batch, H and W rows and columns, I
channels in, O channels out.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from cedm_ray.products import has_512_bits, onednn_is_faster, product

WIDE = 64
"""Channels on both sides from which on the matrix products are worth their preparation."""

WIDE_512 = 2**15
"""Pairs of channels from which on they are where oneDNN and MKL both compute with 512 bits: measured, 192 x 192."""

LONG = 128
"""Channels in from which on the rounding of sums matters more than the copies that avoid it cost; of as many out, or
`FEW`."""

FEW = 8
"""Channels out up to which a convolution is one product with all nine taps at once."""

_PIXELS = 64
"""Pixels of an image below which copying the weights would cost about as much as the convolution itself."""


def convolve(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The convolution that keeps the resolution: x [B, I, H, W], weight [O, I, K, K], K odd, bias [O] to [B, O, H, W].

    All in one precision and on one device. On a CPU, where the channels lie last in memory, a wide 1x1 convolution is a
    linear layer of the pixels, for which torch would bring the channels to the front and back at small batches; the
    gradient of a wide 3x3 weight is `weight_gradient` where the processor gains by it; and a 3x3 convolution of many
    channels is computed so that it rounds less. Everywhere else everything is torch's.
    """
    kernel = weight.shape[-1]
    if _suits(x):
        if kernel == 1 and min(weight.shape[:2]) >= WIDE:
            return _Pointwise.apply(x, weight, bias)
        if kernel == 3 and (_products_pay(x, weight) or _rounds_much(x, weight)):
            return _Convolution.apply(x, weight, bias)
    return F.conv2d(x, weight, bias, padding=kernel // 2)


def _suits(x: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.float64)
        and x.is_contiguous(memory_format=torch.channels_last)
        # A compiler would take the steps apart, and has its own way with convolutions.
        and not torch.compiler.is_compiling()
    )


def _products_pay(x: Tensor, weight: Tensor) -> bool:
    """Whether `weight_gradient` is faster than torch's own, which a processor's kind and the shapes decide.

    Where oneDNN has 512-bit instructions for a processor and MKL has not, oneDNN's gradient of the weights runs at the
    speed of its other passes, and even oneDNN's own products, tried in place of MKL's, do not catch up with it. Where
    both have them, on Intel's, fewer multiplications pay only where there are many: of one thread 117 against 151
    GFLOP/s of oneDNN at 64 x 64 channels, 178 against 138 at 512 x 256.
    """
    if x.shape[2] % 2 or min(weight.shape[:2]) < WIDE:
        return False
    if x.dtype == torch.float64 or not has_512_bits():
        return True
    return not onednn_is_faster() and weight.shape[0] * weight.shape[1] >= WIDE_512


def _rounds_much(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN's own sums over these channels last would round more than they have to."""
    channels_out, channels_in = weight.shape[:2]
    long = channels_in >= LONG and (channels_out >= LONG or channels_out <= FEW)
    return long and x.dtype == torch.float32 and x.shape[2] * x.shape[3] >= _PIXELS and has_512_bits()


def _convolved(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The 3x3 convolution of x with the channels last, values alone."""
    if not _rounds_much(x, weight):
        return F.conv2d(x, weight, bias, padding=1)
    if len(weight) <= FEW:
        return _gathered(x, weight, bias)
    first = x.new_empty(x.shape)
    # Image by image, as matrices, which torch transposes faster than it reorders four axes.
    for image, own in zip(x.flatten(2), first.flatten(2), strict=True):
        own.copy_(image)
    found = F.conv2d(first, weight.contiguous(), bias, padding=1)
    last = torch.empty_like(found, memory_format=torch.channels_last)
    for image, own in zip(found.flatten(2), last.flatten(2), strict=True):
        own.copy_(image)
    return last


def _gathered(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The same for few channels out: what each pixel gives to its nine neighbors is one product, to be added up."""
    batch, _, height, width = x.shape
    given = product(_pixels(x), weight.permute(1, 2, 3, 0).flatten(1))
    given = F.pad(given.view(batch, height, width, -1), (0, 0, 1, 1, 1, 1)).unflatten(3, (9, -1))
    total = bias.expand(batch, height, width, -1).clone()
    for down in range(3):
        for right in range(3):
            total += given[:, down : down + height, right : right + width, 3 * down + right]
    return total.permute(0, 3, 1, 2)


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
    """A 3x3 convolution."""

    @staticmethod
    def forward(context, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        context.save_for_backward(x, weight)
        return _convolved(x, weight, bias)

    @staticmethod
    def backward(context, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = context.saved_tensors
        wants_x, wants_weight, wants_bias = context.needs_input_grad
        products = wants_weight and _products_pay(x, weight)
        of_x = of_weight = None
        if wants_x or (wants_weight and not products):
            ones, wanted = [1, 1], [wants_x, wants_weight and not products, False]
            known = (gradient, x, weight, None, ones, ones, ones, False, [0, 0], 1)
            of_x, of_weight, _ = torch.ops.aten.convolution_backward(*known, wanted)
        return (
            of_x,
            weight_gradient(x, gradient) if products else of_weight,
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
