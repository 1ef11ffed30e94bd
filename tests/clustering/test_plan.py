"""What a step computes at once, and what a fit will take."""

import pytest
import torch

from cedm_ray.clustering.plan import WorkPlan, assignment_rows, peak_bytes, plan_work
from cedm_ray.clustering.recipe import TemiConfig
from cedm_ray.clustering.training import new_training

GIB = 2**30


@pytest.mark.parametrize("update", [{}, {"head_group": 3}, {"head_group": 1, "memory_budget_gib": 0.0017}])
def test_the_work_tensors_are_as_large_as_planned(update):
    config = TemiConfig(num_heads=7, hidden=32, bottleneck=16, **update)
    training = new_training(24, 500, config, batch=64, seed=0, device="cpu")
    tensors = [training._kept]
    if training._teacher_weight is not None:
        tensors.append(training._teacher_weight)
    for value in vars(training._buffers).values():
        tensors += value if isinstance(value, list) else value.values() if isinstance(value, dict) else [value]
    taken = sum(tensor.numel() * tensor.element_size() for tensor in tensors) + 2 * 128 * 24 * 4
    # What is not counted is one column for each row and cluster.
    assert 0.97 * taken < training.plan.work_bytes <= taken
    assert training.plan.keep_logits == ("memory_budget_gib" not in update)


def test_ten_thousand_clusters_fit_their_budget():
    for budget in (2.5, 1, 0.5, 0.25):
        plan = plan_work(512, 768, 10_000, TemiConfig(memory_budget_gib=budget), device_type="cuda")
        assert plan.work_bytes <= budget * GIB
    assert plan == WorkPlan(head_group=1, tile_rows=1024, keep_logits=False, work_bytes=plan.work_bytes)
    with pytest.raises(ValueError, match=r"memory_budget_gib must be at least 0\.\d+ for C = 10000, got 0\.01"):
        plan_work(512, 768, 10_000, TemiConfig(memory_budget_gib=0.01), device_type="cuda")


@pytest.mark.parametrize("num_clusters", [50, 500])
def test_the_smallest_budget_that_is_named_is_enough(num_clusters):
    with pytest.raises(ValueError, match="at least") as caught:
        plan_work(16, 8, num_clusters, TemiConfig(memory_budget_gib=1e-9), device_type="cpu")
    smallest = float(str(caught.value).split("at least ")[1].split()[0])
    plan = plan_work(16, 8, num_clusters, TemiConfig(memory_budget_gib=smallest), device_type="cpu")
    # Fewer clusters than bottleneck dimensions: the logits are the smaller thing to keep.
    assert (plan.head_group, plan.keep_logits) == (1, num_clusters == 50)


def test_the_group_of_a_cpu_follows_the_width_and_that_of_a_gpu_is_everything():
    groups = [plan_work(512, 768, c, TemiConfig(), device_type="cpu").head_group for c in (100, 400, 1600, 10_000)]
    assert groups == sorted(groups, reverse=True)
    assert groups[-1] == 1
    small = TemiConfig(hidden=64, bottleneck=32)
    assert plan_work(128, 64, 20, small, device_type="cpu").head_group > groups[0]
    assert plan_work(512, 768, 10_000, TemiConfig(), device_type="cuda").head_group == 50
    assert plan_work(512, 768, 10_000, TemiConfig(head_group=7), device_type="cuda").head_group == 7


def test_the_peak_has_features_parameters_and_optimizer_in_it():
    config = TemiConfig()
    parameters = 50 * (768 * 512 + 512 + 512 * 256 + 256 + 257 * 400)
    assert parameters == pytest.approx(31.39e6, rel=1e-3)  # The figure of the paper's shape.
    peak = peak_bytes(50_000, 768, 400, config, device_type="cuda")
    plan = plan_work(512, 768, 400, config, device_type="cuda")
    at_least = 50_000 * 768 * 4 + 16 * parameters + plan.work_bytes
    assert at_least < peak < 1.15 * at_least
    assert peak_bytes(50_000, 768, 400, config, device_type="cpu") < peak
    assert peak_bytes(50_000, 768, 800, config, device_type="cuda") > peak


def test_an_assignment_tile_shrinks_where_there_are_many_clusters():
    assert assignment_rows(2) == assignment_rows(100) == 4096
    assert assignment_rows(10_000) == 838
    assert assignment_rows(2**30) == 1


def test_the_plan_is_for_the_rows_of_the_training():
    training = new_training(4, 3, TemiConfig(num_heads=2, hidden=4, bottleneck=2), batch=5, seed=0, device="cpu")
    assert training.step(torch.ones(10, 4), 0.0).shape == (2,)
