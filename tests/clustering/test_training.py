"""A step of TEMI: how it is cut into pieces changes nothing but rounding, and how few device operations it needs."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cedm_ray.clustering.fused import FusedTraining
from cedm_ray.clustering.plan import plan_work
from cedm_ray.clustering.recipe import TemiConfig
from cedm_ray.clustering.training import TemiTraining, new_training

SHAPE = {"in_features": 6, "num_clusters": 300}
CONFIG = TemiConfig(num_heads=5, hidden=16, bottleneck=8)


def train(config, steps=4, batch=20):
    """Losses of all steps [steps, H], and the training."""
    training = new_training(**SHAPE, config=config, batch=batch, seed=0, device="cpu")
    generator = torch.Generator().manual_seed(1)
    losses = [training.step(torch.randn(2 * batch, 6, generator=generator), 1e-2) for _ in range(steps)]
    return torch.stack(losses), training


@pytest.mark.parametrize("head_group", [1, 2, 3, 5])
def test_the_head_group_changes_nothing_beyond_rounding(head_group):
    expected, _ = train(CONFIG)
    losses, training = train(CONFIG.model_copy(update={"head_group": head_group}))
    assert training.plan.head_group == head_group
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-7)


def test_a_memory_budget_changes_nothing_beyond_rounding():
    whole = CONFIG.model_copy(update={"head_group": 5})
    expected, training = train(whole)
    plans = [training.plan]
    while plans[-1].tile_rows > 2:
        budget = (plans[-1].work_bytes - 1) / 2**30
        losses, training = train(whole.model_copy(update={"memory_budget_gib": budget}))
        plans.append(training.plan)
        assert plans[-1].work_bytes <= budget * 2**30
        torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-7)
    cuts = [(plan.keep_logits, plan.head_group, plan.tile_rows) for plan in plans]
    assert cuts[0] == (True, 5, 40)
    assert (False, 1, 40) in cuts
    assert cuts[-1] == (False, 1, 2)


def test_logits_computed_again_are_the_same_bits():
    kept, _ = train(CONFIG.model_copy(update={"head_group": 1}))
    plan = plan_work(20, 6, 300, CONFIG.model_copy(update={"head_group": 1}), device_type="cpu")
    budget = (plan.work_bytes - 1) / 2**30
    again, training = train(CONFIG.model_copy(update={"head_group": 1, "memory_budget_gib": budget}))
    assert not training.plan.keep_logits
    assert training.plan.tile_rows == 40
    assert torch.equal(kept, again)


class CountOperations(TorchDispatchMode):
    """Counts what a device would be asked to run: all but views, and tensors that are only taken."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        aliases = [argument.alias_info for argument in function._schema.arguments if argument.alias_info is not None]
        is_view = any(not alias.is_write for alias in aliases)
        if not is_view and "empty" not in function._schema.name:
            self.names.append(function._schema.name)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("update", [{}, {"precision": "bfloat16"}])
def test_a_step_of_all_heads_at_once_takes_at_most_150_device_operations(update):
    config = TemiConfig(num_heads=50, hidden=8, bottleneck=4, head_group=50, **update)
    training = new_training(6, 10, config, batch=4, seed=0, device="cpu")
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
    training.step(x, 1e-4)
    with CountOperations() as count:
        training.step(x, 1e-4)
    assert "aten::bmm" in count.names
    assert len(count.names) <= 150, sorted(count.names)


def test_on_a_gpu_all_heads_are_one_function_unless_the_space_says_otherwise():
    assert plan_work(512, 768, 400, TemiConfig(), device_type="cuda").fused
    assert not plan_work(512, 768, 400, TemiConfig(), device_type="cpu").fused
    for update in ({"compile": False}, {"head_group": 10}, {"memory_budget_gib": 0.2}):
        assert not plan_work(512, 768, 400, TemiConfig(**update), device_type="cuda").fused
    assert isinstance(new_training(6, 10, CONFIG, batch=4, seed=0, device="cpu"), TemiTraining)
    compiled = CONFIG.model_copy(update={"compile": True})
    assert isinstance(new_training(6, 10, compiled, batch=4, seed=0, device="cpu"), FusedTraining)
