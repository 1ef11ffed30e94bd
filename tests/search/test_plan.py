"""Costs against figures that were counted elsewhere, and the promise of the shipped search spaces."""

from pathlib import Path

import pytest

from cedm_ray.config import read_config
from cedm_ray.errors import ConfigurationError
from cedm_ray.search.plan import denoiser_flops, detector_flops, network_calls, plan_trial
from cedm_ray.search.space import SearchSpace

SPACES = sorted((Path(__file__).parents[2] / "search_spaces").glob("*.yaml"))
# Sides of the images of spaces that leave them as they are.
OWN_SIDES = {"digits": 8}


def space_with(tiny_space, **changes):
    return SearchSpace.model_validate({**tiny_space.model_dump(mode="json"), **changes})


@pytest.mark.parametrize("path", SPACES, ids=lambda path: path.stem)
def test_evaluation_costs_at_most_a_twentieth_of_the_training_in_every_shipped_space(path):
    space = read_config(SearchSpace, path)
    plan = plan_trial(space, space.images.size or OWN_SIDES[path.stem])
    assert all(rung.detector_flops is not None for rung in plan.rungs)
    assert max(rung.share for rung in plan.rungs) <= 0.05


def test_denoiser_is_counted_as_edms_network_for_cifar10(tiny_space):
    """42.38 GFLOP a forward pass, counted on EDM's own network by another tool (performance.md 2.1)."""
    space = space_with(tiny_space, network={})
    assert denoiser_flops(space, 32) == pytest.approx(42.38e9, rel=0.01)


@pytest.mark.parametrize(("detector", "flops"), [("inception", 11.42e9), ("dinov2", 162e9)])
def test_detectors_are_counted_as_elsewhere(tiny_space, detector, flops):
    """performance.md 3.2."""
    space = space_with(tiny_space, evaluation={"detector": detector})
    assert detector_flops(space, 32) == pytest.approx(flops, rel=0.01)


def test_pixels_are_one_matrix_product(tiny_space):
    # 3 x 8 x 8 values on 16 components, a multiply-add counted twice.
    assert detector_flops(tiny_space, 8) == 2 * 192 * 16
    # Larger images are averaged down to 32 pixels first.
    assert detector_flops(tiny_space, 64) == 2 * 3072 * 16


def test_a_file_is_not_counted_and_adds_nothing(tiny_space):
    space = space_with(tiny_space, evaluation={"detector": "./net.pt", "num_samples": 30})
    assert detector_flops(space, 8) is None
    (first, _) = plan_trial(space, 8).rungs
    assert first.evaluation_flops == first.sampling_flops


def test_shares_are_worked_by_hand(tiny_space):
    """256 images a rung, 3 passes each; 32 samples of 4 steps, 7 passes each."""
    space = space_with(tiny_space, evaluation={"detector": "./net.pt", "num_samples": 32})
    assert [rung.share for rung in plan_trial(space, 8).rungs] == pytest.approx([32 * 7 / (256 * 3)] * 2)
    shorter = space_with(tiny_space, evaluation={"detector": "./net.pt", "num_samples": 32, "num_steps": 2})
    assert [rung.share for rung in plan_trial(shorter, 8).rungs] == pytest.approx([32 * 3 / (256 * 3)] * 2)
    assert network_calls(shorter.rung_sampling) == 3
    assert shorter.sampling.num_steps == 4


def test_guidance_doubles_the_passes_of_sampling(tiny_space):
    network = tiny_space.network.model_dump(mode="json") | {"label_dropout": 0.1}
    sampling = tiny_space.sampling.model_dump(mode="json") | {"guidance": 1.0}
    plain, guided = (
        plan_trial(space_with(tiny_space, network=network, **more), 8).rungs[0] for more in ({}, {"sampling": sampling})
    )
    assert guided.sampling_flops == 2 * plain.sampling_flops
    assert guided.training_flops == plain.training_flops


def test_a_file_beside_the_space_is_a_file_and_not_the_timm_model_of_that_name(tiny_space):
    assert detector_flops(space_with(tiny_space, evaluation={"detector": "resnet18"}), 32) > 0
    assert detector_flops(space_with(tiny_space, evaluation={"detector": "resnet18.pt"}), 32) is None


def test_a_size_that_the_network_cannot_halve_is_a_configuration_error(tiny_space):
    space = space_with(tiny_space, network={"channel_mult": [1, 1, 1]})
    with pytest.raises(ConfigurationError, match="multiple of 4") as error:
        plan_trial(space, 6)
    assert "images.size" in error.value.mend
