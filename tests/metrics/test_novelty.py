"""Novelty against pairs counted one by one, scikit-learn's neighbors and hand-worked cases."""

import math

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from cedm_ray.metrics.novelty import confidence, memorization, nearest_training, novelty_auroc


def features(count: int, seed: int, dim: int = 5) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(count, dim)))


def test_the_nearest_training_image_is_that_of_scikit_learn():
    images, training = features(60, 1), features(200, 2)
    similarity, row = nearest_training(images, training, tile_rows=7, tile_columns=31)
    peer = NearestNeighbors(n_neighbors=1, metric="cosine", algorithm="brute").fit(training)
    distance, expected = peer.kneighbors(images)
    np.testing.assert_array_equal(row, expected[:, 0])
    np.testing.assert_allclose(similarity, 1 - distance[:, 0], atol=1e-12)


def test_a_copy_has_the_similarity_one_and_never_more():
    training = features(50, 3).float()
    similarity, row = nearest_training(training, training)
    assert row.tolist() == list(range(50))
    assert (similarity <= 1).all()
    assert similarity == pytest.approx(1, abs=1e-6)


def test_auroc_counts_pairs_and_ties_by_half():
    random = np.random.default_rng(4)
    generated, test = random.integers(0, 12, 40) / 12, random.integers(0, 12, 70) / 12 + 0.05
    wins = sum((g < t) + 0.5 * (g == t) for g in generated for t in test)
    assert novelty_auroc(generated, test) == pytest.approx(wins / (40 * 70), rel=1e-12)


def test_auroc_is_high_where_generated_images_are_farther():
    near, far = np.array([0.9, 0.95, 0.99]), np.array([0.1, 0.2])
    assert novelty_auroc(far, near) == 1
    assert novelty_auroc(near, far) == 0
    assert novelty_auroc(near, near) == 0.5


@pytest.mark.parametrize(
    ("generated", "test", "message"),
    [
        (np.zeros(0), np.zeros(3), "generated_similarity must be finite"),
        (np.zeros(3), np.array([np.nan]), "test_similarity must be finite"),
        (np.zeros((2, 2)), np.zeros(3), r"got the shape \(2, 2\)"),
    ],
)
def test_similarities_that_are_none_are_refused(generated, test, message):
    with pytest.raises(ValueError, match=message):
        novelty_auroc(generated, test)


def at(*degrees: float) -> torch.Tensor:
    angle = torch.tensor(degrees).deg2rad()
    return torch.stack([angle.cos(), angle.sin()], dim=1)


def test_memorization_worked_by_hand():
    # Training images at 0, 30 and 90 degrees: their own nearest lie 30, 30 and 60 degrees away.
    training = at(0, 30, 90)
    # 5 degrees from 0; 29 from 0 the other way; 35 from 0; 50 from 90; 61 from 90; a copy of the second.
    images = at(5, -29, -35, 140, 151, 30)
    found = memorization(images, training)
    assert found.row.tolist() == [0, 0, 0, 2, 2, 1]
    assert found.memorized.tolist() == [True, True, False, True, False, True]
    assert found.share == pytest.approx(4 / 6)
    np.testing.assert_allclose(found.similarity, np.cos(np.deg2rad([5, 29, 35, 50, 61, 0])), atol=1e-6)


def test_memorization_is_counted_as_one_would_by_hand_on_many_images():
    images, training = features(80, 5), features(150, 6)
    found = memorization(images, training, tile_rows=13, tile_columns=17)
    unit_images, unit = (side / side.norm(dim=1, keepdim=True) for side in (images, training))
    among = unit @ unit.T
    among.fill_diagonal_(-2)
    to_training = unit_images @ unit.T
    expected = [bool(row.max() > among[row.argmax()].max()) for row in to_training]
    assert found.memorized.tolist() == expected
    assert found.share == pytest.approx(np.mean(expected))


def test_copies_are_memory_even_where_the_training_set_holds_an_image_twice():
    for training in (features(40, 7), features(40, 7).float(), torch.cat([features(40, 7), features(40, 7)])):
        assert memorization(training, training).share == 1


@pytest.mark.parametrize(("dim", "chance"), [(2, 2 / 3), (3, 6 * math.pi / (8 * math.pi + 3 * math.sqrt(3)))])
def test_new_images_of_the_same_kind_are_as_near_as_mutual_neighbors_are_frequent(dim, chance):
    # Directions in the plane are points on a line, those in space are points on a surface: Clark and Evans 1955.
    found = memorization(features(4000, 8, dim), features(4000, 9, dim))
    assert found.share == pytest.approx(chance, abs=4 * (chance * (1 - chance) / 4000) ** 0.5)


def test_confidence_is_the_largest_probability():
    logits = torch.tensor([[0.1, 0.0], [0.0, 0.0], [6.0, -6.0]])
    found = confidence(logits, 0.1)
    assert found.tolist() == pytest.approx([math.e / (math.e + 1), 0.5, 1.0])
    assert confidence(logits.bfloat16(), 0.1).dtype == torch.float32
    assert confidence(torch.zeros(3, 7, dtype=torch.float64), 0.1).tolist() == pytest.approx([1 / 7] * 3)


@pytest.mark.parametrize(("logits", "temperature"), [(torch.zeros(3), 0.1), (torch.zeros(3, 2), 0.0)])
def test_confidence_refuses_what_it_cannot_take(logits, temperature):
    with pytest.raises(ValueError, match=r"logits must|temperature must"):
        confidence(logits, temperature)
