import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cedm_ray.data.order import TrainingOrder


def test_every_epoch_visits_every_image_exactly_once():
    order = TrainingOrder(num_images=17, seed=3)
    for epoch in range(5):
        assert sorted(order.rows(17 * epoch, 17)) == list(range(17))


@given(
    num_images=st.integers(1, 30),
    seed=st.integers(0, 2**63),
    seen=st.integers(0, 200),
    batches=st.lists(st.integers(0, 70), max_size=6),
)
@settings(max_examples=100, deadline=None)
def test_any_split_into_batches_reads_the_same_rows(num_images, seed, seen, batches):
    order = TrainingOrder(num_images=num_images, seed=seed)
    whole = order.rows(seen, sum(batches))
    starts = seen + np.cumsum([0, *batches])
    pieces = [order.rows(int(start), count) for start, count in zip(starts, batches, strict=False)]
    assert np.array_equal(whole, np.concatenate([*pieces, np.empty(0, np.int64)]))


def test_rows_are_the_permutations_of_the_epochs_laid_end_to_end():
    """The permutation of (seed, epoch) written down from NumPy's own documentation of seed sequences."""
    permutations = [
        np.random.Generator(np.random.PCG64(np.random.SeedSequence([7, e]))).permutation(10) for e in (0, 1)
    ]
    rows = TrainingOrder(num_images=10, seed=7).rows(4, 12)
    assert rows.dtype == np.int64
    assert np.array_equal(rows, np.concatenate(permutations)[4:16])


def test_far_positions_need_no_walk_through_the_earlier_ones():
    order = TrainingOrder(num_images=50_000, seed=0)
    assert len(np.unique(order.rows(50_000 * 10**12, 50_000))) == 50_000


def test_seeds_and_epochs_give_different_orders():
    rows = [TrainingOrder(num_images=100, seed=s).rows(100 * e, 100).tobytes() for s in range(4) for e in range(4)]
    assert len(set(rows)) == 16


def test_the_caller_may_write_into_the_rows():
    order = TrainingOrder(num_images=5, seed=0)
    order.rows(0, 5)[:] = 0
    assert sorted(order.rows(0, 5)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: TrainingOrder(num_images=0, seed=0), "num_images must be at least 1, got 0"),
        (lambda: TrainingOrder(num_images=1, seed=-1), "seed must be at least 0, got -1"),
        (lambda: TrainingOrder(num_images=1, seed=0).rows(-1, 1), "images_seen must be at least 0, got -1"),
        (lambda: TrainingOrder(num_images=1, seed=0).rows(0, -1), "count must be at least 0, got -1"),
    ],
)
def test_arguments_out_of_range_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
