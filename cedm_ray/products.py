"""Matrix products on a CPU, each by the faster of torch's two libraries: MKL, which torch itself asks, and oneDNN.

On AMD's processors MKL computes float32 products with AVX2. From Zen 5 on they have units of 512 bits, and there
oneDNN's inner product was measured at 2.2 times the speed of MKL's (240 against 108 GFLOP/s of one thread). On AVX2
machines and on Intel's, and for everything but large float32 products, torch's own functions stand.

Which library computes a product depends on the processor and on the shapes alone, never on a clock: a run that is
continued on a machine of the same kind computes the same bits.

Shapes: G products of a batch, M rows, K summed over, N columns.
"""

from functools import cache
from pathlib import Path

import torch
from torch import Tensor

_CPUINFO = Path("/proc/cpuinfo")
_ZEN_5 = 26
"""The family of AMD's processors from which on a 512-bit instruction is computed at once."""

# In multiply-adds, measured: below the first a call of its own costs more than it saves, and an element that has to be
# transposed for oneDNN costs as much as the second saves.
_SMALLEST, _TRANSPOSED = 2**21, 32
_NARROWEST = 16


def product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a [M, K] @ b [K, N], plus a bias [N] where there is one: [M, N].

    Knows no gradient: to be called where none is recorded.
    """
    if _suits_onednn(a, b):
        return _by_onednn(a, b, bias)
    return torch.mm(a, b) if bias is None else torch.addmm(bias, a, b)


def batched_product(a: Tensor, b: Tensor, out: Tensor, *, bias: Tensor | None = None, add: bool = False) -> Tensor:
    """out [G, M, N] = a [G, M, K] @ b [G, K, N], plus a bias [G, N], or added to what `out` holds; returns out.

    bias and add exclude each other. out must not share memory with a or b. The G products do not depend on each other,
    nor on G where oneDNN computes them. Knows no gradient: to be called where none is recorded.
    """
    if _suits_onednn(a[0], b[0]):
        if a.stride(0) == 0 and not _is_turned(a[0], b[0], bias):
            # One copy, where there has to be one, for all of them.
            a = a[0].contiguous().expand(a.shape)
        biases = [None] * len(a) if bias is None else bias.unbind()
        for one_out, *factors in zip(out.unbind(), a.unbind(), b.unbind(), biases, strict=True):
            found = _by_onednn(*factors)
            one_out.add_(found) if add else one_out.copy_(found)
        return out
    start = out if add else None if bias is None else bias.unsqueeze(1)
    return torch.bmm(a, b, out=out) if start is None else torch.baddbmm(start, a, b, out=out)


@cache
def onednn_is_faster() -> bool:
    """Whether oneDNN computes large float32 products faster than torch's own functions on this machine's CPU.

    False where the system does not tell its processor, and where this torch lacks either library. Setting
    ATEN_CPU_CAPABILITY=avx2 before the start makes it False too.
    """
    return (
        has_512_bits()
        and torch.backends.mkl.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and _is_zen_5(_CPUINFO)
    )


def has_512_bits() -> bool:
    """Whether oneDNN computes with instructions of 512 bits on this machine's CPU, as torch itself then does."""
    return torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability().startswith("AVX512")


def _is_zen_5(cpuinfo: Path) -> bool:
    """Whether Linux's description of the processors, as in /proc/cpuinfo, is of AMD's Zen 5 or a later one."""
    try:
        lines = cpuinfo.read_text(errors="replace").splitlines()
    except OSError:
        return False
    # The last processor's entries win; a machine has processors of one kind.
    entries = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    family = entries.get("cpu family", "")
    return entries.get("vendor_id") == "AuthenticAMD" and family.isdecimal() and int(family) >= _ZEN_5


def _suits_onednn(a: Tensor, b: Tensor) -> bool:
    """Whether oneDNN is the faster library for a [M, K] @ b [K, N]."""
    if a.dtype != torch.float32 or b.dtype != torch.float32 or a.device.type != "cpu" or not onednn_is_faster():
        return False
    if min(*a.shape, *b.shape) < _NARROWEST or 1 not in a.stride() or 1 not in b.stride():
        return False
    return a.shape[0] * b.numel() >= _SMALLEST + _TRANSPOSED * min(_transposed(a, b))


def _transposed(a: Tensor, b: Tensor) -> tuple[int, int]:
    """How many elements oneDNN's way needs transposed, for a @ b as it stands and as the transpose of b.T @ a.T."""
    straight = 0 if a.stride(1) == 1 else a.numel()
    turned = a.shape[0] * b.shape[1] + (0 if b.stride(0) == 1 else b.numel())
    return straight, turned


def _is_turned(a: Tensor, b: Tensor, bias: Tensor | None) -> bool:
    straight, turned = _transposed(a, b)
    return turned < straight and bias is None


def _by_onednn(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    """a [M, K] @ b [K, N] + bias [N]. oneDNN takes a left factor in rows only, and a right one either way."""
    if _is_turned(a, b, bias):
        return _inner_product(b.T.contiguous(), a.T, None).T
    return _inner_product(a.contiguous(), b, bias)


def _inner_product(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    """a [M, K] @ b [K, N] + bias [N], by an operator of torch's compiler that no public function calls."""
    if not (b.is_contiguous() or b.T.is_contiguous()):
        # A part of a larger matrix: oneDNN has only a loop for it, of a thousandth of the speed.
        b = b.contiguous()
    return torch.ops.mkldnn._linear_pointwise(a, b.T, bias, "none", [], "")
