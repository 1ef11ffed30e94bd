"""Precision, recall, density, coverage against prdc's numbers and scikit-learn; the inception score's closed forms."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import pairwise_distances
from sklearn.neighbors import NearestNeighbors

from cedm_ray.metrics import manifold as room
from cedm_ray.metrics.manifold import inception_score, manifold


def two_sets() -> tuple[torch.Tensor, torch.Tensor]:
    stream = np.random.RandomState(0)
    a = torch.from_numpy(stream.standard_normal((120, 8)))
    return a, torch.from_numpy(stream.standard_normal((150, 8)) * 1.3 + 0.4)


def figures(found) -> tuple[float, ...]:
    return found.precision, found.recall, found.density, found.coverage


def by_scikit_learn(real: np.ndarray, fake: np.ndarray, k: int) -> tuple[float, ...]:
    def radius(points):
        return NearestNeighbors(n_neighbors=k, algorithm="brute").fit(points).kneighbors()[0][:, -1]

    distance = pairwise_distances(real, fake)
    inside = distance < radius(real)[:, None]
    recall = (distance < radius(fake)[None, :]).any(axis=1).mean()
    return inside.any(axis=0).mean(), recall, inside.sum(axis=0).mean() / k, inside.any(axis=1).mean()


@pytest.mark.parametrize(
    ("k", "expected"),
    [
        (1, (57 / 150, 90 / 120, 0.5133333333333333, 46 / 120)),
        (3, (93 / 150, 108 / 120, 0.5088888888888888, 88 / 120)),
        (5, (106 / 150, 116 / 120, 0.488, 102 / 120)),
        (10, (124 / 150, 120 / 120, 0.45, 112 / 120)),
    ],
)
@pytest.mark.parametrize("tiles", [(1024, 4096), (17, 13)])
def test_the_figures_are_those_of_prdc(k, expected, tiles, monkeypatch):
    # prdc 0.2, compute_prdc(a, b, k).
    monkeypatch.setattr(room, "TILE_ROWS", tiles[0])
    monkeypatch.setattr(room, "TILE_COLUMNS", tiles[1])
    assert figures(manifold(*two_sets(), k=k)) == pytest.approx(expected, rel=1e-12)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), k=st.integers(1, 7), dim=st.integers(1, 5), shift=st.floats(-1000, 1000))
def test_the_figures_are_those_of_scikit_learn(seed, k, dim, shift):
    random = np.random.default_rng(seed)
    real = random.normal(size=(random.integers(8, 40), dim))
    fake = random.normal(size=(random.integers(8, 40), dim)) * 0.9
    found = manifold(torch.from_numpy(real + shift), torch.from_numpy(fake + shift), k=k)
    assert figures(found) == pytest.approx(by_scikit_learn(real, fake, k), abs=1e-12)


def test_a_case_worked_by_hand():
    # Reference at 0, 1, 3, 7 with k = 1: radii 1, 1, 2, 4; generated at 0.5, 4.5, 20 with radii 4, 4, 15.5.
    found = manifold(torch.tensor([[0.0], [1], [3], [7]]), torch.tensor([[0.5], [4.5], [20]]), k=1)
    # 0.5 lies in the balls of 0 and 1, 4.5 in those of 3 and 7, 20 in none.
    assert found.precision == pytest.approx(2 / 3)
    assert found.density == pytest.approx(4 / 3)
    assert found.coverage == 1
    assert found.recall == 1


def test_a_border_is_outside():
    # The generated image lies exactly one radius away from the nearest reference image.
    found = manifold(torch.tensor([[0.0], [1.0]]), torch.tensor([[2.0], [9.0]]), k=1)
    assert figures(found) == (0, 1, 0, 0)


def test_identical_sets_cover_each_other():
    a, _ = two_sets()
    found = manifold(a, a, k=5)
    assert (found.precision, found.recall, found.coverage) == (1, 1, 1)
    # Each image lies in its own ball and, on average, strictly inside k - 1 others.
    assert found.density == pytest.approx(1)


def test_sets_far_apart_share_nothing():
    a, b = two_sets()
    assert figures(manifold(a, b + 100)) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 120}, r"\[1, 119\].*got 120"),
        ({"k": 0}, r"\[1, 119\].*got 0"),
        ({"generated": torch.zeros(120, 7)}, "same width, got D = 8 and 7"),
        ({"generated": torch.full((120, 8), float("nan"))}, "generated must be finite"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    a, b = two_sets()
    with pytest.raises(ValueError, match=message):
        manifold(**({"reference": a, "generated": b} | change))


@pytest.mark.parametrize(
    ("splits", "value", "std"),
    [(10, 2.189465790762056, 0.27473974020024244), (7, 2.3011676605942624, 0.2562922381302724)],
)
def test_the_inception_score_is_that_of_torch_fidelity(splits, value, std):
    # torch-fidelity 0.4.0, isc_features_to_metric(2 * a, splits=splits, shuffle=False) on logits.
    found = inception_score((two_sets()[0] * 2).softmax(dim=1), splits=splits)
    assert (found.value, found.std) == pytest.approx((value, std), rel=1e-11)


def test_the_inception_score_has_closed_forms_at_both_ends():
    sure = torch.eye(4).repeat(5, 1)
    assert inception_score(sure, splits=5).value == pytest.approx(4)
    unsure = torch.full((20, 4), 0.25)
    found = inception_score(unsure, splits=5)
    assert (found.value, found.std) == pytest.approx((1, 0))
    assert inception_score(sure[:1], splits=1).value == pytest.approx(1)


@pytest.mark.parametrize(
    ("probabilities", "splits", "message"),
    [
        (torch.eye(3), 4, r"\[1, 3\], got 4"),
        (torch.eye(3) * 2, 1, "add to 1"),
        (torch.tensor([[1.5, -0.5]]), 1, "add to 1"),
        (torch.zeros(0, 3), 1, "at least 1 images"),
    ],
)
def test_what_are_no_probabilities_is_refused(probabilities, splits, message):
    with pytest.raises(ValueError, match=message):
        inception_score(probabilities, splits=splits)
