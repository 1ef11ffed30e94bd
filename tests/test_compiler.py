"""Torch's settings inside the block and after it."""

import warnings

import pytest
import torch
from torch._dynamo import config as dynamo
from torch._inductor import config as inductor

from cedm_ray.compiler import compiling, reason


def test_no_block_size_is_tried_and_nothing_is_said_inside_the_block_alone():
    before = inductor.triton.autotune_pointwise
    with compiling(1):
        assert not inductor.triton.autotune_pointwise
        warnings.warn("warnings are errors in these tests", stacklevel=1)
    assert inductor.triton.autotune_pointwise == before


def test_the_limit_of_variants_is_raised_and_never_lowered():
    high = dynamo.recompile_limit + 10
    for variants in (high, 1):
        with compiling(variants):
            assert dynamo.recompile_limit == high


def test_the_reason_is_the_compilers_own():
    def fails(*_):
        raise RuntimeError("\nthere is no C++ compiler\nand much more")

    with pytest.raises(Exception, match="C\\+\\+") as caught:
        torch.compile(lambda x: x + 1, backend=fails)(torch.ones(2))
    assert reason(caught.value) == "there is no C++ compiler"
    assert reason(ValueError()) == "ValueError"
