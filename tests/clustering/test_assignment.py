import numpy as np
import pytest

from cedm_ray.clustering.assignment import ClusterAssignment


def assignment(labels, num_clusters=5):
    return ClusterAssignment(labels=np.array(labels, dtype=np.int32), num_clusters=num_clusters, method="by hand")


def test_hand_worked_case():
    a = assignment([4, 1, 1, 4, 3, 1])
    assert a.num_used == 3
    assert a.utilization == 3 / 5
    assert a.counts.tolist() == [0, 3, 0, 1, 2]
    assert a.used_ids.tolist() == [1, 3, 4]
    assert a.compact_labels.tolist() == [2, 0, 0, 2, 1, 0]
    assert a.compact_counts.tolist() == [3, 1, 2]
    np.testing.assert_allclose(a.distribution, [0, 1 / 2, 0, 1 / 6, 1 / 3], rtol=1e-15)
    assert a.counts.dtype == a.compact_labels.dtype == a.compact_counts.dtype == np.int64


def test_compact_labels_point_back_to_the_original_ids():
    labels = np.random.default_rng(0).integers(0, 40, 30)
    a = assignment(labels, 40)
    assert (a.used_ids[a.compact_labels] == labels).all()
    assert (np.bincount(a.compact_labels) == a.compact_counts).all()
    assert a.used_ids.tolist() == sorted(set(labels.tolist()))


def test_arrays_cannot_be_changed_from_inside_or_outside():
    labels = np.zeros(3, dtype=np.int32)
    a = ClusterAssignment(labels=labels, num_clusters=2, method="by hand")
    labels[0] = 1
    assert a.labels.tolist() == [0, 0, 0]
    for array in (a.labels, a.counts, a.distribution, a.used_ids, a.compact_labels, a.compact_counts):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros(3, dtype=np.int64), "int32, got int64"),
        ([0, 1], "int32, got list"),
        (np.zeros((2, 2), dtype=np.int32), r"vector \[N\], got shape \(2, 2\)"),
        (np.zeros(0, dtype=np.int32), "non-empty"),
        (np.array([0, 1, 2, 5], dtype=np.int32), r"\[0, 2\), got 2 at row 2 \(2 such rows\)"),
        (np.array([0, -1], dtype=np.int32), r"\[0, 2\), got -1 at row 1"),
    ],
)
def test_labels_that_break_a_rule_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        ClusterAssignment(labels=labels, num_clusters=2, method="by hand")


def test_a_number_of_clusters_below_one_is_refused():
    with pytest.raises(ValueError, match="num_clusters must be at least 1, got 0"):
        assignment([0], 0)
