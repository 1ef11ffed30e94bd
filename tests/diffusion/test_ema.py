"""The weight average against its published decays and its meaning: after a half-life a weight counts half."""

import pytest
import torch

from cedm_ray.diffusion.ema import ema_decay, update_ema


@pytest.mark.parametrize(
    ("batch_size", "images_seen", "expected"),
    [
        (512, 100_000, 0.9314821),
        (512, 1_000_000, 0.9929273),
        (512, 10_000_000, 0.99929047),
        (512, 50_000_000, 0.99929047),
        (1024, 100_000, 0.8676590),
        (1024, 1_000_000, 0.9859046),
        (1024, 10_000_000, 0.99858144),
    ],
)
def test_decay_is_the_published_one(batch_size, images_seen, expected):
    assert ema_decay(images_seen, batch_size, halflife_kimg=500, rampup_ratio=0.05) == pytest.approx(expected, abs=1e-7)


def test_first_step_copies_the_weights():
    assert ema_decay(0, 512, halflife_kimg=500, rampup_ratio=0.05) == 0


def test_without_ramp_the_half_life_holds_from_the_start():
    decay = ema_decay(0, 100, halflife_kimg=1, rampup_ratio=None)
    assert decay**10 == pytest.approx(0.5)


def test_half_life_zero_does_not_average():
    assert ema_decay(1_000_000, 100, halflife_kimg=0, rampup_ratio=None) == 0


@pytest.mark.parametrize("as_tensor", [False, True])
def test_update_moves_by_the_rate(as_tensor):
    average = [torch.tensor([0.0, 4.0]), torch.ones(2, 2)]
    weights = [torch.tensor([1.0, 0.0]), torch.ones(2, 2, requires_grad=True)]
    update_ema(average, weights, torch.tensor(0.25) if as_tensor else 0.25)
    torch.testing.assert_close(average[0], torch.tensor([0.25, 3.0]))
    torch.testing.assert_close(average[1], torch.ones(2, 2))


def test_rate_zero_leaves_the_average_exactly():
    average = [torch.randn(10, generator=torch.Generator().manual_seed(0))]
    before = average[0].clone()
    for rate in (0.0, torch.tensor(0.0)):
        update_ema(average, [torch.full((10,), 0.3)], rate)
        assert torch.equal(average[0], before)


def test_after_a_half_life_the_start_counts_half():
    average, weights = [torch.tensor([1.0])], [torch.tensor([0.0])]
    for images_seen in range(0, 50_000, 500):
        decay = ema_decay(images_seen, 500, halflife_kimg=50, rampup_ratio=None)
        update_ema(average, weights, 1 - decay)
    assert average[0].item() == pytest.approx(0.5, rel=1e-4)
