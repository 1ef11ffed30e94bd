import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from cedm_ray.clustering.neighbors import nearest_neighbors


def random_features(num_images, width, seed=0):
    return np.random.default_rng(seed).normal(size=(num_images, width)).astype(np.float32)


@pytest.mark.parametrize("tile", [2048, 301, 300, 29, 7])
def test_neighbors_are_those_of_scikit_learn_whatever_the_tile(tile):
    features = random_features(301, 12)
    oracle = NearestNeighbors(n_neighbors=10, metric="cosine", algorithm="brute").fit(features.astype(np.float64))
    expected = oracle.kneighbors(return_distance=False)  # Without a query, scikit-learn leaves out the point itself.
    got = nearest_neighbors(features, 10, tile=tile)
    assert got.dtype == np.int32
    assert (got == expected).all()


def test_all_others_are_neighbors_when_m_is_n_minus_one():
    got = nearest_neighbors(random_features(20, 4), 19, tile=6)
    assert all(sorted(row) == [j for j in range(20) if j != i] for i, row in enumerate(got.tolist()))


@pytest.mark.parametrize("tile", [4, 5, 1000])
def test_row_i_never_contains_i_even_among_duplicates(tile):
    features = np.repeat(random_features(12, 6), 6, axis=0)
    got = nearest_neighbors(features, 8, tile=tile)
    assert not (got == np.arange(72)[:, None]).any()
    groups = got[:, :5] // 6
    assert (groups == np.arange(72)[:, None] // 6).all()


def test_equal_similarities_are_listed_by_ascending_index():
    # Small integers along the axes, so that every similarity is exactly 0 or 1.
    features = np.eye(2, dtype=np.float32)[[0, 1, 0, 1, 0, 1]]
    got = nearest_neighbors(features, 5, tile=2)
    assert got[0].tolist() == [2, 4, 1, 3, 5]
    assert got[3].tolist() == [1, 5, 0, 2, 4]


def test_length_does_not_matter_not_even_where_float32_squares_overflow():
    features = random_features(50, 8)
    lengths = 10.0 ** np.random.default_rng(1).uniform(-25, 25, size=(50, 1))
    assert (nearest_neighbors(features * lengths, 9) == nearest_neighbors(features, 9)).all()


def test_a_row_of_zeros_has_similarity_zero_to_everything():
    features = np.array([[1, 0], [-1, 0], [0, 0], [1, 0.1]], dtype=np.float32)
    got = nearest_neighbors(features, 3)
    assert got[0].tolist() == [3, 2, 1]
    assert got[2].tolist() == [0, 1, 3]


def test_memory_mapped_features_give_the_same(tmp_path):
    features = random_features(64, 5)
    np.save(tmp_path / "features.npy", features)
    mapped = np.load(tmp_path / "features.npy", mmap_mode="r")
    assert (nearest_neighbors(mapped, 4, tile=10) == nearest_neighbors(features, 4)).all()


def test_arguments_that_break_a_rule_are_refused():
    features = random_features(10, 3)
    with pytest.raises(ValueError, match=r"num_neighbors must lie in \[1, N - 1\] = \[1, 9\], got 10"):
        nearest_neighbors(features, 10)
    with pytest.raises(ValueError, match="got 0"):
        nearest_neighbors(features, 0)
    with pytest.raises(ValueError, match=r"shape \[N, D\], got \(30,\)"):
        nearest_neighbors(features.ravel(), 2)
    with pytest.raises(ValueError, match="tile must be at least 1, got 0"):
        nearest_neighbors(features, 2, tile=0)
    features[7, 1] = np.nan
    with pytest.raises(ValueError, match="finite, got NaN or infinity in row 7"):
        nearest_neighbors(features, 2, tile=4)
