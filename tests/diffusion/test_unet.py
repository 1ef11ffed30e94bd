"""The network against published parameter counts, and its parts against slow, literal forms of the same operations."""

import math

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from cedm_ray.diffusion.edm import Denoiser, EDMConfig
from cedm_ray.diffusion.unet import UNet, UNetConfig, group_norm, position_embedding

TINY = UNetConfig(model_channels=16, channel_mult=(1, 2), num_blocks=1, attention_resolutions=(4,), dropout=0.1)


def _randomized(net: UNet) -> UNet:
    """Weights of ordinary size everywhere, since the fresh network is nearly zero."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in net.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.2)
    return net.eval()


@pytest.mark.parametrize(
    ("size", "mult", "channels", "blocks", "num_classes", "expected"),
    [
        (32, (2, 2, 2), 128, 4, 0, 55_733_891),
        (32, (2, 2, 2), 128, 4, 10, 55_735_299),
        (32, (2, 2, 2), 128, 4, 100, 55_746_819),
        (32, (2, 2, 2), 128, 4, 200, 55_759_619),
        (32, (2, 2, 2), 128, 4, 400, 55_785_219),
        *[
            (size, (1, 2, 2, 2), 128, 4, classes, count)
            for size in (64, 128)
            for classes, count in (
                (0, 61_805_571),
                (10, 61_806_979),
                (100, 61_818_499),
                (200, 61_831_299),
                (400, 61_856_899),
            )
        ],
        (128, (1, 1, 2, 2, 2), 128, 4, 0, 66_716_419),
        (128, (1, 1, 2, 2, 2), 128, 4, 100, 66_716_419 + 128 * 100 + 128),
        (128, (1, 2, 2, 2, 2), 128, 4, 0, 79_983_107),
        (32, (2, 2), 64, 4, 10, 9_407_235),
        (32, (1, 2), 32, 2, 10, 1_034_147),
    ],
)
def test_parameter_counts_are_the_published_ones(monkeypatch, size, mult, channels, blocks, num_classes, expected):
    monkeypatch.setattr(UNet, "_draw_weights", lambda self, seed: None)
    config = UNetConfig(model_channels=channels, channel_mult=mult, num_blocks=blocks)
    with torch.device("meta"):
        net = UNet(config, size, num_classes, 9)
    assert sum(weight.numel() for weight in net.parameters()) == expected


@pytest.mark.parametrize(("size", "mult", "expected"), [(32, (2, 2, 2), 419), (64, (1, 2, 2, 2), 543)])
def test_number_of_parameter_tensors_is_the_published_one(monkeypatch, size, mult, expected):
    # Published with two tensors in every block for what `_Affines` holds in two tensors for all blocks.
    monkeypatch.setattr(UNet, "_draw_weights", lambda self, seed: None)
    with torch.device("meta"):
        net = UNet(UNetConfig(channel_mult=mult), size, 10, 9)
    assert len(list(net.parameters())) - 2 + 2 * len(net.blocks()) == expected


def test_blocks_have_their_published_sizes_and_attention_where_it_belongs():
    with torch.device("meta"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(UNet, "_draw_weights", lambda self, seed: None)
        net = UNet(UNetConfig(), 32, 0, 0)

    def size(block):
        # With its rows of the affine layer, which all blocks share one matrix for.
        return sum(weight.numel() for weight in block.parameters()) + (512 + 1) * block.conv0.out_channels

    def attentive(blocks):
        return [block.attention is not None for block in blocks]

    # Encoder: 4 blocks at 32 px, down, 4 at 16 px, down, 4 at 8 px.
    assert attentive(net.encoder) == [False] * 5 + [True] * 4 + [False] * 5
    assert attentive(net.middle) == [True, False]
    # Decoder: 5 blocks at 8 px, up, 5 at 16 px, up, 5 at 32 px.
    assert attentive(net.decoder) == [False] * 10 + [True] + [False] * 6
    assert size(net.encoder[1]) == 1_312_512
    assert size(net.encoder[5]) == 1_576_192
    assert size(net.encoder[4]) == size(net.decoder[5]) == 1_378_304
    assert size(net.decoder[0]) == 2_034_176


def test_fresh_network_is_nearly_zero():
    denoiser = Denoiser(UNet(TINY, 8, 10, 9), EDMConfig()).eval()
    generator = torch.Generator().manual_seed(0)
    for sigma in (0.01, 0.5, 10.0):
        x = torch.randn(2, 3, 8, 8, generator=generator) * math.sqrt(0.25 + sigma**2)
        skipped = x * 0.25 / (0.25 + sigma**2)
        with torch.no_grad():
            change = denoiser(x, torch.full((2,), sigma), torch.tensor([3, -1]), torch.zeros(2, 9)) - skipped
        if sigma <= 0.5:
            # At high noise c_skip vanishes and so does what the change is compared with.
            assert change.norm() / skipped.norm() < 1e-5
        assert change.norm() < 1e-4


def test_weights_are_xavier_uniform_with_their_gains():
    net = UNet(TINY, 8, 10, 9)
    conv = net.encoder[0].conv0.weight
    assert conv.abs().max().item() == pytest.approx(math.sqrt(6 / (9 * 16 + 9 * 16)), rel=0.01)
    assert conv.std().item() == pytest.approx(math.sqrt(2 / (9 * 16 + 9 * 16)), rel=0.05)
    assert net.encoder[0].conv1.weight.abs().max().item() == pytest.approx(1e-5 * math.sqrt(6 / 288), rel=0.01)
    attention = net.middle[0].attention
    assert attention.qkv.weight.abs().max().item() == pytest.approx(math.sqrt(0.2 * 6 / (32 + 96)), rel=0.01)
    assert attention.proj.weight.abs().max().item() == pytest.approx(1e-5 * math.sqrt(6 / 64), rel=0.01)
    assert net.map_class.weight.abs().max().item() == pytest.approx(math.sqrt(6 / 26), rel=0.05)
    biases = [weight for name, weight in net.named_parameters() if name.endswith("bias")]
    assert all(bias.eq(0).all() for bias in biases)


def test_initial_weights_are_a_function_of_the_seed_alone():
    before = torch.random.get_rng_state()
    first, again, other = (UNet(TINY, 8, 10, 9, seed=seed).state_dict() for seed in (5, 5, 6))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["conv_in.weight"], other["conv_in.weight"])


def test_initial_weights_do_not_depend_on_the_number_of_classes():
    few, many, none = (UNet(TINY, 8, count, 9, seed=5).state_dict() for count in (10, 50, 0))
    assert all(torch.equal(few[name], many[name]) for name in none if not name.startswith("map_class"))
    assert all(torch.equal(few[name], none[name]) for name in none)


def test_noise_embedding_is_sines_then_cosines():
    embedding = position_embedding(torch.tensor([0.25]), UNet(UNetConfig(), 32, 0, 0).frequencies)[0]
    assert embedding.shape == (128,)
    assert embedding[:3].tolist() == pytest.approx([0.24740396, 0.21432148, 0.18553768], abs=1e-7)
    assert embedding[63:67].tolist() == pytest.approx([2.5e-5, 0.96891242, 0.97676318, 0.98263715], abs=1e-7)


def test_every_block_is_shifted_by_a_linear_layer_of_its_own():
    net = _randomized(UNet(TINY, 8, 0, 0))
    embedding = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    first = 0
    for block, shift in zip(net.blocks(), net.affines(embedding), strict=True):
        rows = slice(first, first + block.conv0.out_channels)
        expected = F.linear(embedding, net.affines.weight[rows], net.affines.bias[rows])
        torch.testing.assert_close(shift, expected[:, :, None, None])
        first = rows.stop
    assert first == len(net.affines.weight)
    # Each is drawn for its own fan-out: the bound of Xavier's rule belongs to the block, not to the whole matrix.
    fresh = UNet(TINY, 8, 0, 0).affines.weight.split(net.affines.sizes)
    for weight in fresh:
        assert weight.abs().max().item() == pytest.approx(math.sqrt(6 / (64 + len(weight))), rel=0.02)


def test_feature_embedding_equals_a_scaled_linear_layer_and_zeros_are_the_null_condition():
    net = _randomized(UNet(TINY, 8, 0, 0, feature_dim=12))
    features = F.normalize(torch.randn(3, 12, generator=torch.Generator().manual_seed(0)), dim=1)
    expected = features @ net.map_feature.weight.T * math.sqrt(12) + net.map_feature.bias
    torch.testing.assert_close(net.map_feature(features), expected)
    torch.testing.assert_close(net.map_feature(torch.zeros(1, 12)), net.map_feature.bias[None])
    # One-hot vectors are features too, and mean what the class does.
    classes = _randomized(UNet(TINY, 8, 12, 0))
    with torch.no_grad():
        classes.map_class.weight.copy_(net.map_feature.weight.T)
        classes.map_class.bias.copy_(net.map_feature.bias)
    torch.testing.assert_close(net.map_feature(torch.eye(12)), classes.map_class(torch.arange(12)))
    assert sum(w.numel() for w in net.map_feature.parameters()) == 16 * 12 + 16


def test_class_embedding_equals_a_scaled_one_hot_linear_layer():
    embedding = _randomized(UNet(TINY, 8, 10, 0)).map_class
    one_hot = torch.eye(10) * math.sqrt(10)
    torch.testing.assert_close(embedding(torch.arange(10)), F.linear(one_hot, embedding.weight.T, embedding.bias))
    torch.testing.assert_close(embedding(torch.tensor([-1])), embedding.bias[None])


def test_attention_equals_its_written_out_form():
    attention = _randomized(UNet(TINY, 8, 0, 0)).middle[0].attention
    x = torch.randn(2, 32, 4, 4, generator=torch.Generator().manual_seed(0))
    normed = F.group_norm(x, 8, attention.norm.weight, attention.norm.bias, eps=1e-6)
    q, k, v = attention.qkv(normed).reshape(2, 3, 32, 16).unbind(1)
    weights = torch.einsum("bcq,bck->bqk", q, k / math.sqrt(32)).softmax(dim=2)
    mixed = torch.einsum("bqk,bck->bcq", weights, v).reshape(2, 32, 4, 4)
    expected = (x + attention.proj(mixed)) * math.sqrt(0.5)
    torch.testing.assert_close(attention(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("direction", ["down", "up"])
def test_resampling_block_equals_its_form_with_box_filters(direction):
    net = _randomized(UNet(TINY, 8, 0, 0))
    block = net.encoder[2 - 1] if direction == "down" else net.decoder[2]
    channels = block.conv0.in_channels
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, channels, 4, 4, generator=generator)
    shift = torch.randn(2, block.conv0.out_channels, 1, 1, generator=generator)
    box = torch.ones(channels, 1, 2, 2)

    def resample(y):
        if direction == "down":
            return F.conv2d(y, box / 4, groups=channels, stride=2)
        return F.conv_transpose2d(y, box, groups=channels, stride=2)

    h = block.conv0(resample(F.silu(block.norm0(x)))) + shift
    expected = (block.conv1(F.silu(block.norm1(h))) + block.shortcut(resample(x))) * math.sqrt(0.5)
    assert block.down == (direction == "down")
    assert block.up == (direction == "up")
    torch.testing.assert_close(block(x, shift), expected, rtol=1e-5, atol=1e-5)


def test_group_norm_for_a_compiler_equals_that_of_torch_with_its_gradients():
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(3, 16, 6, 5, generator=generator) * 2 + 1).requires_grad_()
    weight, bias = (torch.randn(16, generator=generator).requires_grad_() for _ in range(2))
    upstream = torch.randn(3, 16, 6, 5, generator=generator)
    got, expected = group_norm(x, 4, weight, bias, 1e-6), F.group_norm(x, 4, weight, bias, 1e-6)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    pairs = (torch.autograd.grad(normed, (x, weight, bias), upstream) for normed in (got, expected))
    for ours, theirs in zip(*pairs, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=2e-5)
    assert group_norm(x.bfloat16(), 4, weight, bias, 1e-6).dtype == torch.bfloat16


def test_a_decoder_block_joins_what_comes_from_the_encoder():
    net = _randomized(UNet(TINY, 8, 0, 0))
    block, generator = net.decoder[0], torch.Generator().manual_seed(0)
    x = torch.randn(2, block.conv0.in_channels, 4, 4, generator=generator)
    shift = torch.randn(2, block.conv0.out_channels, 1, 1, generator=generator)
    torch.testing.assert_close(block(x[:, :24], shift, x[:, 24:]), block(x, shift), rtol=0, atol=0)


def test_absent_augmentation_labels_equal_zeros():
    net = _randomized(UNet(TINY, 8, 0, 9))
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    c_noise = torch.tensor([-0.3, 0.2])
    with torch.no_grad():
        torch.testing.assert_close(net(x, c_noise), net(x, c_noise, None, torch.zeros(2, 9)))


def test_an_image_is_denoised_the_same_whatever_its_batch():
    net = _randomized(UNet(TINY, 8, 10, 9))
    x = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    c_noise, classes = torch.linspace(-1, 1, 5), torch.tensor([0, 9, -1, 3, 3])
    with torch.no_grad():
        together = net(x, c_noise, classes)
        alone = torch.cat([net(x[i : i + 1], c_noise[i : i + 1], classes[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_label_dropout_replaces_classes_by_the_null_label_in_training_only():
    net = _randomized(UNet(TINY.model_copy(update={"label_dropout": 0.999, "dropout": 0.0}), 8, 10, 0))
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    c_noise, classes = torch.zeros(2), torch.tensor([1, 2])
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        null = net(x, c_noise, torch.tensor([-1, -1]))
        assert not torch.allclose(net(x, c_noise, classes), null)
        torch.testing.assert_close(net.train()(x, c_noise, classes), null)


def test_label_dropout_replaces_features_by_zeros():
    config = TINY.model_copy(update={"label_dropout": 0.999, "dropout": 0.0})
    net = _randomized(UNet(config, 8, 0, 0, feature_dim=5))
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    c_noise, features = torch.zeros(2), torch.eye(5)[:2]
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        null = net(x, c_noise, torch.zeros(2, 5))
        assert not torch.allclose(net(x, c_noise, features), null)
        torch.testing.assert_close(net.train()(x, c_noise, features), null)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_holds_the_activations_and_not_the_weights(dtype):
    net = _randomized(UNet(TINY, 8, 10, 9))
    seen = []
    for block in net.blocks():
        block.register_forward_hook(lambda module, arguments, result: seen.append(result.dtype))
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    arguments = torch.zeros(2), torch.tensor([3, -1])
    with torch.no_grad():
        expected = net(x, *arguments)
        net.compute_dtype = dtype
        got = net(x, *arguments)
    assert got.dtype == dtype
    assert set(seen[len(net.blocks()) :]) == {dtype}
    assert {weight.dtype for weight in net.parameters()} == {torch.float32}
    assert (got.float() - expected).norm() < 0.02 * expected.norm()


@pytest.mark.parametrize(("size", "mult"), [(6, (1, 1, 1)), (9, (1, 2)), (0, (1,))])
def test_size_that_cannot_be_halved_is_refused(size, mult):
    with pytest.raises(ValueError, match=f"image_size must be a positive multiple of .*, got {size}"):
        UNet(TINY.model_copy(update={"channel_mult": mult}), size, 0, 0)


def test_any_size_that_can_be_halved_works():
    net = UNet(TINY, 14, 0, 0).eval()
    with torch.no_grad():
        assert net(torch.zeros(1, 3, 14, 14), torch.zeros(1)).shape == (1, 3, 14, 14)


def test_conditions_that_do_not_fit_the_network_are_refused():
    x, c_noise = torch.zeros(1, 3, 8, 8), torch.zeros(1)
    with pytest.raises(ValueError, match="conditions must be classes of 10 for this network, got None"):
        UNet(TINY, 8, 10, 0)(x, c_noise)
    with pytest.raises(ValueError, match=r"conditions must be None for this network, got torch\.int64"):
        UNet(TINY, 8, 0, 0)(x, c_noise, torch.zeros(1, dtype=torch.int64))
    with pytest.raises(ValueError, match="augment_labels must be None"):
        UNet(TINY, 8, 0, 0)(x, c_noise, None, torch.zeros(1, 9))
    with pytest.raises(ValueError, match=r"conditions must be features of width 5 .* got torch\.float32 \[1, 4\]"):
        UNet(TINY, 8, 0, 0, feature_dim=5)(x, c_noise, torch.zeros(1, 4))
    with pytest.raises(ValueError, match=r"classes of 10 for this network, got torch\.float32"):
        UNet(TINY, 8, 10, 0)(x, c_noise, torch.zeros(1))
    with pytest.raises(ValueError, match="num_classes and feature_dim exclude each other, got 10 and 5"):
        UNet(TINY, 8, 10, 0, feature_dim=5)
    with pytest.raises(ValueError, match="feature_dim must be at least 0, got -1"):
        UNet(TINY, 8, 0, 0, feature_dim=-1)
    with pytest.raises(ValueError, match="num_classes must be at least 0, got -1"):
        UNet(TINY, 8, -1, 0)
    with pytest.raises(ValueError, match="augment_dim must be at least 0, got -1"):
        UNet(TINY, 8, 0, -1)


@pytest.mark.parametrize("field", [{"model_channels": 6}, {"channel_mult": ()}, {"num_blocks": 0}, {"dropout": 1.0}])
def test_impossible_configurations_are_refused(field):
    with pytest.raises(ValidationError):
        UNetConfig(**field)
