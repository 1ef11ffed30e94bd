"""The step of all heads at once against autograd through Eq. 1, and against the step in pieces with torch's AdamW."""

import dataclasses

import pytest
import torch

from cedm_ray.clustering import fused
from cedm_ray.clustering.fused import losses_and_gradients
from cedm_ray.clustering.heads import Heads
from cedm_ray.clustering.recipe import TemiConfig
from cedm_ray.clustering.training import new_training

CONFIG = TemiConfig(num_heads=4, hidden=6, bottleneck=5, student_temperature=0.3, teacher_temperature=0.2)
IN_FEATURES, CLUSTERS, PAIRS = 11, 7, 8


@pytest.fixture
def quick_compiler(monkeypatch):
    # The default takes a C++ compiler and half a minute; functions are captured the same with this one.
    monkeypatch.setattr(fused, "BACKEND", "aot_eager")


def heads(seed):
    generator = torch.Generator().manual_seed(seed)
    made = Heads(4, IN_FEATURES, CLUSTERS, hidden=6, bottleneck=5, generator=generator).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return made


def draw(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def textbook(student, teacher, marginal, x, config):
    """(losses [H], marginal) as the equation is written, with probabilities and a mean over views."""
    views = x.unflatten(0, (-1, 2)).unbind(1)
    s = [(student(view) / config.student_temperature).softmax(dim=-1) for view in views]
    t = [(teacher(view) / config.teacher_temperature).softmax(dim=-1).detach() for view in views]
    momentum = config.marginal_momentum
    marginal = momentum * marginal + (1 - momentum) * torch.cat(t, dim=1).mean(dim=1)
    weight = (t[0] * t[1]).sum(dim=-1).mean(dim=0)
    both = ((s[0], t[1]), (s[1], t[0]))
    terms = [-((a * b) ** config.gamma / marginal.unsqueeze(1)).sum(dim=-1).log() * weight for a, b in both]
    return torch.stack(terms).mean(dim=(0, 2)), marginal


@pytest.mark.parametrize("gamma", [0.6, 1.0])
def test_losses_and_gradients_are_those_of_autograd(gamma):
    config = CONFIG.model_copy(update={"gamma": gamma})
    student, teacher, x = heads(0), heads(1), draw(2 * PAIRS, IN_FEATURES, seed=2)
    before = draw(4, CLUSTERS, seed=3).softmax(dim=-1)
    expected, after = textbook(student, teacher, before, x, config)
    expected.mean().backward()
    tensors = [{name: p.detach() for name, p in one.named_parameters()} for one in (student, teacher)]
    losses, marginal, gradients = losses_and_gradients(*tensors, before, x, config)
    torch.testing.assert_close(losses, expected.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(marginal, after, rtol=1e-12, atol=1e-12)
    assert gradients.keys() == tensors[0].keys()
    for name, parameter in student.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-10, atol=1e-12, msg=name)


def trained(config, steps=9):
    """Losses of all steps and the training, whose last layer is frozen in the first three, at rates from 0 on."""
    training = new_training(IN_FEATURES, CLUSTERS, config, batch=PAIRS, seed=0, device="cpu")
    losses = []
    for step in range(steps):
        training.set_last_layer_trained(step >= 3)
        losses.append(training.step(draw(2 * PAIRS, IN_FEATURES, seed=step).float(), 0.01 * step))
    return torch.stack(losses), training


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.05)])
@pytest.mark.usefixtures("quick_compiler")
def test_steps_are_those_in_pieces(precision, tolerance):
    config = CONFIG.model_copy(update={"precision": precision})
    expected, pieces = trained(config)
    losses, whole = trained(config.model_copy(update={"compile": True}))
    torch.testing.assert_close(losses, expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(whole.marginal, pieces.marginal, rtol=tolerance, atol=tolerance)
    for ours, theirs in ((whole.student, pieces.student), (whole.teacher, pieces.teacher)):
        for (name, got), wanted in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            assert (got - wanted).norm() <= tolerance * wanted.norm(), name
    rounded = whole._state.rounded_teacher
    assert set(rounded) == ({"weight_1", "weight_2"} if precision == "bfloat16" else set())
    for name, weight in rounded.items():
        assert torch.equal(weight, getattr(whole.teacher, name).bfloat16())


@pytest.mark.usefixtures("quick_compiler")
def test_a_frozen_last_layer_stays_where_it_is():
    _, training = trained(CONFIG.model_copy(update={"compile": True}), steps=3)
    fresh = new_training(IN_FEATURES, CLUSTERS, CONFIG, batch=PAIRS, seed=0, device="cpu").student
    assert torch.equal(training.student.prototypes, fresh.prototypes)
    assert torch.equal(training.student.gain, fresh.gain)
    assert not torch.equal(training.student.weight_2, fresh.weight_2)


def test_where_compiling_fails_the_steps_are_the_same(monkeypatch):
    def fails(*_):
        raise RuntimeError("no compiler here")

    config = CONFIG.model_copy(update={"compile": True})
    monkeypatch.setattr(fused, "BACKEND", "aot_eager")
    expected, _ = trained(config, steps=4)
    torch._dynamo.reset()
    monkeypatch.setattr(fused, "BACKEND", fails)
    losses, training = trained(config, steps=4)
    assert training._step is fused.fused_step
    assert "without torch.compile" in training.note
    assert "no compiler here" in training.note
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-6)


def test_a_first_step_that_runs_out_of_memory_is_not_repeated(monkeypatch):
    def out_of_memory(*_):
        raise torch.OutOfMemoryError("none is left")

    config = CONFIG.model_copy(update={"compile": True})
    training = new_training(IN_FEATURES, CLUSTERS, config, batch=PAIRS, seed=0, device="cpu")
    monkeypatch.setattr(training, "_step", out_of_memory)
    monkeypatch.setattr(fused, "fused_step", None)
    with pytest.raises(torch.OutOfMemoryError, match="none is left"):
        training.step(torch.ones(2 * PAIRS, IN_FEATURES), 0.01)


@pytest.mark.usefixtures("quick_compiler")
def test_where_compiling_works_there_is_nothing_to_note():
    _, training = trained(CONFIG.model_copy(update={"compile": True}), steps=1)
    assert training._step is not fused.fused_step
    assert training.note is None


@pytest.mark.usefixtures("quick_compiler")
def test_every_c_is_compiled_once():
    torch._dynamo.reset()
    captured = torch._dynamo.utils.counters["stats"]
    captured.clear()
    for num_clusters in (5, 6, 5):
        config = CONFIG.model_copy(update={"compile": True})
        training = new_training(IN_FEATURES, num_clusters, config, batch=PAIRS, seed=0, device="cpu")
        for _ in range(2):
            training.step(torch.ones(2 * PAIRS, IN_FEATURES), 0.01)
    assert captured["unique_graphs"] == 2


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.usefixtures("quick_compiler")
def test_one_compiled_step_may_serve_every_c_with_the_same_losses(monkeypatch, precision):
    def losses(num_clusters, step=None):
        config = CONFIG.model_copy(update={"compile": True, "precision": precision})
        training = new_training(IN_FEATURES, num_clusters, config, batch=PAIRS, seed=0, device="cpu")
        training._step = step or training._step
        steps = [training.step(draw(2 * PAIRS, IN_FEATURES, seed=step).float(), 0.01) for step in range(3)]
        assert training.note is None
        return torch.stack(steps)

    # Among them numbers that other dimensions have, and 2, the least C.
    sizes = (5, 2, 3, 4, 6, 11, 16, 40)
    expected = [losses(num_clusters, step=fused.fused_step) for num_clusters in sizes]
    monkeypatch.setattr(fused, "ANY_C", True)
    torch._dynamo.reset()
    captured = torch._dynamo.utils.counters["stats"]
    captured.clear()
    found = [losses(num_clusters) for num_clusters in sizes]
    assert captured["unique_graphs"] == 1
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_the_state_holds_every_parameter_once():
    training = new_training(3, 4, CONFIG.model_copy(update={"compile": True}), batch=2, seed=0, device="cpu")
    names = {name for name, _ in training.student.named_parameters()}
    for field in dataclasses.fields(training._state):
        value = getattr(training._state, field.name)
        assert field.name.startswith(("rounded", "marginal")) or value.keys() == names
    assert training._state.student["gain"].data_ptr() == training.student.gain.data_ptr()
