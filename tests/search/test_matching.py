"""The mapping of clusters to classes against brute force over all mappings."""

import itertools

import numpy as np
import pytest

from cedm_ray.search.matching import contingency, match_clusters


def brute_force(table):
    """The most images that any one-to-one mapping shares."""
    if len(table) > table.shape[1]:
        table = table.T
    return max(
        sum(table[row, column] for row, column in enumerate(columns))
        for columns in itertools.permutations(range(table.shape[1]), len(table))
    )


@pytest.mark.parametrize(("num_clusters", "num_classes"), [(4, 4), (6, 3), (3, 6), (1, 5), (7, 1)])
def test_mapping_is_the_best_of_all_mappings(num_clusters, num_classes):
    for seed in range(5):
        rng = np.random.default_rng(seed)
        clusters, labels = rng.integers(num_clusters, size=60), rng.integers(num_classes, size=60)
        found = match_clusters(clusters, labels)
        assert sum(match.shared for match in found) == brute_force(contingency(clusters, labels))
        assert len({match.cluster for match in found}) == len({match.label for match in found}) == len(found)


def test_renamed_classes_are_found_again_in_the_order_of_the_classes():
    labels = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2])
    clusters = np.array([5, 5, 3, 0, 0, 3, 3, 3, 3])
    found = match_clusters(clusters, labels)
    assert [(match.label, match.cluster, match.shared) for match in found] == [(0, 5, 2), (1, 0, 2), (2, 3, 4)]
    assert [match.share for match in found] == [1.0, 1.0, 0.8]


def test_a_pair_that_shares_no_image_is_no_pair():
    # Two classes and two clusters, of which one has images of one class only, and the other none of the other.
    found = match_clusters(np.array([0, 0, 2]), np.array([0, 0, 0]))
    assert [(match.cluster, match.label) for match in found] == [(0, 0)]


def test_contingency_counts():
    table = contingency(np.array([0, 2, 2, 2]), np.array([1, 0, 0, 1]))
    assert table.tolist() == [[0, 1], [0, 0], [2, 1]]


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"must be \[N\] each, got \(3,\) and \(2,\)"):
        match_clusters(np.zeros(3, int), np.zeros(2, int))
