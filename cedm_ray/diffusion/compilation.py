"""torch.compile for the network's residual blocks, with a way back.

Each block is compiled by itself: blocks of one kind share their code, compiling takes a fraction of the time that the
whole network would, and inductor fuses what bounds a GPU here, normalization, activation, dropout and sums over
channels-last memory. CUDA graphs are left out: they save launches, and at training batches a step computes for much
longer than its launches take.
"""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from cedm_ray.compiler import compiling, reason
from cedm_ray.diffusion.batches import Batch
from cedm_ray.diffusion.edm import Denoiser, edm_loss
from cedm_ray.diffusion.unet import UNet

BACKEND = "inductor"

KINDS = 128
"""Parts of different shapes that are compiled before torch would give up; a network of five levels has some thirty,
once in training and once in sampling."""


def compile_blocks(denoiser: Denoiser, batch: Batch) -> str | None:
    """Compile the blocks and try them on a batch, forward and backward; no weight and no gradient is changed.

    Returns None, or, where compiling fails, why: the blocks then compute as if nothing had been tried.
    """
    parts = denoiser.net.compilable()
    why = _attempt(parts, lambda: _try_out(denoiser, batch))
    return None if why is None else f"training goes on without torch.compile, which failed: {why}"


def try_forward(nets: list[UNet], denoiser: nn.Module, *inputs: Tensor | None) -> bool:
    """Compile the networks that `denoiser` consists of for inputs of these shapes; whether it worked. They compute
    compiled within `compiled` alone.

    inputs: as the denoiser takes them. Under `torch.inference_mode`, as they will be used.
    """
    parts = _parts(nets)
    with _restored(parts):
        return _attempt(parts, lambda: denoiser(*inputs)) is None


@contextlib.contextmanager
def compiled(nets: list[UNet]) -> Iterator[None]:
    """The networks compute as `try_forward` compiled them, and as they did before afterwards."""
    parts = _parts(nets)
    with _restored(parts):
        for part in parts:
            part.compile(backend=BACKEND, dynamic=False)
        yield


def _parts(nets: list[UNet]) -> list[nn.Module]:
    return [part for net in nets for part in net.compilable()]


@contextlib.contextmanager
def _restored(parts: list[nn.Module]) -> Iterator[None]:
    """Afterwards the parts compute as before. What was compiled is kept by torch, by their code and shapes."""
    before = [part._compiled_call_impl for part in parts]
    try:
        yield
    finally:
        for part, own in zip(parts, before, strict=True):
            part._compiled_call_impl = own


def _attempt(parts: list[nn.Module], run: Callable[[], object]) -> str | None:
    """Compile the parts by running them; the first line of what was raised, None if nothing."""
    try:
        with compiling(KINDS):
            for part in parts:
                part.compile(backend=BACKEND, dynamic=False)
            run()
    except Exception as error:
        # Whatever a compiler may raise: the step does not need it.
        for part in parts:
            part._compiled_call_impl = None
        torch._dynamo.reset()
        return reason(error)
    return None


def _try_out(denoiser: Denoiser, batch: Batch) -> None:
    clean, labels = batch.clean_images()
    known = (batch.conditions, labels, batch.sigma, batch.noise)
    loss = edm_loss(denoiser, clean, *known, sigma_data=denoiser.config.sigma_data).sum()
    torch.autograd.grad(loss, list(denoiser.parameters()), allow_unused=True)
