"""The sampler against Gaussian data, whose ideal denoiser and probability flow are known in closed form."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch

from cedm_ray.diffusion import compilation
from cedm_ray.diffusion import sample as sampling
from cedm_ray.diffusion.edm import Denoiser, EDMConfig
from cedm_ray.diffusion.sample import SampleConfig, denoise, draw_latents_and_conditions, sample, sigma_steps
from cedm_ray.diffusion.unet import UNet, UNetConfig

MEAN, DEVIATION = 0.2, 0.3


class _GaussianDenoiser(torch.nn.Module):
    """E[y | y + sigma n] for y ~ N(MEAN, DEVIATION^2); with classes, y ~ N(class / 10, DEVIATION^2)."""

    def __init__(self, num_classes: int = 0) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.calls = 0
        self.eval()

    def forward(self, x, sigma, classes=None, augment_labels=None):
        self.calls += 1
        mean = MEAN if classes is None else classes.view(-1, 1, 1, 1) / 10
        sigma = sigma.view(-1, 1, 1, 1)
        return mean + DEVIATION**2 / (DEVIATION**2 + sigma**2) * (x - mean)


@pytest.fixture(scope="module")
def network():
    config = UNetConfig(model_channels=16, channel_mult=(1, 2), num_blocks=1, attention_resolutions=(4,))
    net = UNet(config, 8, 10, 0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in net.named_parameters():
            if "norm" not in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.1)
    return Denoiser(net, EDMConfig()).eval()


def _generate(denoiser, seeds, config=None, **keywords):
    keywords = {"image_size": 8, "device": "cpu"} | keywords
    return np.concatenate(list(sample(denoiser, seeds, config=config or SampleConfig(), **keywords)))


def test_noise_levels_are_the_published_ones():
    levels = [80, 57.585985, 40.785574, 28.374585, 19.352453, 12.910082, 8.400935, 5.315195, 3.256822, 1.92334]
    levels += [1.088171, 0.585348, 0.296442, 0.139516, 0.059947, 0.022935, 0.007528, 0.002, 0]
    assert sigma_steps(SampleConfig()).tolist() == pytest.approx(levels, abs=6e-7)
    forty = sigma_steps(SampleConfig(num_steps=40)).tolist()
    assert len(forty) == 41
    assert forty[:3] == pytest.approx([80, 69.450946, 60.117395])
    assert forty[-4:] == pytest.approx([0.00643711, 0.00367659, 0.002, 0], abs=6e-9)


def test_noise_levels_that_do_not_fall_are_refused():
    with pytest.raises(ValueError, match=r"sigma_min must be below sigma_max 80\.0, got 90\.0"):
        sigma_steps(SampleConfig(sigma_min=90))


def _path_error(num_steps: int) -> float:
    latents = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    got = denoise(_GaussianDenoiser(), latents, None, config=SampleConfig(num_steps=num_steps))
    exact = MEAN + (80 * latents.double() - MEAN) * DEVIATION / math.sqrt(DEVIATION**2 + 80**2)
    return (got - exact).abs().max().item()


def test_path_of_gaussian_data_is_the_closed_form_to_second_order():
    errors = [_path_error(num_steps) for num_steps in (16, 32, 64, 128)]
    assert errors[-1] < 2e-3
    for coarse, fine in itertools.pairwise(errors):
        assert 3.3 < coarse / fine < 5.5


def test_eighteen_steps_take_thirty_five_network_calls():
    denoiser = _GaussianDenoiser()
    _generate(denoiser, [0])
    assert denoiser.calls == 35


def test_stochastic_path_keeps_the_distribution():
    config = SampleConfig(num_steps=64, s_churn=20, s_noise=1.0)
    generators = [torch.Generator().manual_seed(seed) for seed in range(100)]
    latents = torch.stack([torch.randn(3, 8, 8, generator=g) for g in generators])
    images = denoise(_GaussianDenoiser(), latents, None, config=config, generators=generators)
    straight = denoise(_GaussianDenoiser(), latents, None, config=SampleConfig(num_steps=64))
    assert not torch.allclose(images, straight, atol=0.05)
    assert images.mean().item() == pytest.approx(MEAN, abs=0.01)
    assert images.std().item() == pytest.approx(DEVIATION, rel=0.03)


class _CorrelatedDenoiser(torch.nn.Module):
    """E[y | y + sigma n] for y ~ N(m, Sigma) with Sigma = U diag(variances) U^T over all 12 values of an image."""

    num_classes = 0

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.basis = torch.linalg.qr(torch.randn(12, 12, generator=generator, dtype=torch.float64)).Q
        self.variances = torch.logspace(-4, 0, 12, dtype=torch.float64)
        self.mean = torch.linspace(-0.5, 0.5, 12, dtype=torch.float64)
        self.eval()

    def forward(self, x, sigma, classes=None):
        shrink = self.variances / (self.variances + sigma[:, None].double() ** 2)
        along = (x.double().flatten(1) - self.mean) @ self.basis
        return (self.mean + (along * shrink) @ self.basis.T).view(x.shape).to(x.dtype)


def test_noise_is_mapped_to_a_gaussian_with_any_covariance():
    denoiser = _CorrelatedDenoiser()
    latents = torch.randn(50, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    got = denoise(denoiser, latents, None, config=SampleConfig(num_steps=256)).flatten(1)
    # Each principal component shrinks from the variance lambda + 80^2 of the start to lambda.
    shrink = (denoiser.variances / (denoiser.variances + 80**2)).sqrt()
    along = (80 * latents.double().flatten(1) - denoiser.mean) @ denoiser.basis
    exact = denoiser.mean + (along * shrink) @ denoiser.basis.T
    assert (got - exact).abs().max().item() < 1e-3


def test_stochastic_path_maps_noise_to_the_gaussian_too():
    denoiser, count = _CorrelatedDenoiser(), 1000
    generators = [torch.Generator().manual_seed(seed) for seed in range(count)]
    latents = torch.stack([torch.randn(3, 2, 2, generator=g) for g in generators])
    config = SampleConfig(num_steps=96, s_churn=20)
    images = denoise(denoiser, latents, None, config=config, generators=generators).flatten(1)
    along = (images - denoiser.mean) @ denoiser.basis / denoiser.variances.sqrt()
    # Standardized, they are N(0, I): mean within 4 standard errors, covariance within 5 of a product of two.
    assert along.mean(dim=0).abs().max().item() < 4 / count**0.5
    assert (along.T @ along / count - torch.eye(12)).abs().max().item() < 5 * (2 / count) ** 0.5


# diffusers hands a tensor to NumPy in a way that NumPy 2 warns about.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_path_of_a_fixed_denoiser_is_that_of_diffusers(network):
    # diffusers has EDM's noise levels with Euler's step, and Heun's step with other levels. Heun's step, run over the
    # EDM scheduler's levels, is Algorithm 1 in float32; the model's output is given to it as the clean image.
    from diffusers import EDMEulerScheduler, HeunDiscreteScheduler

    levels, heun = EDMEulerScheduler(), HeunDiscreteScheduler(prediction_type="sample")
    levels.set_timesteps(18)
    assert levels.sigmas.numpy() == pytest.approx(sigma_steps(SampleConfig()).numpy(), rel=1e-6)
    heun.set_timesteps(18)
    inner = levels.sigmas[1:-1].repeat_interleave(2)
    heun.sigmas = torch.cat((levels.sigmas[:1], inner, levels.sigmas[-1:]))
    assert len(heun.sigmas) == len(heun.timesteps) + 1
    heun.set_begin_index(0)
    latents, classes = draw_latents_and_conditions(range(6), 8, np.arange(10))
    x = latents * 80.0
    calls = heun.sigmas[:-1]
    assert len(calls) == 35
    with torch.inference_mode():
        for sigma, timestep in zip(calls, heun.timesteps, strict=True):
            x = heun.step(network(x, sigma.expand(len(x)), classes), timestep, x).prev_sample
        ours = denoise(network, latents, classes, config=SampleConfig())
        coarse = denoise(network, latents, classes, config=SampleConfig(num_steps=17))
    assert (ours - x).abs().max().item() < 1e-5
    # Another path by one step less is far from it, so that the agreement says something.
    assert (ours - coarse).abs().max().item() > 0.01


def test_noise_is_added_between_s_min_and_s_max_only():
    seeds, narrow = list(range(3)), SampleConfig(s_churn=10, s_min=1000, s_max=2000)
    assert np.array_equal(_generate(_GaussianDenoiser(), seeds, narrow), _generate(_GaussianDenoiser(), seeds))


def test_churn_without_generators_is_refused():
    with pytest.raises(ValueError, match="generators must be given when s_churn > 0"):
        denoise(_GaussianDenoiser(), torch.zeros(1, 3, 4, 4), None, config=SampleConfig(s_churn=1))


def test_pixels_are_the_path_in_gray_levels():
    latents, _ = draw_latents_and_conditions(range(5), 8, None)
    path = denoise(_GaussianDenoiser(), latents, None, config=SampleConfig())
    expected = np.clip(path.numpy() * 127.5 + 128, 0, 255).astype(np.uint8)
    images = _generate(_GaussianDenoiser(), range(5))
    assert images.dtype == np.uint8
    assert np.array_equal(images, expected)


@pytest.mark.parametrize("churn", [0.0, 5.0])
def test_image_is_the_same_whatever_the_batch(network, churn):
    def images(seeds, batch_size):
        config = SampleConfig(num_steps=6, s_churn=churn, batch_size=batch_size)
        return _generate(network, seeds, config, counts=np.arange(10)).astype(int)

    together = images(range(12), 12)
    # Matrix products of other sizes round differently, and truncation turns that into one gray level at most.
    assert np.abs(images(range(12), 5) - together).max() <= 1
    assert np.abs(images([7, 2], 1) - together[[7, 2]]).max() <= 1
    assert len(np.unique(together)) > 50


def test_batches_come_in_order_with_a_short_last_one(network):
    batches = sample(
        network, range(7), config=SampleConfig(num_steps=2, batch_size=3), image_size=8, classes=0, device="cpu"
    )
    assert [len(batch) for batch in batches] == [3, 3, 1]


def test_latent_of_a_seed_does_not_depend_on_the_conditions():
    seeds = [3, 1, 4, 1_000_000_007]
    latents, none = draw_latents_and_conditions(seeds, 8, None)
    assert none is None
    assert latents.dtype == torch.float32
    for counts in (np.array([5]), np.arange(1, 101)):
        assert torch.equal(draw_latents_and_conditions(seeds, 8, counts)[0], latents)
    by_hand = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(4))
    assert torch.equal(latents[2], by_hand)


def test_conditions_follow_the_counts():
    counts = np.array([0, 600, 0, 300, 100, 0])
    _, classes = draw_latents_and_conditions(range(4000), 2, counts)
    assert classes.dtype == torch.int64
    shares = np.bincount(classes.numpy(), minlength=6) / 4000
    assert shares[[0, 2, 5]].tolist() == [0, 0, 0]
    assert shares == pytest.approx(counts / 1000, abs=0.03)


def test_drawn_conditions_reach_the_denoiser():
    counts = np.array([0, 0, 0, 3, 0, 0, 0, 0, 9, 0])
    _, classes = draw_latents_and_conditions(range(20), 8, counts)
    drawn = _generate(_GaussianDenoiser(10), range(20), counts=counts)
    assert np.array_equal(drawn, _generate(_GaussianDenoiser(10), range(20), classes=classes.tolist()))
    assert set(classes.tolist()) == {3, 8}


def test_one_class_may_stand_for_all():
    one = _generate(_GaussianDenoiser(10), range(3), classes=4)
    assert np.array_equal(one, _generate(_GaussianDenoiser(10), range(3), classes=[4, 4, 4]))


def test_sampling_leaves_the_callers_modes_and_generators_alone(network):
    before = torch.random.get_rng_state()
    batches = sample(
        network, range(2), config=SampleConfig(num_steps=2, batch_size=1), image_size=8, classes=1, device="cpu"
    )
    next(batches)
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    list(batches)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("num_classes", "keywords", "message"),
    [
        (10, {}, "either counts or classes must be given for 10 classes, got 0 of them"),
        (10, {"classes": 1, "counts": np.ones(10)}, "got 2 of them"),
        (0, {"classes": 1}, "neither counts nor classes may be given for 0 classes"),
        (10, {"counts": np.ones(9)}, r"counts must be \[10\]"),
        (10, {"counts": np.zeros(10)}, "not all 0"),
        (10, {"classes": [1, 2]}, r"classes must be one integer or 3 of them, got shape \[2\]"),
        (10, {"classes": 10}, r"classes must lie in \[-1, 9\], got 10 to 10"),
        (10, {"classes": -2}, r"classes must lie in \[-1, 9\], got -2 to -2"),
        (0, {"bank": np.ones((2, 3), np.float32)}, "exactly for a network of features, got a bank for width 0"),
    ],
)
def test_conditions_that_do_not_fit_are_refused(num_classes, keywords, message):
    with pytest.raises(ValueError, match=message):
        _generate(_GaussianDenoiser(num_classes), range(3), **keywords)


def test_training_mode_and_impossible_seeds_are_refused():
    with pytest.raises(ValueError, match="denoiser must be in eval mode"):
        _generate(_GaussianDenoiser().train(), [0])
    with pytest.raises(ValueError, match=r"seeds must lie in \[0, 2\^32\), got -1"):
        _generate(_GaussianDenoiser(), [0, -1])


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_holds_the_activations_while_it_samples_and_rounds_little(network, precision):
    held = []
    hook = network.net.encoder[0].register_forward_hook(lambda module, arguments, result: held.append(result.dtype))
    about = {"counts": np.ones(10, dtype=np.int64), "config": SampleConfig(num_steps=4, precision=precision)}
    rounded = _generate(network, range(6), **about).astype(int)
    hook.remove()
    assert set(held) == {getattr(torch, precision)}
    assert network.net.compute_dtype is None
    about["config"] = SampleConfig(num_steps=4)
    difference = np.abs(rounded - _generate(network, range(6), **about))
    # Of 256 gray levels, by a network of random weights, which amplifies more than a trained one.
    assert 0 < difference.mean() < (3 if precision == "bfloat16" else 0.4)


def test_a_batch_that_overflows_half_precision_is_computed_again(network):
    loud = copy.deepcopy(network)
    with torch.no_grad():
        # Within float32, and past 65,504, the largest number of float16.
        loud.net.conv_in.bias.fill_(1e5)
        loud.net.norm_out.weight.fill_(1e-3)
    about = {"counts": np.ones(10, dtype=np.int64)}
    expected = _generate(loud, range(5), config=SampleConfig(num_steps=3, s_churn=2, batch_size=3), **about)
    half = SampleConfig(num_steps=3, s_churn=2, batch_size=3, precision="float16")
    np.testing.assert_array_equal(_generate(loud, range(5), config=half, **about), expected)


def test_a_compiled_network_samples_the_same_and_is_left_as_it_was(monkeypatch, network):
    monkeypatch.setattr(compilation, "BACKEND", "eager")
    tried = []
    monkeypatch.setattr(sampling, "try_forward", lambda *given: tried.append(given) or compilation.try_forward(*given))
    about = {"counts": np.ones(10, dtype=np.int64)}
    expected = _generate(network, range(6), config=SampleConfig(num_steps=3, batch_size=4), **about)
    got = _generate(network, range(6), config=SampleConfig(num_steps=3, batch_size=4, compile=True), **about)
    assert len(tried) == 1
    np.testing.assert_array_equal(got, expected)
    assert all(part._compiled_call_impl is None for part in network.net.compilable())


def test_sampling_goes_on_where_compiling_fails(monkeypatch, network):
    monkeypatch.setattr(compilation, "BACKEND", "none of this name")
    about = {"counts": np.ones(10, dtype=np.int64)}
    expected = _generate(network, range(3), config=SampleConfig(num_steps=3), **about)
    got = _generate(network, range(3), config=SampleConfig(num_steps=3, compile=True), **about)
    np.testing.assert_array_equal(got, expected)
