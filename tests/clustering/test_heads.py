import pytest
import torch
from torch import nn

from cedm_ray.clustering.heads import Heads


def make_heads(num_heads=3, seed=0, num_clusters=7, bottleneck=5):
    generator = torch.Generator().manual_seed(seed)
    return Heads(num_heads, 11, num_clusters, hidden=6, bottleneck=bottleneck, generator=generator)


def randomized(heads):
    """Double precision, with no parameter at the special value that it starts from."""
    generator = torch.Generator().manual_seed(5)
    heads = heads.double()
    with torch.no_grad():
        for parameter in heads.parameters():
            parameter += torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return heads


def single_head(heads, h):
    """Head h built from torch's own layers, the weight norm included."""
    in_features, hidden = heads.weight_1.shape[1:]
    num_clusters, bottleneck = heads.prototypes.shape[1:]
    first, second = nn.Linear(in_features, hidden), nn.Linear(hidden, bottleneck)
    last = nn.utils.parametrizations.weight_norm(nn.Linear(bottleneck, num_clusters, bias=False), dim=0)
    with torch.no_grad():
        first.weight, first.bias = nn.Parameter(heads.weight_1[h].T), nn.Parameter(heads.bias_1[h])
        second.weight, second.bias = nn.Parameter(heads.weight_2[h].T), nn.Parameter(heads.bias_2[h])
        last.parametrizations.weight.original0 = nn.Parameter(heads.gain[h][:, None])
        last.parametrizations.weight.original1 = nn.Parameter(heads.prototypes[h])
    return lambda x: last(nn.functional.normalize(second(nn.functional.gelu(first(x))), dim=-1))


def test_logits_are_those_of_a_loop_over_single_heads():
    heads = randomized(make_heads())
    x = torch.randn(9, 11, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = torch.stack([single_head(heads, h)(x) for h in range(3)])
    torch.testing.assert_close(heads(x), expected, rtol=1e-13, atol=1e-13)


def test_a_slice_of_heads_gives_that_slice_of_the_logits():
    heads = randomized(make_heads(5))
    x = torch.randn(4, 11, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(heads(x, slice(1, 3)), heads(x)[1:3], rtol=1e-14, atol=1e-14)


def test_a_head_starts_the_same_however_many_heads_there_are():
    few, many = make_heads(2), make_heads(6)
    for name, parameter in few.named_parameters():
        assert torch.equal(parameter, many.get_parameter(name)[:2])
    assert not torch.equal(many.weight_1[0], many.weight_1[1])
    assert not torch.equal(few.weight_1, make_heads(2, seed=1).weight_1)


def test_initial_weights_have_the_scales_of_the_recipe():
    heads = Heads(2, 300, 400, hidden=200, bottleneck=64, generator=torch.Generator().manual_seed(0))
    assert heads.weight_1.std().item() == pytest.approx(0.02, rel=0.01)
    assert heads.weight_2.std().item() == pytest.approx(0.02, rel=0.02)
    assert heads.prototypes.abs().max().item() == pytest.approx(1 / 8, rel=1e-3)
    assert heads.prototypes.std().item() == pytest.approx(1 / 8 / 3**0.5, rel=0.01)
    assert torch.equal(heads.gain, torch.ones(2, 400))
    assert not heads.bias_1.any()
    assert not heads.bias_2.any()


def test_initial_logits_are_cosines():
    logits = make_heads()(torch.randn(50, 11, generator=torch.Generator().manual_seed(1)))
    assert logits.abs().max() <= 1


def test_a_size_below_one_is_refused():
    with pytest.raises(ValueError, match="num_heads must be at least 1, got 0"):
        make_heads(0)
    with pytest.raises(ValueError, match="bottleneck must be at least 1, got 0"):
        make_heads(bottleneck=0)
