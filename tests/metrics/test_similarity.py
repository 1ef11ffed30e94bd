"""The tiled cosine search against a whole matrix of cosines in float64."""

import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import cosine_similarity

from cedm_ray.metrics.similarity import most_similar


def features(count: int, dim: int = 6, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("tiles", [(1024, 4096), (7, 5), (1, 3), (50, 1)])
@pytest.mark.parametrize("count", [1, 4])
def test_the_best_of_all_tiles_are_the_best_of_the_whole_matrix(tiles, count):
    queries, keys = features(31), features(47, seed=1)
    cosines, rows = most_similar(queries, keys, count, tile_rows=tiles[0], tile_columns=tiles[1])
    whole = cosine_similarity(queries.double().numpy(), keys.double().numpy())
    expected = np.argsort(-whole, axis=1)[:, :count]
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_allclose(cosines, np.take_along_axis(whole, expected, axis=1), atol=1e-6)


def test_an_image_does_not_find_itself_but_finds_its_duplicate():
    keys = features(20)
    keys[13] = keys[4]
    own = torch.tensor([4, 13, 7])
    cosines, rows = most_similar(keys[own], keys, own_rows=own, tile_columns=6)
    assert rows[:2, 0].tolist() == [13, 4]
    assert cosines[:2, 0].tolist() == pytest.approx([1, 1], abs=1e-6)
    whole = cosine_similarity(keys.double().numpy())
    np.fill_diagonal(whole, -2)
    assert rows[2, 0] == whole[7].argmax()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_lengths_do_not_matter_in_any_type(dtype):
    queries, keys = features(5, dtype=dtype), features(9, seed=1, dtype=dtype)
    cosines, rows = most_similar(queries * 8, keys / 16, 2)
    expected, expected_rows = most_similar(queries, keys, 2)
    assert torch.equal(rows, expected_rows)
    torch.testing.assert_close(cosines, expected)
    assert cosines.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_huge_features_neither_overflow_nor_vanish():
    cosines, _ = most_similar(features(3) * 1e30, features(3) * 1e-30)
    assert cosines.flatten().tolist() == pytest.approx([1, 1, 1], abs=1e-6)


def test_a_row_of_zeros_is_like_nothing():
    cosines, _ = most_similar(torch.zeros(1, 6), features(4))
    assert cosines.item() == 0


@pytest.mark.parametrize(
    ("queries", "keys", "options", "message"),
    [
        (features(3), features(4, dim=5), {}, "same width, got D = 6 and 5"),
        (features(3), features(4), {"count": 5}, r"\[1, 4\], got 5"),
        (features(3), features(4), {"count": 4, "own_rows": torch.arange(3)}, r"\[1, 3\], got 4"),
        (features(3), features(4), {"own_rows": torch.arange(4)}, r"own_rows must have the shape \[3\]"),
        (features(3) * float("nan"), features(4), {}, "queries must be finite"),
        (features(3), features(4)[0], {}, "keys must have the shape"),
    ],
)
def test_what_does_not_fit_is_refused(queries, keys, options, message):
    with pytest.raises(ValueError, match=message):
        most_similar(queries, keys, **options)
