"""The cost of a search, by hand for few trials and against every order of more."""

import itertools
import math

import numpy as np
import pytest

from cedm_ray.search.budget import GAMES, _play, plan_search
from cedm_ray.search.plan import plan_trial
from cedm_ray.search.rates import Rate
from cedm_ray.search.space import SearchSpace


def space_with(tiny_space, count=1, rungs=(1, 4), factor=2.0, **more):
    plain = tiny_space.model_dump(mode="json")
    return SearchSpace.model_validate(
        {
            **plain,
            "candidates": {"count": count},
            "rungs": {"rungs_kimg": rungs, "reduction_factor": factor},
            "evaluation": {"detector": "./net.pt", "num_samples": 100},
            **more,
        }
    )


class Loaded:
    """Dice that fall as they are told."""

    def __init__(self, order):
        self.order = order

    def shuffle(self, quality):
        quality[:] = self.order


def budget_of(space, slots=1, gpus_each=1.0, rate=None, parameters=1000):
    return plan_search(space, plan_trial(space, 8), slots=slots, gpus_each=gpus_each, rate=rate, parameters=parameters)


def test_one_candidate_by_hand(tiny_space):
    """4,000 images each; 2 x 100 samples of 7 passes are as much work as 1,400 / 3 training images."""
    space = space_with(tiny_space)
    one = budget_of(space, slots=1, rate=Rate(images_per_s=10, source="x"))
    assert (one.candidates, one.baseline_images, one.exhaustive_images) == (1, 4000, 4000)
    assert one.images.low == one.images.high == 4000
    assert one.saving.mean == 1
    each_h = (4000 + 2 * 700 / 3) / 10 / 3600
    assert one.trial_h.mean == pytest.approx(2 * each_h)
    assert one.wall_h.mean == pytest.approx(2 * each_h)
    both = budget_of(space, slots=2, rate=Rate(images_per_s=10, source="x"))
    assert both.wall_h.mean == pytest.approx(each_h)
    assert both.trial_h.mean == pytest.approx(2 * each_h)
    # Twice the GPUs for each trial: half the time, as many GPU-hours.
    wide = budget_of(space, slots=2, gpus_each=2.0, rate=Rate(images_per_s=10, source="x"))
    assert wide.wall_h.mean == pytest.approx(each_h / 2)
    assert wide.gpu_h.mean == pytest.approx(2 * each_h)
    # On CPUs there are no GPU-hours.
    cores = budget_of(space, gpus_each=0.0, rate=Rate(images_per_s=10, source="x"))
    assert (cores.gpu_h, cores.trial_h.mean) == (None, pytest.approx(2 * each_h))


def test_without_a_rate_there_are_images_and_no_hours(tiny_space):
    found = budget_of(space_with(tiny_space))
    assert (found.trial_h, found.gpu_h, found.wall_h) == (None, None, None)


def test_survivors_are_those_of_the_rule_in_every_order(tiny_space):
    """The cutoff by NumPy, one trial after the other, for all orders of four trials."""
    space = space_with(tiny_space, count=4, rungs=(1, 2), factor=2.0)
    trial = plan_trial(space, 8)
    for order in itertools.permutations([1, 2, 3, 4]):
        seen, gone_on = [], 0
        for quality in order:
            gone_on += not seen or quality <= np.percentile(seen, 50)
            seen.append(quality)
        game = _play(space, trial, 4, 1, Loaded(order))
        assert game.passed[0] == gone_on
        assert game.images == 4 * 1000 + gone_on * 1000
        assert math.isclose(game.work, game.makespan)


def test_two_trials_go_on_in_one_order_and_one_in_the_other(tiny_space):
    space = space_with(tiny_space, count=2)
    trial = plan_trial(space, 8)
    assert [_play(space, trial, 2, 1, Loaded(order)).images for order in ([1, 2], [2, 1])] == [5000, 8000]
    found = budget_of(space)
    assert (found.images.low, found.images.high) == (5000, 8000)
    # A fair coin, thrown GAMES times.
    assert found.survivors[0].mean == pytest.approx(1.5, abs=3 * 0.5 / math.sqrt(GAMES))


def test_a_free_place_is_taken_by_the_next(tiny_space):
    """Three places: the baseline keeps one; 2, 1 and 3 come to the rung; 3 is stopped and 1 has gone on."""
    space = space_with(tiny_space, count=3, rungs=(1, 2))
    trial = plan_trial(space, 8)
    rung = 1000 * (1 + trial.rungs[0].share)
    game = _play(space, trial, 3, 3, Loaded([2, 1, 3]))
    assert game.makespan == pytest.approx(3 * rung)
    assert game.work == pytest.approx((2 + 2 + 2 + 1) * rung)


@pytest.mark.parametrize(("name", "grid"), [("cifar10", 17), ("cifar100", 11), ("ffhq64", 22)])
def test_the_papers_grid_is_that_of_its_release(tiny_space, name, grid):
    """performance.md 5.1 and 5.3."""
    found = budget_of(space_with(tiny_space, name=name))
    assert found.exhaustive_images == grid * 4000
    assert str(grid) in found.exhaustive


def test_storage_is_what_is_kept_of_every_trial(tiny_space):
    """The network, its average and Adam's two moments in float32, twice for each of three trials."""
    found = budget_of(space_with(tiny_space, count=2), parameters=1000)
    assert found.checkpoint_bytes == 16_000
    assert found.storage_bytes == 2 * 3 * 16_000


def test_a_checkpoint_is_as_large_as_was_counted(done):
    """Of a real one; some kilobytes of names and counters come to it."""
    import torch

    from cedm_ray.diffusion.unet import UNet

    space = SearchSpace.from_settled(done.settled())
    with torch.device("meta"):
        parameters = sum(p.numel() for p in UNet(space.network, 8, 0, 0).parameters())
    folder = max(done.checkpoints("unconditional").glob("0*"))
    size = sum(path.stat().st_size for path in folder.iterdir())
    counted = budget_of(space_with(tiny_space=space), parameters=parameters).checkpoint_bytes
    assert counted <= size <= 1.1 * counted + 30_000


def test_a_cluster_without_room_for_a_trial_is_refused(tiny_space):
    with pytest.raises(ValueError, match="slots must be at least 1"):
        budget_of(space_with(tiny_space), slots=0)
