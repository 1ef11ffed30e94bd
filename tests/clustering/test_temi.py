import math

import numpy as np
import pytest
import torch

from cedm_ray.clustering.heads import Heads
from cedm_ray.clustering.neighbors import nearest_neighbors
from cedm_ray.clustering.pairs import load_temi_data
from cedm_ray.clustering.recipe import TemiConfig, learning_rate
from cedm_ray.clustering.temi import fit_temi
from cedm_ray.clustering.training import random_stream as stream

SMALL = TemiConfig(
    num_heads=3,
    hidden=16,
    bottleneck=8,
    num_neighbors=5,
    batch_size=32,
    epochs=3,
    learning_rate=1e-3,
    min_learning_rate=1e-3,
    warmup_epochs=1,
)


def finish(fit):
    """The progress of all epochs and the returned fit."""
    progress = []
    while True:
        try:
            progress.append(next(fit))
        except StopIteration as end:
            return progress, end.value


def blobs(num_images=120, num_blobs=4, width=6, seed=0):
    rng = np.random.default_rng(seed)
    centers = 4 * rng.normal(size=(num_blobs, width))
    truth = np.arange(num_images) % num_blobs
    return (centers[truth] + rng.normal(size=(num_images, width))).astype(np.float32), truth


def textbook_losses(student_logits, teacher_logits, weight, marginal, gamma):
    """Eq. 1 written with probabilities, a loop over heads and pairs of views; anchors first."""
    losses = []
    for student, teacher, p in zip((student_logits / 0.1).softmax(-1), teacher_logits, marginal, strict=True):
        student, teacher = student.chunk(2), (teacher / 0.1).softmax(-1).chunk(2)
        views = [(weight * -((student[a] * teacher[1 - a]) ** gamma / p).sum(dim=-1).log()).mean() for a in range(2)]
        losses.append((views[0] + views[1]) / 2)
    return torch.stack(losses)


def reference_fit(features, neighbors, num_clusters, config, seed):
    """The same training by autograd: all heads at once, textbook loss, torch's own AdamW and a loop EMA, float64."""
    generator = torch.Generator().manual_seed(stream(seed, 0))
    sizes = {"hidden": config.hidden, "bottleneck": config.bottleneck, "generator": generator}
    student = Heads(config.num_heads, features.shape[1], num_clusters, **sizes).double()
    teacher = {name: p.detach().clone() for name, p in student.named_parameters()}
    x_all = torch.from_numpy(features).double()
    biases = {"bias_1", "bias_2"}
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for n, p in student.named_parameters() if n not in biases]},
            {"params": [p for n, p in student.named_parameters() if n in biases], "weight_decay": 0},
        ],
        weight_decay=config.weight_decay,
        foreach=False,
    )
    marginal = torch.full((config.num_heads, num_clusters), 1 / num_clusters, dtype=torch.float64)
    batch = config.batch_size
    steps = len(features) // batch
    for epoch in range(config.epochs):
        draw = torch.Generator().manual_seed(stream(seed, 1, epoch))
        anchors = torch.randperm(len(features), generator=draw)
        column = torch.randint(config.num_neighbors, (len(features),), generator=draw)
        partners = torch.from_numpy(neighbors.astype(np.int64))[anchors, column]
        total = torch.zeros(config.num_heads, dtype=torch.float64)
        for step in range(steps):
            now = slice(step * batch, (step + 1) * batch)
            x = torch.cat([x_all[anchors[now]], x_all[partners[now]]])
            with torch.no_grad():
                teacher_logits = torch.func.functional_call(student, teacher, (x,))
                probabilities = (teacher_logits / 0.1).softmax(-1)
                marginal = 0.9 * marginal + 0.1 * probabilities.mean(dim=1)
                weight = (probabilities[:, :batch] * probabilities[:, batch:]).sum(-1).mean(0)
            losses = textbook_losses(student(x), teacher_logits, weight, marginal, config.gamma)
            optimizer.zero_grad()
            losses.mean().backward()
            if epoch == 0:
                student.prototypes.grad = student.gain.grad = None
            t = epoch * steps + step
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(t, steps_per_epoch=steps, batch=batch, config=config)
            optimizer.step()
            for name, p in student.named_parameters():
                teacher[name] = 0.996 * teacher[name] + 0.004 * p.detach()
            total += losses.detach()
    return total / steps, teacher


def start(features, num_neighbors, num_clusters, config, seed=0):
    """A fit of features with their nearest neighbors."""
    data = load_temi_data(features, nearest_neighbors(features, num_neighbors), config)
    return fit_temi(data, num_clusters, config, seed=seed)


def test_a_fit_is_that_of_a_plain_loop_with_autograd():
    features, _ = blobs()
    neighbors = nearest_neighbors(features, 5)
    config = SMALL.model_copy(update={"epochs": 4, "head_group": 2, "weight_decay": 0.1})
    _, fit = finish(start(features, 5, 4, config, seed=3))
    losses, teacher = reference_fit(features, neighbors, 4, config, seed=3)
    np.testing.assert_allclose(fit.head_losses, losses, atol=2e-6)
    assert fit.best_head == int(losses.argmin())
    for name, array in fit.head.items():
        np.testing.assert_allclose(array[0], teacher[name][fit.best_head], atol=2e-6, err_msg=name)


@pytest.mark.parametrize("head_group", [1, 2, 3, 50])
def test_the_head_group_changes_nothing_beyond_rounding(head_group):
    features, _ = blobs()
    _, expected = finish(start(features, 5, 7, SMALL))
    config = SMALL.model_copy(update={"head_group": head_group})
    _, fit = finish(start(features, 5, 7, config))
    np.testing.assert_allclose(fit.head_losses, expected.head_losses, atol=1e-6)
    assert (fit.assignment.labels == expected.assignment.labels).mean() > 0.98


def test_separated_blobs_are_found():
    features, truth = blobs(400, num_blobs=5, width=16)
    config = SMALL.model_copy(
        update={"epochs": 20, "learning_rate": 1e-2, "hidden": 64, "bottleneck": 32, "feature_norm": "standardize"}
    )
    progress, fit = finish(start(features, 5, 5, config))
    labels = fit.assignment.labels
    assert fit.assignment.num_used == 5
    majority = sum(np.bincount(truth[labels == c]).max() for c in fit.assignment.used_ids)
    assert majority / len(truth) > 0.95
    assert progress[-1].loss < progress[0].loss
    assert progress[-1].num_used == 5
    # The blobs are equally large, so that the marginal of a fit that tells them apart is even.
    assert progress[-1].marginal_entropy == pytest.approx(np.log(5), rel=0.02)


def test_progress_and_fit_say_what_happened():
    features, _ = blobs()
    progress, fit = finish(start(features, 8, 4, SMALL.model_copy(update={"num_neighbors": 8}), seed=11))
    assert [p.epoch for p in progress] == [1, 2, 3]
    assert {p.epochs for p in progress} == {3}
    assert progress[-1].loss == pytest.approx(fit.head_losses.mean())
    assert progress[-1].learning_rate == pytest.approx(1e-3 * 32 / 256)
    assert progress[-1].num_used == fit.assignment.num_used
    assert all(0 < p.marginal_entropy <= np.log(4) + 1e-6 for p in progress)
    assert fit.head_losses.shape == (3,)
    assert fit.head_losses.dtype == np.float64
    assert fit.best_head == fit.head_losses.argmin()
    assert fit.assignment.method == "temi"
    assert fit.assignment.provenance == {
        "config": {**SMALL.model_dump(), "num_neighbors": 8},
        "seed": 11,
        "best_head": fit.best_head,
        "loss": fit.head_losses.min(),
    }


@pytest.mark.parametrize("norm", ["none", "standardize", "l2"])
def test_the_saved_head_makes_the_assignment(norm):
    features, _ = blobs()
    features[:, 2] = 3.0  # A constant dimension has no standard deviation to divide by.
    config = SMALL.model_copy(update={"feature_norm": norm})
    _, fit = finish(start(features, 5, 6, config))
    x = features
    if norm == "l2":
        x = features / np.linalg.norm(features, axis=1, keepdims=True)
    if norm == "standardize":
        deviation = features.std(axis=0, ddof=1)
        np.testing.assert_allclose(fit.head["feature_scale"], np.where(deviation > 1e-6, deviation, 1), rtol=1e-5)
        x = (features - fit.head["feature_mean"]) / fit.head["feature_scale"]
    head = {name: torch.from_numpy(array[0]) for name, array in fit.head.items() if not name.startswith("feature")}
    hidden = torch.nn.functional.gelu(torch.from_numpy(x) @ head["weight_1"] + head["bias_1"])
    z = torch.nn.functional.normalize(hidden @ head["weight_2"] + head["bias_2"], dim=1)
    cosines = z @ torch.nn.functional.normalize(head["prototypes"], dim=1).T
    assert ((cosines * head["gain"]).argmax(dim=1).numpy() == fit.assignment.labels).mean() > 0.98


def test_the_last_layer_is_left_alone_while_it_is_frozen():
    features, _ = blobs()
    config = SMALL.model_copy(update={"epochs": 2, "freeze_last_layer_epochs": 2, "weight_decay": 0.5})
    _, fit = finish(start(features, 5, 4, config))
    initial = Heads(3, 6, 4, hidden=16, bottleneck=8, generator=torch.Generator().manual_seed(stream(0, 0)))
    assert (fit.head["gain"] == 1).all()
    np.testing.assert_allclose(fit.head["prototypes"][0], initial.prototypes[fit.best_head].detach(), rtol=1e-6)
    _, thawed = finish(start(features, 5, 4, config.model_copy(update={"freeze_last_layer_epochs": 1})))
    assert not (thawed.head["gain"] == 1).all()


def test_a_fit_is_a_function_of_its_seed_alone():
    features, _ = blobs()
    runs = []
    for seed, global_seed in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(global_seed)
        runs.append(finish(start(features, 5, 6, SMALL, seed=seed))[1])
    assert (runs[0].head_losses == runs[1].head_losses).all()
    assert (runs[0].assignment.labels == runs[1].assignment.labels).all()
    assert not (runs[0].head_losses == runs[2].head_losses).all()


def test_one_head_one_epoch_and_a_batch_larger_than_the_data_work():
    features, _ = blobs(30)
    config = TemiConfig(num_heads=1, hidden=8, bottleneck=4, num_neighbors=3, epochs=1)
    progress, fit = finish(start(features, 3, 2, config))
    assert len(progress) == 1
    assert progress[0].learning_rate == 0  # One step, which is the first of the warm-up.
    assert math.isfinite(progress[0].loss)
    assert fit.assignment.labels.shape == (30,)


def test_a_loss_that_is_not_finite_names_epoch_and_step():
    features, _ = blobs()
    config = SMALL.model_copy(update={"learning_rate": 1e38, "min_learning_rate": 1e38})
    with pytest.raises(FloatingPointError, match=r"not finite at epoch \d, step \d"):
        finish(start(features, 5, 4, config))


def test_arguments_that_break_a_rule_are_refused():
    features, _ = blobs(40)
    for num_clusters in (1, 41):
        with pytest.raises(ValueError, match=rf"num_clusters must lie in \[2, N\] = \[2, 40\], got {num_clusters}"):
            next(start(features, 5, num_clusters, SMALL))
    with pytest.raises(ValueError, match="seed must not be negative, got -1"):
        next(start(features, 5, 4, SMALL, seed=-1))
    with pytest.raises(ValueError, match=r"memory_budget_gib must be at least [\d.e-]+ for C = 4, got 1e-06"):
        next(start(features, 5, 4, SMALL.model_copy(update={"memory_budget_gib": 1e-6})))


def test_data_that_were_loaded_for_another_configuration_are_refused():
    features, _ = blobs(40)
    data = load_temi_data(features, nearest_neighbors(features, 5), SMALL)
    for update in ({"feature_norm": "l2"}, {"num_neighbors": 4}):
        with pytest.raises(ValueError, match=r"got none and 5"):
            next(fit_temi(data, 4, SMALL.model_copy(update=update), seed=0))


def test_fits_side_by_side_give_what_they_give_one_after_the_other():
    features, _ = blobs()
    data = load_temi_data(features, nearest_neighbors(features, 5), SMALL)
    alone = [finish(fit_temi(data, num_clusters, SMALL, seed=0))[1] for num_clusters in (4, 9)]
    fits = [fit_temi(data, num_clusters, SMALL, seed=0) for num_clusters in (4, 9)]
    for _ in range(SMALL.epochs):
        for fit in fits:
            next(fit)
    for fit, expected in zip(fits, alone, strict=True):
        _, got = finish(fit)
        assert (got.head_losses == expected.head_losses).all()
        assert (got.assignment.labels == expected.assignment.labels).all()


def test_bfloat16_products_find_the_blobs_too():
    features, truth = blobs(400, num_blobs=5, width=16)
    update = {"epochs": 20, "learning_rate": 1e-2, "hidden": 64, "bottleneck": 32, "feature_norm": "standardize"}
    config = SMALL.model_copy(update={**update, "precision": "bfloat16"})
    _, fit = finish(start(features, 5, 5, config))
    labels = fit.assignment.labels
    assert sum(np.bincount(truth[labels == c]).max() for c in fit.assignment.used_ids) / len(truth) > 0.95
