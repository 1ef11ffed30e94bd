"""Each kind of measure gets the sides that it is about; the measures themselves are tested in their own room."""

import numpy as np
import pytest
import scipy.linalg
import torch

from cedm_ray.evaluation.gathering import Network, Summary
from cedm_ray.evaluation.scores import MEASURES
from cedm_ray.evaluation.values import Material, is_collapsed, values
from cedm_ray.metrics.frechet import frechet_reference
from cedm_ray.metrics.statistics import FeatureStatistics

NET = Network(spec="pixels")


def features_of(seed, count=200, shift=0.0):
    return (np.random.default_rng(seed).normal(size=(count, 6)) + shift).astype(np.float32)


def summary(features, blocks=2):
    parts = tuple(FeatureStatistics.of(torch.from_numpy(features[start::blocks])) for start in range(blocks))
    return Summary(statistics=sum(parts[1:], parts[0]), blocks=parts, rows=features)


class Head:
    """Takes features for logits."""

    temperature = 0.5

    def __call__(self, features):
        return features


@pytest.fixture
def material():
    reference = features_of(0, 300)
    return Material(
        sets=[{NET: summary(features_of(1, shift=0.5))}, {NET: summary(features_of(2, shift=0.5))}],
        factors={NET: frechet_reference(summary(reference).statistics)},
        rows={NET: reference},
        unconditional=[{NET: summary(features_of(1, shift=0.5))}, {NET: summary(features_of(3))}],
        test={NET: features_of(4)},
        training={NET: reference},
        head=Head(),
    )


def test_frechet_is_the_textbook_formula_for_each_set(material):
    (column,) = values(MEASURES["fd"], NET, material)
    a = material.rows[NET].astype(float)
    for (value, error), sets in zip(column, material.sets, strict=True):
        b = sets[NET].rows.astype(float)
        root = scipy.linalg.sqrtm(np.cov(a.T) @ np.cov(b.T)).real
        expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
        assert value == pytest.approx(expected, rel=1e-5)
        assert error is None


def test_the_unconditional_model_is_compared_set_by_set(material):
    ((same, other),) = values(MEASURES["ufd"], NET, material)
    assert same[0] == pytest.approx(0, abs=1e-9)
    assert other[0] > 0.5


def test_kernel_distance_comes_with_its_error_and_takes_small_sets(material):
    (column,) = values(MEASURES["kd"], NET, material)
    assert all(error > 0 for _, error in column)
    material.sets = [{NET: summary(material.rows[NET])}]
    ((alike, error),) = values(MEASURES["kd"], NET, material)[0]
    assert abs(alike) < 5 * error


def test_identical_sets_have_full_precision_and_recall(material):
    material.sets = [{NET: summary(material.rows[NET])}]
    precision, recall, _, coverage = values(MEASURES["prdc"], NET, material)
    assert precision == recall == coverage == [(1.0, None)]


def test_copies_are_found_and_held_against_test_images(material):
    material.sets = [{NET: summary(material.rows[NET][:100])}]
    share, similarity, test = values(MEASURES["memorization"], NET, material)
    assert share[0][0] == 1
    assert similarity[0][0] == pytest.approx(1)
    assert test[0][0] < 0.9
    del material.test[NET]
    assert len(values(MEASURES["memorization"], NET, material)) == 2


def test_novelty_is_a_half_for_more_test_images_and_high_for_what_is_far(material):
    material.sets = [{NET: summary(features_of(5, 2000))}]
    ((even, _),) = values(MEASURES["auroc"], NET, material)[0]
    assert even == pytest.approx(0.5, abs=0.05)
    material.training = {NET: material.training[NET] + np.float32(3)}
    material.test = {NET: features_of(6) + np.float32(3)}
    ((far, _),) = values(MEASURES["auroc"], NET, material)[0]
    assert far > 0.9


def test_confidence_is_the_largest_probability(material):
    ((value, _), _) = values(MEASURES["msp"], NET, material)[0]
    expected = scipy.special.softmax(material.sets[0][NET].rows / 0.5, axis=1).max(1).mean()
    assert value == pytest.approx(expected, rel=1e-5)


def test_inception_score_of_certain_and_even_classes_is_their_number(material):
    material.sets = [{NET: summary(np.tile(np.eye(5, dtype=np.float32), (20, 1)))}]
    ((value, _),), ((std, _),) = values(MEASURES["is"], NET, material)
    assert (value, std) == (pytest.approx(5), pytest.approx(0, abs=1e-12))
    # 8 shares of 5 and 2 that see one class only.
    ordered = np.concatenate([np.tile(np.eye(5, dtype=np.float32), (16, 1)), np.tile(np.eye(5)[:1], (20, 1))])
    material.sets = [{NET: summary(ordered.astype(np.float32))}]
    ((value, _),), ((std, _),) = values(MEASURES["is"], NET, material)
    assert (value, std) == (pytest.approx(4.2), pytest.approx(1.6))


def test_images_all_alike_are_collapsed(material):
    assert not is_collapsed(NET, material)
    material.sets.append({NET: summary(np.ones((50, 6), dtype=np.float32))})
    assert is_collapsed(NET, material)
    assert is_collapsed(Network(spec="another"), material) is None


def test_rows_and_other_statistics_tell_as_much_where_there_is_no_distance(material):
    alike = np.ones((50, 6), dtype=np.float32)
    for kept in ("rows", "training", "unconditional"):
        own = Material(**{kept: getattr(material, kept)})
        own.sets = [{NET: Summary(statistics=None, blocks=(), rows=features_of(1))}]
        assert is_collapsed(NET, own) is False
        own.sets.append({NET: Summary(statistics=None, blocks=(), rows=alike)})
        assert is_collapsed(NET, own) is True
    assert is_collapsed(NET, Material(sets=material.sets)) is None
