"""The Fréchet distance against closed forms, clean-fid, scipy's matrix square root and method.md's golden number."""

import warnings

import cleanfid.fid
import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cedm_ray.errors import InputDataError, SecurityError
from cedm_ray.metrics import frechet
from cedm_ray.metrics.frechet import (
    collapsed,
    frechet_distance,
    frechet_distance_low_rank,
    frechet_reference,
    read_reference,
    reference_from_moments,
    write_reference,
)
from cedm_ray.metrics.statistics import FeatureStatistics


def gaussian(count: int, dim: int, seed: int, scale: float = 1.0, shift: float = 0.0) -> torch.Tensor:
    """Correlated features [count, dim]."""
    random = np.random.default_rng(seed)
    mixing = random.normal(size=(dim, dim)) / dim**0.5
    return torch.from_numpy(random.normal(size=(count, dim)) @ mixing * scale + shift)


def statistics_with(mean: np.ndarray, covariance: np.ndarray, count: int = 1000) -> FeatureStatistics:
    """Statistics that have exactly this mean and covariance."""
    outer = (count - 1) * covariance + count * np.outer(mean, mean)
    return FeatureStatistics(count=count, sum=torch.from_numpy(count * mean), outer=torch.from_numpy(outer))


def by_scipy(a: torch.Tensor, b: torch.Tensor) -> float:
    cov_a, cov_b = np.cov(a.numpy(), rowvar=False), np.cov(b.numpy(), rowvar=False)
    root = scipy.linalg.sqrtm(cov_a @ cov_b).real
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a + cov_b - 2 * root))


def test_golden_number():
    stream = np.random.RandomState(0)
    a = torch.from_numpy(stream.randn(200, 5))
    b = torch.from_numpy(stream.randn(300, 5) * 1.3 + 0.2)
    of_a, of_b = FeatureStatistics.of(a), FeatureStatistics.of(b)
    assert frechet_distance(of_a, of_b) == pytest.approx(0.7202624298, abs=5e-11)
    assert frechet_distance_low_rank(a, of_b) == pytest.approx(0.7202624298, abs=5e-11)


def test_one_dimension_is_the_textbook_formula():
    a = statistics_with(np.array([1.0]), np.array([[4.0]]))
    b = statistics_with(np.array([-2.0]), np.array([[25.0]]))
    assert frechet_distance(a, b) == pytest.approx(3**2 + (5 - 2) ** 2, rel=1e-12)


def test_commuting_covariances_have_a_closed_form():
    random = np.random.default_rng(3)
    basis = scipy.stats.ortho_group.rvs(12, random_state=1)
    values_a, values_b = random.uniform(0.01, 5, 12), random.uniform(0.01, 5, 12)
    mean_a, mean_b = random.normal(size=(2, 12))
    a = statistics_with(mean_a, (basis * values_a) @ basis.T)
    b = statistics_with(mean_b, (basis * values_b) @ basis.T)
    expected = ((mean_a - mean_b) ** 2).sum() + ((np.sqrt(values_a) - np.sqrt(values_b)) ** 2).sum()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-11)


def test_equals_scipy_on_full_rank_covariances():
    a, b = gaussian(400, 24, seed=1), gaussian(300, 24, seed=2, scale=1.2, shift=0.1)
    assert frechet_distance(FeatureStatistics.of(a), FeatureStatistics.of(b)) == pytest.approx(by_scipy(a, b), rel=1e-9)


@pytest.mark.parametrize("count", [2, 3, 10, 23, 24, 25, 60])
def test_fewer_images_than_dimensions_agree_in_both_forms(count):
    a, b = gaussian(count, 24, seed=1), gaussian(300, 24, seed=2, scale=1.2, shift=0.1)
    reference = frechet_reference(FeatureStatistics.of(b))
    exact = frechet_distance_low_rank(a, reference)
    assert frechet_distance(FeatureStatistics.of(a), reference) == pytest.approx(exact, rel=1e-10)
    # The square root of a singular product is what scipy cannot do well; the nearby regular one is within its error.
    product = np.cov(a.numpy(), rowvar=False) @ np.cov(b.numpy(), rowvar=False)
    eigenvalues = np.sort(np.linalg.eigvals(product).real)[::-1][: count - 1].clip(0)
    traces = np.trace(np.cov(a.numpy(), rowvar=False)) + np.trace(np.cov(b.numpy(), rowvar=False))
    means = float(((a.mean(0) - b.mean(0)) ** 2).sum())
    assert exact == pytest.approx(means + traces - 2 * np.sqrt(eigenvalues).sum(), rel=1e-6)


def test_both_sides_of_low_rank_in_different_subspaces():
    # A lives in the first axes, B in the last ones: the products vanish and only the traces stay.
    a, b = torch.zeros(50, 8, dtype=torch.float64), torch.zeros(40, 8, dtype=torch.float64)
    a[:, :3], b[:, 5:] = gaussian(50, 3, seed=1), gaussian(40, 3, seed=2)
    of_a, of_b = FeatureStatistics.of(a), FeatureStatistics.of(b)
    expected = float((of_a.mean - of_b.mean).square().sum() + (of_a.covariance + of_b.covariance).trace())
    assert frechet_distance(of_a, of_b) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("count", "dim"), [(300, 24), (10, 24), (2, 24)])
def test_identical_sets_have_distance_zero(count, dim):
    data = gaussian(count, dim, seed=5, shift=2.0)
    statistics = FeatureStatistics.of(data)
    spread = float(statistics.covariance.trace())
    assert 0 <= frechet_distance(statistics, statistics) < 1e-11 * spread
    assert 0 <= frechet_distance_low_rank(data, statistics) < 1e-11 * spread


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    count_a=st.integers(2, 40),
    count_b=st.integers(2, 40),
    dim=st.integers(1, 12),
    scale=st.floats(0.01, 100),
)
def test_symmetric_and_unchanged_by_rotation(seed, count_a, count_b, dim, scale):
    a, b = gaussian(count_a, dim, seed, scale), gaussian(count_b, dim, seed + 1, shift=1.0)
    of_a, of_b = FeatureStatistics.of(a), FeatureStatistics.of(b)
    distance = frechet_distance(of_a, of_b)
    size = float(of_a.outer.trace() / count_a + of_b.outer.trace() / count_b)
    assert distance == pytest.approx(frechet_distance(of_b, of_a), abs=1e-7 * size)
    rotation = torch.linalg.qr(torch.from_numpy(np.random.default_rng(seed).normal(size=(dim, dim))))[0]
    turned = frechet_distance(FeatureStatistics.of(a @ rotation), FeatureStatistics.of(b @ rotation))
    assert turned == pytest.approx(distance, abs=1e-7 * size)
    assert frechet_distance_low_rank(a, of_b) == pytest.approx(distance, abs=1e-7 * size)


def test_a_cached_factor_gives_the_same_number():
    a, b = FeatureStatistics.of(gaussian(90, 24, seed=1)), FeatureStatistics.of(gaussian(80, 24, seed=2))
    assert frechet_distance(a, frechet_reference(b)) == frechet_distance(a, b)


def test_images_that_are_all_alike_are_collapsed():
    data = gaussian(100, 6, seed=1)
    reference = FeatureStatistics.of(data)
    # The spread goes with the square: 0.0009 and 0.0011 of the reference's.
    pale, barely = FeatureStatistics.of(data * 0.03), FeatureStatistics.of(data * 0.0332)
    constant = FeatureStatistics.of(torch.ones(100, 6))
    for side in (reference, frechet_reference(reference)):
        assert collapsed(constant, side)
        assert collapsed(pale, side)
        assert not collapsed(barely, side)
        assert not collapsed(reference, side)


def test_wrong_sides_are_refused():
    good = FeatureStatistics.of(gaussian(10, 4, seed=1))
    narrow = FeatureStatistics.of(gaussian(10, 3, seed=1))
    single = FeatureStatistics.of(gaussian(1, 4, seed=1))
    broken = FeatureStatistics(count=10, sum=good.sum, outer=good.outer * float("nan"))
    for call in (frechet_distance, collapsed):
        with pytest.raises(ValueError, match="same width, got D = 3 and 4"):
            call(narrow, good)
        with pytest.raises(ValueError, match="at least 2 images, got 1"):
            call(single, good)
        with pytest.raises(ValueError, match="at least 2 images, got 1"):
            call(good, single)
        for sides in ((broken, good), (good, broken)):
            with pytest.raises(ValueError, match="finite"):
                call(*sides)
    with pytest.raises(ValueError, match="same width"):
        frechet_distance_low_rank(gaussian(5, 3, seed=1), good)
    with pytest.raises(ValueError, match="at least 2 images, got 1"):
        frechet_distance_low_rank(gaussian(1, 4, seed=1), good)
    with pytest.raises(ValueError, match="finite"):
        frechet_distance_low_rank(torch.full((5, 4), float("inf")), good)


def test_the_number_is_that_of_torch_fidelity():
    # torch-fidelity 0.4.0, fid_features_to_statistics of both and fid_statistics_to_metric.
    stream = np.random.RandomState(0)
    a = torch.from_numpy(stream.standard_normal((120, 8)))
    b = torch.from_numpy(stream.standard_normal((150, 8)) * 1.3 + 0.4)
    expected = 2.7526585801764405
    assert frechet_distance(FeatureStatistics.of(a), FeatureStatistics.of(b)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("count", "other", "dim"), [(120, 150, 8), (700, 900, 96)])
def test_the_number_is_that_of_clean_fid(count, other, dim):
    a, b = gaussian(count, dim, seed=1), gaussian(other, dim, seed=2, scale=1.2, shift=0.1)
    with warnings.catch_warnings():
        # It asks SciPy for what newer versions are about to drop.
        warnings.simplefilter("ignore", DeprecationWarning)
        moments = [moment for side in (a.numpy(), b.numpy()) for moment in (side.mean(0), np.cov(side, rowvar=False))]
        expected = cleanfid.fid.frechet_distance(*moments)
    assert frechet_distance(FeatureStatistics.of(a), FeatureStatistics.of(b)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("count", [None, 300])
@pytest.mark.parametrize(("dtype", "rel"), [(np.float64, 1e-12), (np.float32, 1e-4)])
def test_moments_from_elsewhere_are_a_reference(count, dtype, rel):
    a, b = (FeatureStatistics.of(gaussian(300, 24, seed=seed)) for seed in (1, 2))
    factor = reference_from_moments(b.mean.numpy().astype(dtype), b.covariance.numpy().astype(dtype), count)
    assert frechet_distance(a, factor) == pytest.approx(frechet_distance(a, b), rel=rel)
    assert frechet_distance(b, factor) == pytest.approx(0, abs=1e-4)
    assert not collapsed(a, factor)


def test_moments_of_fewer_images_than_dimensions_know_their_rank():
    a, b = FeatureStatistics.of(gaussian(300, 24, seed=1)), FeatureStatistics.of(gaussian(10, 24, seed=2))
    factor = reference_from_moments(b.mean.numpy(), b.covariance.numpy(), 10)
    assert frechet_distance(a, factor) == pytest.approx(frechet_distance(a, b), rel=1e-12)


@pytest.mark.parametrize(
    ("mu", "sigma", "count", "message"),
    [
        (np.zeros(3), np.eye(2), None, r"\[D\] and \[D, D\], got \(3,\) and \(2, 2\)"),
        (np.zeros((1, 2)), np.eye(2), None, r"\[D\] and \[D, D\]"),
        (np.zeros(2), np.full((2, 2), np.nan), None, "sigma must be finite"),
        (np.array([0, np.inf]), np.eye(2), None, "mu must be finite"),
        (np.zeros(2, dtype=int), np.eye(2), None, "mu must be of a floating type"),
        (np.zeros(2), np.array([[1.0, 0.5], [0.0, 1.0]]), None, "symmetric"),
        (np.zeros(2), np.array([[1.0, 2.0], [2.0, 1.0]]), None, "eigenvalue of -1"),
        (np.zeros(2), -np.eye(2), None, "eigenvalue of -1"),
        (np.zeros(2), np.eye(2), 1, "at least 2 images, got 1"),
    ],
)
def test_moments_of_nothing_are_refused(mu, sigma, count, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        reference_from_moments(mu, sigma, count)
    arrays = {"mu": mu, "sigma": sigma} | ({} if count is None else {"count": count})
    np.savez(tmp_path / "reference.npz", **arrays)
    with pytest.raises(InputDataError, match=rf"reference.npz.*{message}"):
        read_reference(tmp_path / "reference.npz")


def test_a_written_reference_is_read_back(tmp_path):
    path = tmp_path / "folder" / "reference.npz"
    a, b = (FeatureStatistics.of(gaussian(300, 24, seed=seed)) for seed in (1, 2))
    write_reference(path, b)
    with np.load(path, allow_pickle=False) as file:
        np.testing.assert_allclose(file["mu"], b.mean, rtol=0)
        np.testing.assert_allclose(file["sigma"], b.covariance, rtol=0)
    factor = read_reference(path)
    assert factor.count == 300
    assert frechet_distance(a, factor) == pytest.approx(frechet_distance(a, b), rel=1e-12)


def test_a_reference_without_a_count_is_read(tmp_path):
    b = FeatureStatistics.of(gaussian(300, 24, seed=2))
    np.savez_compressed(tmp_path / "usual.npz", mu=b.mean.numpy(), sigma=b.covariance.numpy())
    assert read_reference(tmp_path / "usual.npz").count is None


def test_files_that_are_no_reference_are_refused(tmp_path):
    for name, data in (("text.npz", b"mu and sigma"), ("empty.npz", b""), ("zip.npz", b"PK\x03\x04 torn")):
        (tmp_path / name).write_bytes(data)
    np.save(tmp_path / "array.npy", np.eye(3))
    np.savez(tmp_path / "other.npz", labels=np.zeros(3))
    np.savez(tmp_path / "torn.npz", mu=np.zeros(300), sigma=np.eye(300))
    torn = (tmp_path / "torn.npz").read_bytes()
    (tmp_path / "torn.npz").write_bytes(torn[:900] + b"\xff" * 500 + torn[1400:])
    for name in ("text.npz", "empty.npz", "zip.npz", "array.npy", "other.npz", "torn.npz", "missing.npz", "."):
        with pytest.raises(InputDataError, match=name):
            read_reference(tmp_path / name)


def test_pickled_objects_and_floods_are_not_read(tmp_path, monkeypatch):
    np.savez(tmp_path / "object.npz", mu=np.array([{}], dtype=object), sigma=np.eye(1))
    np.savez_compressed(tmp_path / "flood.npz", mu=np.zeros(400), sigma=np.zeros((400, 400)))
    monkeypatch.setattr(frechet, "MAX_REFERENCE_BYTES", 1_000_000)
    with pytest.raises(SecurityError, match=r"object.npz holds pickled"):
        read_reference(tmp_path / "object.npz")
    with pytest.raises(SecurityError, match=r"flood.npz would unpack to 1,\d+,\d+ bytes"):
        read_reference(tmp_path / "flood.npz")
