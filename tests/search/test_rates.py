"""Speeds: the table's own figures, what follows from them by hand, and nothing where nothing is known."""

import dataclasses

import pytest

from cedm_ray.errors import ConfigurationError
from cedm_ray.search.rates import PUBLISHED_RATES, known_gpu, measured_rate, parse_gpus, rate_of
from cedm_ray.search.results import TrialReport

CIFAR, FFHQ = 42.3e9, 83.2e9
REPORT = TrialReport(
    trial="c00002",
    rung=0,
    images_seen=1000,
    distance=1.0,
    num_samples=8,
    loss=None,
    train_s=10.0,
    evaluate_s=5.0,
    skipped_steps=0,
    collapsed=False,
    trained_images=1000,
    gpus=1.0,
)


@pytest.mark.parametrize(
    ("text", "found"),
    [("8xA100", (8, "A100")), ("A100", (1, "A100")), ("16 x H200", (16, "H200")), ("2XV100", (2, "V100"))],
)
def test_gpus_are_a_number_and_a_name(text, found):
    assert parse_gpus(text) == found


@pytest.mark.parametrize("text", ["", "8", "0xA100", "8x", "-1xA100", "A100x8;rm"])
def test_what_names_no_gpus_is_refused(text):
    with pytest.raises(ConfigurationError, match="8xA100"):
        parse_gpus(text)


def test_a_driver_calls_a_gpu_by_a_longer_name():
    assert known_gpu("NVIDIA A100-SXM4-80GB") == "A100"
    assert known_gpu("Tesla V100-SXM2-32GB") == "V100"
    assert known_gpu("NVIDIA GeForce RTX 4090") is None


@pytest.mark.parametrize(
    ("gpu", "flops", "images_per_s"), [("A100", CIFAR, 579), ("A100", FFHQ, 289), ("V100", FFHQ, 72)]
)
def test_the_very_network_on_the_very_gpu_is_the_published_figure(gpu, flops, images_per_s):
    """performance.md 2.4."""
    rate = rate_of(gpu, flops)
    assert rate.images_per_s == images_per_s
    assert "estimate" not in rate.source


def test_published_figures_are_the_days_that_were_published():
    """200 million images in so many days of so many GPUs."""
    by_days = [rate for rate in PUBLISHED_RATES if "days of" in rate.source or "day of" in rate.source]
    for rate, (days, gpus) in zip(by_days, [(1, 4), (2, 4), (2, 8), (4, 8)], strict=True):
        assert rate.images_per_s == pytest.approx(200e6 / (days * 86400 * gpus), rel=0.01)


def test_another_network_is_an_estimate_by_operations():
    rate = rate_of("A100", 4 * FFHQ)
    assert rate.images_per_s == pytest.approx(289 / 4)
    assert "estimate" in rate.source


def test_another_gpu_is_an_estimate_by_its_peak():
    """performance.md 2.4 has 23.6 % of an A100's peak for CIFAR-10, and 1,864 images/s of an H200 at 30 %."""
    rate = rate_of("NVIDIA H100 80GB HBM3", CIFAR)
    assert rate.images_per_s == pytest.approx(1864 * 23.6 / 30, rel=0.01)
    assert "23.6%" in rate.source
    assert "estimate" in rate.source


def test_nothing_is_said_of_unknown_gpus_and_of_networks_too_small():
    assert rate_of("RTX 9090", CIFAR) is None
    assert rate_of("A100", 9.4e6) is None


def test_measured_speed_is_for_each_gpu_that_was_held():
    half = dataclasses.replace(REPORT, gpus=0.5, train_s=20.0)
    rate = measured_rate([REPORT, half])
    # 2,000 images in 10 GPU-seconds and another 10.
    assert rate.images_per_s == pytest.approx(100)
    assert "GPU" in rate.source
    cpu = dataclasses.replace(REPORT, gpus=0.0, train_s=50.0)
    assert measured_rate([cpu]).images_per_s == pytest.approx(20)
    assert measured_rate([cpu, REPORT]).images_per_s == pytest.approx(100)


@pytest.mark.parametrize("changes", [{"gpus": None}, {"trained_images": None}, {"trained_images": 0}, {"train_s": 0.0}])
def test_reports_that_do_not_say_are_left_out(changes):
    assert measured_rate([dataclasses.replace(REPORT, **changes)]) is None
