"""Eq. 1 on tiles against golden numbers (method.md 9) and the textbook form."""

import numpy as np
import pytest
import torch

from cedm_ray.clustering.objective import negative_log, student_tile, teacher_tile, updated_marginal


def golden_logits(offset):
    """sin(0.7 h + 1.3 b + 0.9 c (b + 1) + offset), rows 0 to 2 anchors and 3 to 5 their partners. The golden numbers
    were made from angles and sines rounded to float32; the sine is taken in float64 first, so that no platform's
    float32 sine has a say."""
    h, b, c = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in (2, 6, 4)), indexing="ij")
    angle = 0.7 * h + 1.3 * b + 0.9 * c * (b + 1) + offset
    return torch.sin(angle.double()).float().double()


def paired(rows):
    """Anchors first to partners beside their anchors, along the second dimension."""
    return torch.stack(rows.chunk(2, dim=1), dim=2).flatten(1, 2)


def exchanged(rows):
    return rows.unflatten(1, (-1, 2)).flip(2).flatten(1, 2)


def losses_and_gradients(student_logits, teacher_logits, weight, marginal, gamma, temperature=0.1):
    """L_i [G] and the gradient of each with respect to its own logits, for rows in pairs."""
    target = exchanged(teacher_logits) / temperature
    log_total, _, _ = teacher_tile(target, torch.empty_like(target))
    logits = student_logits / temperature
    rows = student_tile(logits, target, negative_log(marginal), torch.empty_like(target), gamma) - gamma * log_total
    row_weight = weight.repeat_interleave(2) / (2 * len(weight))
    return -rows @ row_weight, logits * (row_weight * gamma / temperature).unsqueeze(-1)


def golden_case():
    """Student logits, teacher logits, pair weight and marginal of the deterministic case of method.md 9."""
    teacher = paired(golden_logits(-0.3))
    tile = teacher / 0.1
    _, mass, agreement = teacher_tile(tile, torch.empty_like(tile))
    marginal = updated_marginal(torch.full((2, 4), 0.25, dtype=torch.float64), mass, 6, 0.9)
    return paired(golden_logits(0.5)), teacher, agreement.mean(dim=0), marginal


def textbook_losses(student_logits, teacher_logits, weight, marginal, gamma):
    """Eq. 1 written with probabilities, a loop over heads and pairs of views; rows in pairs."""
    losses = []
    for student, teacher, p in zip((student_logits / 0.1).softmax(-1), teacher_logits, marginal, strict=True):
        student, teacher = (student[0::2], student[1::2]), (teacher / 0.1).softmax(-1)
        teacher = teacher[0::2], teacher[1::2]
        views = [(weight * -((student[a] * teacher[1 - a]) ** gamma / p).sum(dim=-1).log()).mean() for a in range(2)]
        losses.append((views[0] + views[1]) / 2)
    return torch.stack(losses)


def test_golden_marginal_and_pair_weight():
    _, _, weight, marginal = golden_case()
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
    got, got_gradient = losses_and_gradients(*golden_case(), gamma)
    got_gradient /= 2  # The objective is the mean over the two heads.
    np.testing.assert_allclose(got, losses, atol=5e-9)
    assert got.mean().item() == pytest.approx(mean, abs=1e-10)
    np.testing.assert_allclose(got_gradient[0, 0], gradient, atol=5e-9)
    assert got_gradient.norm().item() == pytest.approx(norm, abs=1e-10)


@pytest.mark.parametrize("gamma", [0.6, 1.0])
def test_losses_and_gradients_are_those_of_the_textbook_form(gamma):
    student, teacher, weight, marginal = golden_case()
    got, got_gradient = losses_and_gradients(student, teacher, weight, marginal, gamma)
    student.requires_grad_()
    expected = textbook_losses(student, teacher, weight, marginal, gamma)
    (expected_gradient,) = torch.autograd.grad(expected.sum(), student)
    torch.testing.assert_close(got, expected.detach(), rtol=0, atol=1e-10)
    torch.testing.assert_close(got_gradient, expected_gradient, rtol=0, atol=1e-10)


def test_tiles_give_what_the_whole_gives():
    student, teacher, weight, marginal = golden_case()
    whole, gradient = losses_and_gradients(student, teacher, weight, marginal, 0.6)
    parts = [
        losses_and_gradients(
            student[:, rows], teacher[:, rows], weight[rows.start // 2 : rows.stop // 2], marginal, 0.6
        )
        for rows in (slice(0, 2), slice(2, 6))
    ]
    assert torch.allclose(parts[0][0] / 3 + parts[1][0] * 2 / 3, whole, rtol=1e-13)
    assert torch.allclose(torch.cat([parts[0][1] / 3, parts[1][1] * 2 / 3], dim=1), gradient, rtol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_vanished_product_gives_a_zero_gradient_and_not_nan(dtype):
    logits = torch.tensor([[[60.0, 0.0], [60.0, 0.0]]], dtype=dtype)
    marginal, weight = torch.full((1, 2), 0.5, dtype=dtype), torch.ones(1, dtype=dtype)
    loss, gradient = losses_and_gradients(logits, logits, weight, marginal, 0.6)
    assert loss.item() == pytest.approx(-0.69314718, abs=1e-7)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-200)


def test_a_dead_cluster_leaves_loss_and_gradient_finite():
    teacher = torch.tensor([[[10.0, -10.0], [10.0, -10.0]]])
    loss, gradient = losses_and_gradients(torch.zeros(1, 2, 2), teacher, torch.ones(1), torch.tensor([[1.0, 0.0]]), 0.6)
    assert loss.isfinite().all()
    assert gradient.isfinite().all()
