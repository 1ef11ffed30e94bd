"""What differs between trials that are proposed, by hand and against each of them counted alone."""

from statistics import fmean

import pytest

from cedm_ray.diffusion.sample import SampleConfig
from cedm_ray.diffusion.unet import UNetConfig
from cedm_ray.errors import ConfigurationError
from cedm_ray.search import variants
from cedm_ray.search.budget import plan_search
from cedm_ray.search.plan import plan_trial
from cedm_ray.search.rates import Rate
from cedm_ray.search.settings import frozen, why_not
from cedm_ray.search.space import SearchSpace
from cedm_ray.search.variants import COSTLY, plan_variants

# Of every setting of the network and the sampler another value than the default, or than the tiny space's.
OTHER = {
    "network.model_channels": 32,
    "network.channel_mult": (1, 2),
    "network.num_blocks": 2,
    "network.attention_resolutions": (8,),
    "network.dropout": 0.2,
    "network.label_dropout": 0.2,
    "sampling.num_steps": 6,
    "sampling.sigma_min": 0.01,
    "sampling.sigma_max": 40.0,
    "sampling.rho": 5.0,
    "sampling.s_churn": 1.0,
    "sampling.s_min": 0.1,
    "sampling.s_max": 10.0,
    "sampling.s_noise": 1.1,
    "sampling.guidance": 0.5,
    "sampling.precision": "float32",
}


def space_with(tiny_space, also, **more):
    plain = tiny_space.model_dump(mode="json")
    sections = {
        "candidates": {"explicit": [2, 3], "also": also},
        "rungs": {"rungs_kimg": [1, 4], "reduction_factor": 2, "grace_kimg": 9},
        "evaluation": {"detector": "./net.pt", "num_samples": 100},
        "network": {**plain["network"], "label_dropout": 0.1},
    }
    return SearchSpace.model_validate({**plain, **sections, **more})


def sums(space):
    plan = plan_trial(space, 8)
    return plan.training_flops + plan.evaluation_flops


def test_all_settings_that_cost_something_are_known_and_no_other(tiny_space):
    space = space_with(tiny_space, {})
    plain = space.model_dump()
    fields = [f"network.{name}" for name in UNetConfig.model_fields]
    fields += [f"sampling.{name}" for name in SampleConfig.model_fields]
    assert {path for path in fields if why_not(path, plain) is None} == set(OTHER)
    own = sums(space)
    assert {path for path, value in OTHER.items() if sums(space.changed(((path, value),))) != own} == set(COSTLY)


def test_one_cost_where_nothing_that_costs_is_searched(tiny_space):
    found = plan_variants(space_with(tiny_space, {"training.learning_rate": [1e-3, 2e-3]}), 8)
    assert (found.searched, len(found.likely), found.complete) == ((), 1, True)


def test_every_combination_is_counted_as_if_it_were_alone(tiny_space):
    also = {"network.channel_mult": [[1], [1, 2]], "sampling.guidance": [0, 1], "edm.p_std": [1, 1.2]}
    space = space_with(tiny_space, also)
    found = plan_variants(space, 8)
    alone = [
        sums(space.changed(frozen({"network.channel_mult": mult, "sampling.guidance": guidance})))
        for mult in ((1,), (1, 2))
        for guidance in (0, 1)
    ]
    assert found.searched == ("network.channel_mult", "sampling.guidance")
    for some in (found.likely, found.extremes):
        assert [one.plan.training_flops + one.plan.evaluation_flops for one in some] == alone
    assert found.likely[0].parameters == found.likely[1].parameters < found.likely[2].parameters


def test_of_a_range_the_middles_of_fifths_and_the_ends_are_counted(tiny_space):
    """Numbers from 4 to 8: 4.4, 5.2, 6, 6.8 and 7.6, each rounded."""
    also = {"sampling.num_steps": {"low": 4, "high": 8}}
    drawn = {"explicit": [2, 3], "also": also, "proposals": "random", "num_trials": 4}
    found = plan_variants(space_with(tiny_space, {}, candidates=drawn), 8)
    assert [one.plan.rungs[0].num_steps for one in found.likely] == [4, 5, 6, 7, 8]
    assert [one.plan.rungs[0].num_steps for one in found.extremes] == [4, 8]


def test_where_guidance_needs_a_setting_that_is_searched_too_it_has_it(tiny_space):
    plain = tiny_space.model_dump(mode="json")
    also = {"network.label_dropout": [0.1, 0.2], "sampling.guidance": [0, 1]}
    found = plan_variants(space_with(tiny_space, also, network={**plain["network"], "label_dropout": 0}), 8)
    # 100 samples of 7 and of 14 calls at two rungs, beside 4,000 images of 3.
    costs = [(one.plan.training_flops + one.plan.evaluation_flops) / one.plan.forward_flops for one in found.likely]
    assert costs == [12_000 + 1_400, 12_000 + 2_800]


def test_of_too_many_combinations_some_are_drawn_and_that_is_told(tiny_space, monkeypatch):
    monkeypatch.setattr(variants, "MOST", 3)
    found = plan_variants(space_with(tiny_space, {"sampling.num_steps": [4, 5, 6, 7]}), 8)
    assert (len(found.likely), found.complete) == (3, False)


def test_a_network_that_does_not_fit_the_images_is_refused(tiny_space):
    with pytest.raises(ConfigurationError, match="image_size"):
        plan_variants(space_with(tiny_space, {"network.channel_mult": [[1], [1, 1, 1, 1, 1]]}), 8)


def test_hours_are_those_of_the_trials_that_are_proposed(tiny_space):
    """Nobody is stopped: the baseline by itself, and four trials with 7 or 15 calls for each of 2 x 100 samples."""
    space = space_with(tiny_space, {"sampling.num_steps": [4, 8]})
    found = plan_search(
        space,
        plan_trial(space, 8),
        slots=1,
        gpus_each=1.0,
        rate=Rate(images_per_s=10, source="x"),
        parameters=10,
        variants=plan_variants(space, 8),
    )
    own, dear = 4000 + 1400 / 3, 4000 + 3000 / 3
    assert found.costly == ("sampling.num_steps",)
    cost = found.relative_cost
    assert (cost.low, cost.mean, cost.high) == pytest.approx((1, fmean([own, dear]) / own, dear / own))
    low, high = own + 4 * own, own + 4 * dear
    spread = found.trial_h.times(36_000)
    assert (low, high) == pytest.approx((spread.low, spread.high))
    assert spread.mean == pytest.approx((low + high) / 2, rel=0.01)
    assert found.wall_h.mean == pytest.approx(found.trial_h.mean)


def test_storage_is_that_of_the_largest_network(tiny_space):
    space = space_with(tiny_space, {"network.model_channels": [16, 32]})
    found = plan_variants(space, 8)
    small, large = (one.parameters for one in found.likely)
    told = plan_search(space, plan_trial(space, 8), slots=1, gpus_each=0, rate=None, parameters=small, variants=found)
    # Two checkpoints each of the baseline and of four trials, four numbers of four bytes for each parameter.
    assert told.storage_bytes == 2 * 16 * (small + 4 * large)
