"""Agreement against hand-worked cases, the padded matching of the paper's files, and scikit-learn."""

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from cedm_ray.metrics.agreement import agreement, cluster_sizes


def padded_accuracy(labels: np.ndarray, truth: np.ndarray, num_clusters: int, num_classes: int) -> float:
    """Method.md 4.6 word by word: a square matrix, and a majority vote for clusters matched to a padded class."""
    size = max(num_clusters, num_classes)
    contingency = np.zeros((size, size), dtype=np.int64)
    for cluster, true_class in zip(labels, truth, strict=True):
        contingency[cluster, true_class] += 1
    rows, columns = linear_sum_assignment(contingency.max() - contingency)
    meaning = dict(zip(rows.tolist(), columns.tolist(), strict=True))
    if len(set(labels.tolist())) > num_classes:
        for cluster in set(labels.tolist()):
            if meaning[cluster] >= num_classes:
                meaning[cluster] = int(contingency[cluster].argmax())
    return float(np.mean([meaning[cluster] == true for cluster, true in zip(labels, truth, strict=True)]))


def test_a_case_worked_by_hand():
    # Two clusters share the first class; one to one, only one of them may have it.
    labels = np.array([0, 0, 0, 1, 1, 2])
    truth = np.array([0, 0, 1, 0, 0, 1])
    # Matching: cluster 0 to class 0 (2), cluster 2 to class 1 (1), and cluster 1 is left: its majority is class 0 (2).
    assert agreement(labels, truth).accuracy == pytest.approx(5 / 6)


def test_matched_accuracy_is_not_purity():
    labels, truth = np.array([0, 0, 0, 1, 1, 1]), np.array([0, 0, 1, 0, 0, 1])
    # Both clusters are mostly class 0, but only one may stand for it.
    assert agreement(labels, truth).accuracy == pytest.approx(3 / 6)


def test_the_same_partition_under_other_names_agrees_fully():
    truth = np.repeat(np.arange(5), [3, 4, 5, 6, 7])
    found = agreement(np.array([40, 7, 0, 99, 3], dtype=np.uint16)[truth], truth)
    assert (found.accuracy, found.nmi, found.ami, found.ari) == pytest.approx((1, 1, 1, 1))


def test_random_clusters_agree_by_chance_only():
    random = np.random.default_rng(0)
    found = agreement(random.integers(0, 10, 5000), random.integers(0, 10, 5000))
    assert abs(found.ami) < 0.01
    assert abs(found.ari) < 0.01
    assert found.nmi > found.ami
    assert found.accuracy == pytest.approx(0.1, abs=0.03)


def test_information_of_a_hand_worked_table():
    # Classes halves, clusters quarters: the information is log 2, the entropies log 2 and log 4.
    truth = np.repeat([0, 1], 8)
    labels = np.repeat([0, 1, 2, 3], 4)
    assert agreement(labels, truth).nmi == pytest.approx(math.log(2) / ((math.log(2) + math.log(4)) / 2))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31), num_clusters=st.integers(1, 12), num_classes=st.integers(1, 6))
def test_accuracy_is_that_of_the_padded_square(seed, num_clusters, num_classes):
    random = np.random.default_rng(seed)
    truth = np.concatenate([np.arange(num_classes), random.integers(0, num_classes, 300)])
    labels = np.where(random.random(len(truth)) < 0.6, truth * 2, random.integers(0, num_clusters, len(truth)))
    labels = labels % num_clusters
    got = agreement(labels, truth).accuracy
    # Where two matchings are equally good, the majority votes may differ by the ties; with this many images they do
    # not cost more than a percent.
    assert got == pytest.approx(padded_accuracy(labels, truth, num_clusters, num_classes), abs=0.01)


@pytest.mark.parametrize(
    ("labels", "truth", "message"),
    [
        (np.zeros(3, dtype=int), np.zeros(4, dtype=int), "same shape"),
        (np.zeros((2, 2), dtype=int), np.zeros((2, 2), dtype=int), "same shape"),
        (np.zeros(0, dtype=int), np.zeros(0, dtype=int), "same shape"),
        (np.zeros(3), np.zeros(3, dtype=int), "labels must be integers, got float64"),
        (np.zeros(3, dtype=int), np.zeros(3, dtype=bool), "truth must be integers, got bool"),
    ],
)
def test_labels_that_are_none_are_refused(labels, truth, message):
    with pytest.raises(ValueError, match=message):
        agreement(labels, truth)


def test_sizes_count_used_clusters_only():
    counts = np.array([10, 0, 30, 60])
    sizes = cluster_sizes(counts)
    used = np.array([0.1, 0.3, 0.6])
    assert sizes.kl_from_uniform == pytest.approx(scipy.stats.entropy(np.full(3, 1 / 3), used), rel=1e-12)
    assert sizes.perplexity == pytest.approx(np.exp(scipy.stats.entropy(used)), rel=1e-12)
    assert (sizes.smallest, sizes.largest) == (10, 60)


@pytest.mark.parametrize("clusters", [1, 3, 7, 49])
def test_equal_sizes_have_no_divergence_and_full_perplexity(clusters):
    sizes = cluster_sizes(np.full(clusters, 13))
    assert 0 <= sizes.kl_from_uniform < 1e-12
    assert sizes.perplexity == pytest.approx(clusters)


@pytest.mark.parametrize("counts", [np.zeros(3, dtype=int), np.array([-1, 2]), np.array([0.5]), np.zeros((1, 1), int)])
def test_counts_that_are_none_are_refused(counts):
    with pytest.raises(ValueError, match=r"counts must|hold an image"):
        cluster_sizes(counts)
