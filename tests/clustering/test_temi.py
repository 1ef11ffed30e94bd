import math

import numpy as np
import pydantic
import pytest
import torch

from cedm_ray.clustering.heads import Heads
from cedm_ray.clustering.neighbors import nearest_neighbors
from cedm_ray.clustering.temi import (
    TemiConfig,
    fit_temi,
    head_losses,
    learning_rate,
    pair_agreement,
    partner_target,
    updated_marginal,
)

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


def golden_logits(offset):
    """sin(0.7 h + 1.3 b + 0.9 c (b + 1) + offset). The golden numbers were made from angles and sines rounded to
    float32; the sine is taken in float64 first, so that no platform's float32 sine has a say."""
    h, b, c = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in (2, 6, 4)), indexing="ij")
    angle = 0.7 * h + 1.3 * b + 0.9 * c * (b + 1) + offset
    return torch.sin(angle.double()).float().double()


def golden_case(gamma):
    """Student logits, partner target and pair weight of the deterministic case of method.md 9."""
    log_teacher = torch.log_softmax(golden_logits(-0.3) / 0.1, dim=-1)
    teacher = log_teacher.exp()
    marginal = updated_marginal(torch.full((2, 4), 0.25, dtype=torch.float64), teacher, 0.9)
    target = partner_target(log_teacher, marginal, gamma).roll(3, dims=1)
    return golden_logits(0.5), target, pair_agreement(teacher).mean(dim=0), marginal


def textbook_losses(student_logits, teacher_logits, weight, marginal, gamma):
    """Eq. 1 written with probabilities, a loop over heads and pairs of views."""
    losses = []
    for student, teacher, p in zip((student_logits / 0.1).softmax(-1), teacher_logits, marginal, strict=True):
        student, teacher = student.chunk(2), (teacher / 0.1).softmax(-1).chunk(2)
        views = [(weight * -((student[a] * teacher[1 - a]) ** gamma / p).sum(dim=-1).log()).mean() for a in range(2)]
        losses.append((views[0] + views[1]) / 2)
    return torch.stack(losses)


def test_golden_marginal_and_pair_weight():
    _, _, weight, marginal = golden_case(0.6)
    expected = [[0.25887223, 0.22785567, 0.27280507, 0.24046703], [0.25726319, 0.25515487, 0.26120293, 0.22637901]]
    np.testing.assert_allclose(marginal, expected, atol=5e-9)
    np.testing.assert_allclose(weight, [4.22782167e-01, 5.25313199e-05, 3.94147409e-02], rtol=5e-9)


@pytest.mark.parametrize(
    ("gamma", "losses", "mean", "gradient", "norm"),
    [
        (
            0.6,
            [0.07395757, -0.09613312],
            -0.011087776843668205,
            [0.00121679, -0.01767645, 0.01751985, -0.00106019],
            0.20321401827892632,
        ),
        (
            1.0,
            [0.28602239, -0.01639573],
            0.13481332714451438,
            [2.03687273e-03, -3.11930854e-02, 2.92014027e-02, -4.51900318e-05],
            0.33725506787044085,
        ),
    ],
)
def test_golden_losses_and_gradients(gamma, losses, mean, gradient, norm):
    student, target, weight, _ = golden_case(gamma)
    got, got_gradient = head_losses(student, target, weight, gamma=gamma, temperature=0.1)
    got_gradient /= 2  # The objective is the mean over the two heads.
    np.testing.assert_allclose(got, losses, atol=5e-9)
    assert got.mean().item() == pytest.approx(mean, abs=1e-10)
    np.testing.assert_allclose(got_gradient[0, 0], gradient, atol=5e-9)
    assert got_gradient.norm().item() == pytest.approx(norm, abs=1e-10)


@pytest.mark.parametrize("gamma", [0.6, 1.0])
def test_losses_and_gradients_are_those_of_the_textbook_form(gamma):
    student, target, weight, marginal = golden_case(gamma)
    got, got_gradient = head_losses(student, target, weight, gamma=gamma, temperature=0.1)
    student.requires_grad_()
    expected = textbook_losses(student, golden_logits(-0.3), weight, marginal, gamma)
    (expected_gradient,) = torch.autograd.grad(expected.sum(), student)
    torch.testing.assert_close(got, expected.detach(), rtol=0, atol=1e-10)
    torch.testing.assert_close(got_gradient, expected_gradient, rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_vanished_product_gives_a_zero_gradient_and_not_nan(dtype):
    logits = torch.tensor([[[60.0, 0.0], [60.0, 0.0]]], dtype=dtype)
    target = partner_target(torch.log_softmax(logits / 0.1, dim=-1), torch.full((1, 2), 0.5, dtype=dtype), 0.6)
    loss, gradient = head_losses(logits, target, torch.ones(1, dtype=dtype), gamma=0.6, temperature=0.1)
    assert loss.item() == pytest.approx(-0.69314718, abs=1e-7)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-200)


def test_a_dead_cluster_leaves_loss_and_gradient_finite():
    log_teacher = torch.log_softmax(torch.tensor([[[10.0, -10.0], [10.0, -10.0]]]) / 0.1, dim=-1)
    target = partner_target(log_teacher, torch.tensor([[1.0, 0.0]]), 0.6)
    loss, gradient = head_losses(torch.zeros(1, 2, 2), target, torch.ones(1), gamma=0.6, temperature=0.1)
    assert loss.isfinite().all()
    assert gradient.isfinite().all()


def test_golden_learning_rates_of_the_recipe():
    config = TemiConfig()
    rates = [learning_rate(t, steps_per_epoch=97, batch=512, config=config) for t in range(19_400)]
    assert rates[0] == 0
    assert rates[1] == pytest.approx(1.0314595e-7, rel=1e-7)
    assert rates[1939] == pytest.approx(2e-4, rel=1e-12)
    assert rates[1940] == pytest.approx(2e-4, rel=1e-12)
    assert rates[-1] == pytest.approx(2e-4, rel=1e-12)


def test_golden_learning_rates_with_a_cosine():
    config = TemiConfig(learning_rate=5e-4, min_learning_rate=1e-6, warmup_epochs=10)
    rates = [learning_rate(t, steps_per_epoch=97, batch=512, config=config) for t in (969, 970, 9700, 19_399)]
    assert rates == pytest.approx([1e-3, 1e-3, 5.4220708e-4, 2.0000072e-6], rel=1e-7)


def test_a_warm_up_longer_than_the_training_is_clipped():
    config = TemiConfig(epochs=2, warmup_epochs=20)
    rates = [learning_rate(t, steps_per_epoch=3, batch=256, config=config) for t in range(6)]
    np.testing.assert_allclose(rates, np.linspace(0, 1e-4, 6), rtol=1e-12)


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


def stream(seed, *key):
    return int(np.random.SeedSequence(seed, spawn_key=key).generate_state(1, np.uint64)[0])


def test_a_fit_is_that_of_a_plain_loop_with_autograd():
    features, _ = blobs()
    neighbors = nearest_neighbors(features, 5)
    config = SMALL.model_copy(update={"epochs": 4, "head_group": 2, "weight_decay": 0.1})
    _, fit = finish(fit_temi(features, neighbors, 4, config, seed=3))
    losses, teacher = reference_fit(features, neighbors, 4, config, seed=3)
    np.testing.assert_allclose(fit.head_losses, losses, atol=2e-6)
    assert fit.best_head == int(losses.argmin())
    for name, array in fit.head.items():
        np.testing.assert_allclose(array[0], teacher[name][fit.best_head], atol=2e-6, err_msg=name)


@pytest.mark.parametrize("head_group", [1, 2, 3, 50])
def test_the_head_group_changes_nothing_beyond_rounding(head_group):
    features, _ = blobs()
    neighbors = nearest_neighbors(features, 5)
    _, expected = finish(fit_temi(features, neighbors, 7, SMALL, seed=0))
    config = SMALL.model_copy(update={"head_group": head_group})
    _, fit = finish(fit_temi(features, neighbors, 7, config, seed=0))
    np.testing.assert_allclose(fit.head_losses, expected.head_losses, atol=1e-6)
    assert (fit.assignment.labels == expected.assignment.labels).mean() > 0.98


def test_separated_blobs_are_found():
    features, truth = blobs(400, num_blobs=5, width=16)
    config = SMALL.model_copy(
        update={"epochs": 20, "learning_rate": 1e-2, "hidden": 64, "bottleneck": 32, "feature_norm": "standardize"}
    )
    progress, fit = finish(fit_temi(features, nearest_neighbors(features, 5), 5, config, seed=0))
    labels = fit.assignment.labels
    assert fit.assignment.num_used == 5
    majority = sum(np.bincount(truth[labels == c]).max() for c in fit.assignment.used_ids)
    assert majority / len(truth) > 0.95
    assert progress[-1].loss < progress[0].loss
    assert progress[-1].num_used == 5


def test_progress_and_fit_say_what_happened():
    features, _ = blobs()
    progress, fit = finish(fit_temi(features, nearest_neighbors(features, 8), 4, SMALL, seed=11))
    assert [p.epoch for p in progress] == [1, 2, 3]
    assert {p.epochs for p in progress} == {3}
    assert progress[-1].loss == pytest.approx(fit.head_losses.mean())
    assert progress[-1].learning_rate == pytest.approx(1e-3 * 32 / 256)
    assert progress[-1].num_used == fit.assignment.num_used
    assert fit.head_losses.shape == (3,)
    assert fit.head_losses.dtype == np.float64
    assert fit.best_head == fit.head_losses.argmin()
    assert fit.assignment.method == "temi"
    assert fit.assignment.provenance == {
        "config": SMALL.model_dump(),
        "seed": 11,
        "best_head": fit.best_head,
        "loss": fit.head_losses.min(),
    }


@pytest.mark.parametrize("norm", ["none", "standardize", "l2"])
def test_the_saved_head_makes_the_assignment(norm):
    features, _ = blobs()
    features[:, 2] = 3.0  # A constant dimension has no standard deviation to divide by.
    config = SMALL.model_copy(update={"feature_norm": norm})
    _, fit = finish(fit_temi(features, nearest_neighbors(features, 5), 6, config, seed=0))
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
    neighbors = nearest_neighbors(features, 5)
    config = SMALL.model_copy(update={"epochs": 2, "freeze_last_layer_epochs": 2, "weight_decay": 0.5})
    _, fit = finish(fit_temi(features, neighbors, 4, config, seed=0))
    initial = Heads(3, 6, 4, hidden=16, bottleneck=8, generator=torch.Generator().manual_seed(stream(0, 0)))
    assert (fit.head["gain"] == 1).all()
    np.testing.assert_allclose(fit.head["prototypes"][0], initial.prototypes[fit.best_head].detach(), rtol=1e-6)
    _, thawed = finish(
        fit_temi(features, neighbors, 4, config.model_copy(update={"freeze_last_layer_epochs": 1}), seed=0)
    )
    assert not (thawed.head["gain"] == 1).all()


def test_a_fit_is_a_function_of_its_seed_alone():
    features, _ = blobs()
    neighbors = nearest_neighbors(features, 5)
    runs = []
    for seed, global_seed in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(global_seed)
        runs.append(finish(fit_temi(features, neighbors, 6, SMALL, seed=seed))[1])
    assert (runs[0].head_losses == runs[1].head_losses).all()
    assert (runs[0].assignment.labels == runs[1].assignment.labels).all()
    assert not (runs[0].head_losses == runs[2].head_losses).all()


def test_one_head_one_epoch_and_a_batch_larger_than_the_data_work():
    features, _ = blobs(30)
    config = TemiConfig(num_heads=1, hidden=8, bottleneck=4, num_neighbors=3, epochs=1)
    progress, fit = finish(fit_temi(features, nearest_neighbors(features, 3), 2, config, seed=0))
    assert len(progress) == 1
    assert progress[0].learning_rate == 0  # One step, which is the first of the warm-up.
    assert math.isfinite(progress[0].loss)
    assert fit.assignment.labels.shape == (30,)


def test_a_loss_that_is_not_finite_names_epoch_and_step():
    features, _ = blobs()
    config = SMALL.model_copy(update={"learning_rate": 1e38, "min_learning_rate": 1e38})
    with pytest.raises(FloatingPointError, match=r"not finite at epoch \d, step \d"):
        finish(fit_temi(features, nearest_neighbors(features, 5), 4, config, seed=0))


def test_features_that_cannot_be_clustered_are_refused():
    features, _ = blobs(40)
    neighbors = nearest_neighbors(features, 5)
    broken = features.copy()
    broken[[3, 9], 1] = np.nan, np.inf
    with pytest.raises(ValueError, match=r"NaN or infinity in 2 of 40 rows, first \[3, 9\]"):
        next(fit_temi(broken, neighbors, 4, SMALL, seed=0))
    with pytest.raises(ValueError, match="got 40 equal rows"):
        next(fit_temi(np.ones_like(features), neighbors, 4, SMALL, seed=0))


def test_arguments_that_break_a_rule_are_refused():
    features, _ = blobs(40)
    neighbors = nearest_neighbors(features, 5)
    for num_clusters in (1, 41):
        with pytest.raises(ValueError, match=rf"num_clusters must lie in \[2, N\] = \[2, 40\], got {num_clusters}"):
            next(fit_temi(features, neighbors, num_clusters, SMALL, seed=0))
    with pytest.raises(ValueError, match=r"neighbors must have shape \[40, at least 5\], got \(40, 4\)"):
        next(fit_temi(features, neighbors[:, :4], 4, SMALL, seed=0))
    with pytest.raises(ValueError, match=r"neighbors must lie in \[0, 40\), got -1"):
        next(fit_temi(features, np.full_like(neighbors, -1), 4, SMALL, seed=0))
    with pytest.raises(ValueError, match="features must have shape"):
        next(fit_temi(features[0], neighbors, 4, SMALL, seed=0))
    with pytest.raises(ValueError, match="seed must not be negative, got -1"):
        next(fit_temi(features, neighbors, 4, SMALL, seed=-1))


@pytest.mark.parametrize(
    "wrong",
    [
        {"gamma": 0.5},
        {"gamma": 1.1},
        {"teacher_momentum": 1.0},
        {"marginal_momentum": -0.1},
        {"num_heads": 0},
        {"head_group": 0},
        {"feature_norm": "whiten"},
        {"learning_rate": 1e-5},
        {"beta": 0.6},
    ],
)
def test_a_configuration_that_breaks_a_rule_is_refused(wrong):
    with pytest.raises(pydantic.ValidationError):
        TemiConfig(**wrong)
