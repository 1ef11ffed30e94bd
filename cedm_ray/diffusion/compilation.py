"""torch.compile for the network's residual blocks, with a way back.

Each block is compiled by itself: blocks of one kind share their code, compiling takes a fraction of the time that the
whole network would, and inductor fuses what bounds a GPU here, normalization, activation, dropout and sums over
channels-last memory. CUDA graphs are left out: they save launches, and at training batches a step computes for much
longer than its launches take.
"""

import warnings

import torch

from cedm_ray.diffusion.batches import Batch
from cedm_ray.diffusion.edm import Denoiser, edm_loss

BACKEND = "inductor"

KINDS = 64
"""Blocks of different shapes that are compiled before torch would give up; a network of five levels has some thirty."""


def compile_blocks(denoiser: Denoiser, batch: Batch) -> str | None:
    """Compile the blocks and try them on a batch, forward and backward; no weight and no gradient is changed.

    Returns None, or, where compiling fails, why: the blocks then compute as if nothing had been tried.
    """
    # Here, because it takes seconds to import and most processes never compile.
    from torch._dynamo import config as dynamo

    dynamo.recompile_limit = max(dynamo.recompile_limit, KINDS)
    blocks = denoiser.net.blocks()
    try:
        with warnings.catch_warnings():
            # The compiler looks at gradients of what has none, and torch warns of that; it is nobody's concern.
            warnings.simplefilter("ignore")
            for block in blocks:
                block.compile(backend=BACKEND, dynamic=False)
            _try_out(denoiser, batch)
    except Exception as error:
        # Whatever a compiler may raise: the step does not need it.
        for block in blocks:
            block._compiled_call_impl = None
        torch._dynamo.reset()
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return f"training goes on without torch.compile, which failed: {lines[0]}"
    return None


def _try_out(denoiser: Denoiser, batch: Batch) -> None:
    clean, labels = batch.clean_images()
    known = (batch.conditions, labels, batch.sigma, batch.noise)
    loss = edm_loss(denoiser, clean, *known, sigma_data=denoiser.config.sigma_data).sum()
    torch.autograd.grad(loss, list(denoiser.parameters()), allow_unused=True)
