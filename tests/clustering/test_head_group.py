"""A group's passes against autograd through the module."""

import pytest
import torch

from cedm_ray.clustering.head_group import GroupBuffers, HeadGroup
from cedm_ray.clustering.heads import Heads

ROWS, IN_FEATURES, CLUSTERS, TEMPERATURE = 10, 11, 7, 0.3


def randomized(num_heads=5):
    """Heads in double precision, with no parameter at the special value that it starts from."""
    generator = torch.Generator().manual_seed(5)
    heads = Heads(num_heads, IN_FEATURES, CLUSTERS, hidden=6, bottleneck=5, generator=generator).double()
    with torch.no_grad():
        for parameter in heads.parameters():
            parameter += torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return heads


def make_group(heads, part, tile_rows=ROWS, **how):
    buffers = GroupBuffers(heads, part.stop - part.start, ROWS, tile_rows, tiles=2)
    for value in vars(buffers).values():
        for tensor in value if isinstance(value, list) else value.values() if isinstance(value, dict) else [value]:
            tensor.fill_(torch.nan)  # What is read before it is written shows.
    group = HeadGroup(heads, part, buffers, temperature=TEMPERATURE, **how)
    group.attach_gradients(last_layer=True)
    return group, buffers


def draw(*shape, seed=2):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def run(group, buffers, x, grad_logits, row_weight, tile_rows=ROWS):
    """Forward and backward, tile by tile; the logits."""
    group.embed(x)
    group.prepare_last_layer()
    group.weigh_rows(row_weight)
    logits = []
    for start in range(0, ROWS, tile_rows):
        tile = slice(start, min(start + tile_rows, ROWS))
        out = buffers.tiles[0][: group.size, : tile.stop - start]
        logits.append(group.logits(group.unit[:, tile], out).clone())
        group.backward_logits(out.copy_(grad_logits[:, tile]), tile)
    group.backward(x, row_weight)
    return torch.cat(logits, dim=1)


@pytest.mark.parametrize(("part", "tile_rows"), [((0, 5), 10), ((1, 4), 10), ((4, 5), 10), ((2, 3), 4), ((0, 1), 1)])
def test_logits_and_gradients_are_those_of_autograd(part, tile_rows):
    heads, part = randomized(), slice(*part)
    x, row_weight = draw(ROWS, IN_FEATURES, seed=1), draw(ROWS, seed=3).abs()
    grad_logits = draw(part.stop - part.start, ROWS, CLUSTERS)
    group, buffers = make_group(heads, part, tile_rows)
    logits = run(group, buffers, x, grad_logits, row_weight, tile_rows)
    expected = heads(x, part) / TEMPERATURE
    torch.testing.assert_close(logits, expected.detach(), rtol=1e-12, atol=1e-12)
    names = [name for name, _ in heads.named_parameters()]
    gradients = torch.autograd.grad(expected, list(heads.parameters()), grad_logits * row_weight[:, None])
    for name, gradient in zip(names, gradients, strict=True):
        torch.testing.assert_close(group.values[name].grad, gradient[part], rtol=1e-10, atol=1e-11, msg=name)


def test_a_frozen_last_layer_changes_no_other_gradient():
    heads, whole = randomized(3), slice(0, 3)
    x, row_weight, grad_logits = draw(ROWS, IN_FEATURES, seed=1), draw(ROWS).abs(), draw(3, ROWS, CLUSTERS)
    group, buffers = make_group(heads, whole)
    run(group, buffers, x, grad_logits, row_weight)
    expected = {name: value.grad.clone() for name, value in group.values.items()}
    group.attach_gradients(last_layer=False)
    run(group, buffers, x, grad_logits, row_weight)
    assert group.values["prototypes"].grad is group.values["gain"].grad is None
    for name in ("weight_1", "bias_1", "weight_2", "bias_2"):
        assert torch.equal(group.values[name].grad, expected[name])


def test_a_group_is_a_view_of_its_heads():
    heads = randomized()
    group, _ = make_group(heads, slice(1, 3))
    with torch.no_grad():
        group.values["gain"].fill_(7)
    assert (heads.gain[1:3] == 7).all()
    assert not (heads.gain[0] == 7).any()


def test_every_parameter_is_either_decayed_or_a_bias():
    group, _ = make_group(randomized(), slice(0, 5))
    listed = [*group.decayed(), *group.biases()]
    assert {id(p) for p in listed} == {id(p) for p in group.values.values()}
    assert len(listed) == 6


def test_bfloat16_rounds_the_products_and_nothing_else():
    heads = randomized(3).float()
    x, row_weight, grad_logits = (
        tensor.float() for tensor in (draw(ROWS, IN_FEATURES, seed=1), draw(ROWS).abs(), draw(3, ROWS, CLUSTERS))
    )
    exact, buffers = make_group(heads, slice(0, 3))
    expected = run(exact, buffers, x, grad_logits, row_weight)
    rounded, other = make_group(heads, slice(0, 3), precision="bfloat16")
    logits = run(rounded, other, x, grad_logits, row_weight)
    assert logits.dtype == torch.float32
    scale = expected.abs().max()
    assert 1e-4 < ((logits - expected).abs().max() / scale).item() < 0.05
    for name, value in rounded.values.items():
        assert value.dtype == value.grad.dtype == torch.float32
        error = (value.grad - exact.values[name].grad).norm() / exact.values[name].grad.norm()
        assert error.item() < 0.05, name
