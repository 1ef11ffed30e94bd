"""The kernel distance against torch-fidelity's and clean-fid's numbers, loops, a closed form, and its own scatter."""

import cleanfid.fid
import numpy as np
import pytest
import torch

from cedm_ray.metrics.kernel import kernel_distance


def two_sets() -> tuple[torch.Tensor, torch.Tensor]:
    stream = np.random.RandomState(0)
    a = torch.from_numpy(stream.standard_normal((120, 8)))
    return a, torch.from_numpy(stream.standard_normal((150, 8)) * 1.3 + 0.4)


def by_double_loop(x: np.ndarray, y: np.ndarray) -> float:
    def kernel(u, v):
        return (float(u @ v) / len(u) + 1) ** 3

    m = len(x)
    within_x = sum(kernel(x[i], x[j]) for i in range(m) for j in range(m) if i != j)
    within_y = sum(kernel(y[i], y[j]) for i in range(m) for j in range(m) if i != j)
    between = sum(kernel(x[i], y[j]) for i in range(m) for j in range(m))
    return (within_x + within_y) / (m * (m - 1)) - 2 * between / m**2


@pytest.mark.parametrize(("seed", "expected"), [(0, 1.2104980288730365), (7, 1.2285367871768975)])
def test_the_value_is_that_of_torch_fidelity(seed, expected):
    # torch-fidelity 0.4.0, kid_features_to_metric(a, b, kid_subsets=20, kid_subset_size=50, rng_seed=seed).
    found = kernel_distance(*two_sets(), num_subsets=20, subset_size=50, seed=seed)
    assert found.value == pytest.approx(expected, rel=1e-12)


def test_the_value_is_that_of_clean_fid():
    # Its subsets are drawn without a seed, but one of all images is the same however it is drawn.
    a, b = two_sets()
    expected = cleanfid.fid.kernel_distance(a.numpy(), b[:120].numpy(), num_subsets=1, max_subset_size=120)
    assert kernel_distance(a, b[:120], num_subsets=1, subset_size=120).value == pytest.approx(expected, rel=1e-12)


def test_one_subset_of_all_images_is_the_double_loop():
    a, b = two_sets()
    found = kernel_distance(a, b[:120], num_subsets=1, subset_size=120)
    assert found.value == pytest.approx(by_double_loop(a.numpy(), b[:120].numpy()), rel=1e-12)
    assert found.value == pytest.approx(1.2202280465342077, rel=1e-12), "torch-fidelity's number"


def test_two_point_sets_have_a_closed_form():
    # All x are 1 and all y are 3 in one dimension: k(x, x) = 8, k(y, y) = 1000, k(x, y) = 64.
    found = kernel_distance(torch.ones(5, 1), torch.full((6, 1), 3.0), num_subsets=4, subset_size=5)
    assert found.value == pytest.approx(8 + 1000 - 128)
    assert found.standard_error == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_low_precision_features_are_taken_as_they_are(dtype):
    a, b = (side.to(dtype) for side in two_sets())
    low = kernel_distance(a, b, num_subsets=3, subset_size=100)
    exact = kernel_distance(a.double(), b.double(), num_subsets=3, subset_size=100)
    assert low == exact


@pytest.mark.parametrize(
    ("shift", "sizes", "subset_size", "num_subsets"),
    [(0.1, (120, 120), 100, 8), (0.5, (100, 300), 60, 8), (0.5, (120, 120), 120, 1), (0.0, (120, 120), 100, 8)],
)
def test_the_error_is_the_scatter_over_new_images(shift, sizes, subset_size, num_subsets):
    found = []
    for repeat in range(150):
        random = np.random.default_rng(repeat)
        a, b = (torch.from_numpy(random.standard_normal((size, 6))) for size in sizes)
        found.append(kernel_distance(a, b + shift, num_subsets=num_subsets, subset_size=subset_size, seed=repeat))
    scatter = np.std([one.value for one in found])
    claimed = np.sqrt(np.mean([one.standard_error**2 for one in found]))
    # The scatter of 150 values is itself known to a sixteenth; without any difference the error errs on the wide side.
    assert 0.8 * scatter < claimed < 1.35 * scatter
    if shift == 0:
        assert abs(np.mean([one.value for one in found])) < 3 * scatter / 150**0.5, "unbiased"


def test_more_subsets_of_the_same_images_do_not_make_the_error_vanish():
    few = kernel_distance(*two_sets(), num_subsets=10, subset_size=50)
    many = kernel_distance(*two_sets(), num_subsets=200, subset_size=50)
    assert many.standard_error > 0.5 * few.standard_error


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"subset_size": 121}, r"\[2, 120\].*got 121"),
        ({"subset_size": 1}, r"\[2, 120\].*got 1"),
        ({"num_subsets": 0}, "num_subsets must be at least 1"),
        ({"features": torch.zeros(120, 7)}, "same width, got D = 7 and 8"),
        ({"features": torch.full((120, 8), float("inf"))}, "features must be finite"),
        ({"reference": torch.zeros(1, 8)}, "reference must hold at least 2 images, got 1"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    a, b = two_sets()
    with pytest.raises(ValueError, match=message):
        kernel_distance(**({"features": a, "reference": b, "subset_size": 50} | change))
