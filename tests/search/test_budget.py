"""The cost of a search, by hand for few trials and against every order of more."""

import itertools
import math

import numpy as np
import pytest

from cedm_ray.evaluation import requests
from cedm_ray.search import budget
from cedm_ray.search.budget import GAMES, _play, _waves, plan_search
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


def halving(tiny_space, count, rungs, **more):
    space = space_with(tiny_space, count=count, rungs=rungs, **more)
    return space.model_copy(update={"rungs": space.rungs.model_copy(update={"rule": "halving"})})


def test_under_halving_five_two_and_one_go_on_in_every_order(tiny_space):
    """5 x 20 + 2 x 30 + 1 x 50 = 210, whoever comes first and on however many places."""
    space = halving(tiny_space, 5, (20, 50, 100))
    trial = plan_trial(space, 8)
    for order in itertools.permutations([1, 2, 3, 4, 5]):
        for slots in (1, 3, 8):
            game = _play(space, trial, 5, slots, Loaded(order))
            assert (game.images, game.passed) == (210_000, (2, 1, 0))
    found = budget_of(space, slots=8)
    assert found.images.low == found.images.high == 210_000
    assert found.baseline_images == 100_000


def test_who_waits_leaves_its_place(tiny_space):
    """Two places, three C of which one goes on. The baseline keeps one place for both rungs. On the other 1, 2 and 3
    come to the first rung, two of them after the baseline has freed its own, and 1 goes on when 3 has come."""
    space = halving(tiny_space, 3, (1, 2))
    trial = plan_trial(space, 8)
    rung = 1000 * (1 + trial.rungs[0].share)
    game = _play(space, trial, 3, 2, Loaded([1, 2, 3]))
    assert game.passed == (1, 0)
    assert game.makespan == pytest.approx(4 * rung)
    assert game.work == pytest.approx((2 + 3 + 1) * rung)


def test_who_is_decided_goes_on_before_who_has_not_begun(tiny_space):
    """Five C of which two go on, two places, a last rung that is long. When four have come 1 is certain, and takes the
    place that 5 waits for; so 5 begins when the baseline is done, and 2 goes on when 5 has come."""
    space = halving(tiny_space, 5, (1, 10))
    trial = plan_trial(space, 8)
    first, last = (rung.images * (1 + rung.share) for rung in trial.rungs)
    game = _play(space, trial, 5, 2, Loaded([1, 2, 3, 4, 5]))
    assert game.makespan == pytest.approx((first + last) + first + last)


def test_what_follows_the_search_is_counted_by_itself(tiny_space):
    """By hand, one place: two finalists once more over 4,000 images, the winner from 4,000 to 10,000, and its
    measurement on 3 x 50 images of 7 passes each as 1,050 / 3 training images."""
    space = halving(tiny_space, 4, (1, 4))
    more = {
        "finals": {"finalists": 2, "seeds": 2, "budget_kimg": 10, "evaluate": True},
        "evaluation": {"detector": "./net.pt", "num_samples": 100, "final_samples": 50},
    }
    after = SearchSpace.model_validate({**space.model_dump(mode="json"), **more})
    rate = Rate(images_per_s=10, source="x")
    plain, found = budget_of(space, rate=rate), budget_of(after, rate=rate)
    assert (plain.seed_images.high, plain.stretch_images, plain.measured_images, plain.final_h.high) == (0, 0, 0, 0)
    assert found.images == plain.images
    assert (found.seed_images.low, found.seed_images.high, found.stretch_images) == (8000, 8000, 6000)
    assert found.measured_images == 150
    # Seeds are measured at two rungs each, the last stretch at its end.
    work = 8000 + 6000 + (2 * 2 + 1) * 700 / 3 + 1050 / 3
    assert found.final_h.mean == pytest.approx(work / 10 / 3600)
    assert found.trial_h.mean == pytest.approx(plain.trial_h.mean + found.final_h.mean)
    assert found.wall_h.mean == pytest.approx(found.trial_h.mean)
    # Of the baseline, four C and two further seeds.
    assert found.storage_bytes == 2 * 7 * found.checkpoint_bytes
    # With two places the seeds run side by side, and the measurement takes both.
    both = budget_of(after, slots=2, rate=rate)
    apart = budget_of(space, slots=2, rate=rate)
    side = 4000 + 2 * 700 / 3 + 6000 + 700 / 3 + 1050 / 3 / 2
    assert both.wall_h.mean == pytest.approx(apart.wall_h.mean + side / 10 / 3600, rel=0.02)


@pytest.mark.parametrize(("count", "refine", "refined"), [(1, 3, 0), (2, 1, 1), (2, 2, 3), (5, 2, 4)])
def test_a_refinement_trains_at_most_one_c_on_each_side_of_the_best(tiny_space, count, refine, refined):
    plain = space_with(tiny_space, count=count).model_dump(mode="json")
    plain["candidates"]["refine"] = refine
    space = SearchSpace.model_validate(plain)
    found = budget_of(space)
    assert (found.candidates, found.refined) == (count, refined)
    assert found.storage_bytes == 2 * (1 + count + refined) * found.checkpoint_bytes


def test_a_refinement_begins_when_all_before_are_done_and_goes_on_as_the_best_of_all(tiny_space):
    plain = halving(tiny_space, 3, (1, 2)).model_dump(mode="json")
    plain["candidates"]["refine"] = 1
    space = SearchSpace.model_validate(plain)
    trial = plan_trial(space, 8)
    # One of the first three goes on; of the two that follow, one only where it is better than all before.
    better = _play(space, trial, 3, 8, Loaded([3, 4, 5, 1, 2]))
    worse = _play(space, trial, 3, 8, Loaded([1, 2, 3, 4, 5]))
    assert (better.images, worse.images) == (3000 + 1000 + 2000 + 1000, 3000 + 1000 + 2000)
    rung = 1000 * (1 + trial.rungs[0].share)
    assert (better.makespan, worse.makespan) == (pytest.approx(4 * rung), pytest.approx(3 * rung))


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


def test_the_sets_of_the_measurement_are_those_of_evaluate():
    """The search may not import the room that measures."""
    assert budget._SETS == requests.SETS


@pytest.mark.parametrize(("rule", "first"), [("asha", 9), ("halving", 4)])
def test_proposals_are_counted_as_trials(tiny_space, rule, first):
    also = {"training.learning_rate": {"low": 1e-4, "high": 1e-2}}
    candidates = {"count": 3, "also": also, "proposals": "tpe", "num_trials": 9, "ahead": 4}
    space = space_with(tiny_space, candidates=candidates)
    space = space.model_copy(update={"rungs": space.rungs.model_copy(update={"rule": rule})})
    assert _waves(space, 9) == [first, *[1] * (9 - first)]
    found = budget_of(space)
    assert (found.candidates, found.refined, found.exhaustive_images) == (9, 0, 9 * 4000)
    assert (found.searched, found.proposed) == (("training.learning_rate",), "tpe")
    # It would draw 13, until it knows how ten ended.
    assert (found.drawn, space.candidates.drawn) == (9, 13)
    # Each of them to the first rung, and more than half of them no further under halving.
    assert found.images.low >= 9 * 1000 + 3000
    lists = {"candidates": {"count": 3, "also": {"sampling.num_steps": [3, 4]}}}
    assert budget_of(space_with(tiny_space, **lists)).candidates == 6
    alone = budget_of(space_with(tiny_space))
    assert (alone.proposed, alone.drawn) == (None, 0)


def test_the_papers_grid_is_of_c_alone(tiny_space):
    also = {"candidates": {"count": 2, "also": {"clustering.gamma": [0.6, 0.8]}}, "name": "cifar10"}
    assert budget_of(space_with(tiny_space, **also)).exhaustive == "all 4 candidates to the last rung"
    assert "17 C" in budget_of(space_with(tiny_space, name="cifar10")).exhaustive
