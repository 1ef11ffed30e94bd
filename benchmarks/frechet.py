"""How much faster is our Fréchet distance than one with scipy's matrix square root, on the same statistics?

The other side is what pytorch-fid and clean-fid do once they have both means and covariances: `scipy.linalg.sqrtm` of
the product of the two covariances, and its trace. Everything runs in one process on one thread, in turns; the first
round is thrown away and the medians of the CPU time are compared. The covariances have a condition number of about
10^4. The second case has fewer samples than dimensions, as a rung has that generates fewer images than its detector has
features (evaluation.num_samples below 2048 with Inception-v3; the default of 10,000 is not such a case).

    python benchmarks/frechet.py              # about 3 minutes on one core
    python benchmarks/frechet.py --dim 512    # seconds

Expected at D = 2048: at least 6 times with the reference's factor cached, at least 30 times with 500 samples, and a
relative difference below 1e-8 wherever the matrix square root exists. The last line is JSON.
"""

import argparse
import json
import os
import platform
import time
import warnings
from collections.abc import Callable
from statistics import median

import numpy as np
import scipy
import scipy.linalg
import torch
from threadpoolctl import threadpool_limits

from cedm_ray.metrics.frechet import frechet_distance, frechet_distance_low_rank, frechet_reference
from cedm_ray.metrics.statistics import FeatureStatistics

Moments = tuple[np.ndarray, np.ndarray]


def features(count: int, dim: int, seed: int, scale: float) -> torch.Tensor:
    """Gaussian features [count, dim], float64, whose covariance has a condition number of about 10^4."""
    generator = torch.Generator().manual_seed(seed)
    deviations = torch.logspace(0, -2, dim, dtype=torch.float64) * scale
    return torch.randn(count, dim, generator=generator, dtype=torch.float64) * deviations


def by_matrix_root(a: Moments, b: Moments) -> float:
    (mean_a, covariance_a), (mean_b, covariance_b) = a, b
    root = scipy.linalg.sqrtm(covariance_a @ covariance_b)
    difference = mean_a - mean_b
    return float(difference @ difference + np.trace(covariance_a) + np.trace(covariance_b) - 2 * np.trace(root).real)


def moments(statistics: FeatureStatistics) -> Moments:
    return statistics.mean.numpy(), statistics.covariance.numpy()


def in_turns(calls: dict[str, Callable[[], float]], rounds: int) -> dict[str, dict[str, float]]:
    """Run every call once a round, drop the first round; value, median CPU seconds and median wall seconds of each."""
    value, cpu, wall = {}, {name: [] for name in calls}, {name: [] for name in calls}
    for _ in range(rounds + 1):
        for name, call in calls.items():
            cpu_start, wall_start = time.process_time(), time.perf_counter()
            value[name] = call()
            cpu[name].append(time.process_time() - cpu_start)
            wall[name].append(time.perf_counter() - wall_start)
    return {
        name: {"value": value[name], "cpu_s": median(cpu[name][1:]), "wall_s": median(wall[name][1:])} for name in calls
    }


def compare(title: str, figures: dict[str, dict[str, float]], baseline: str, exact: str) -> dict[str, float]:
    """Print one case, values beside the one named `exact`; returns the baseline's CPU time over each one's."""
    print(f"\n{title}")
    ratios = {}
    for name, figure in figures.items():
        ratios[name] = figures[baseline]["cpu_s"] / figure["cpu_s"]
        off = abs(figure["value"] / figures[exact]["value"] - 1)
        print(
            f"  {name:<44} {figure['cpu_s']:9.3f} s CPU {figure['wall_s']:9.3f} s wall {ratios[name]:8.1f}x"
            f"   d² = {figure['value']:.10g} (off by {off:.0e})"
        )
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--dim", type=int, default=2048, help="feature width D (default 2048, Inception-v3)")
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds after the first one (default 3)")
    options = parser.parse_args()
    dim, few = options.dim, max(2, options.dim // 4)
    torch.set_num_threads(1)

    reference = FeatureStatistics.of(features(5 * dim, dim, seed=0, scale=1.0))
    many_statistics = FeatureStatistics.of(features(5 * dim, dim, seed=1, scale=1.1))
    few_features = features(few, dim, seed=2, scale=1.1)
    few_statistics = FeatureStatistics.of(few_features)
    of_reference, of_many, of_few = moments(reference), moments(many_statistics), moments(few_statistics)
    factor = frechet_reference(reference)

    root, cached, uncached, low_rank = "scipy.linalg.sqrtm", "ours, factor cached", "ours, both sides", "ours, low rank"
    # A singular product makes sqrtm warn; the figure beside it says how far off it is.
    with threadpool_limits(limits=1), warnings.catch_warnings(action="ignore"):
        print(f"Fréchet distance, D = {dim}, one thread, {options.rounds} timed rounds in turns, median CPU time")
        full = in_turns(
            {
                root: lambda: by_matrix_root(of_many, of_reference),
                cached: lambda: frechet_distance(many_statistics, factor),
                uncached: lambda: frechet_distance(many_statistics, reference),
            },
            options.rounds,
        )
        full_ratios = compare(
            f"{5 * dim} samples on each side, differences to {root}:", full, baseline=root, exact=root
        )
        scarce = in_turns(
            {
                low_rank: lambda: frechet_distance_low_rank(few_features, factor),
                cached: lambda: frechet_distance(few_statistics, factor),
                root: lambda: by_matrix_root(of_few, of_reference),
                root + " + 1e-6 on both diagonals": lambda: by_matrix_root(
                    (of_few[0], of_few[1] + 1e-6 * np.eye(dim)), (of_reference[0], of_reference[1] + 1e-6 * np.eye(dim))
                ),
            },
            options.rounds,
        )
        title = f"{few} samples against {5 * dim}, differences to the low-rank form, which is exact:"
        few_ratios = compare(title, scarce, baseline=root, exact=low_rank)
    result = {
        "benchmark": "frechet",
        "dim": dim,
        "ratio": round(full_ratios[cached], 2),
        "ratio_both_sides": round(full_ratios[uncached], 2),
        "ratio_low_rank": round(few_ratios[low_rank], 2),
        "relative_difference_to_sqrtm": abs(full[cached]["value"] / full[root]["value"] - 1),
        "full": full,
        "few": scarce,
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "load_average": os.getloadavg()[0],
            "torch": torch.__version__,
            "scipy": scipy.__version__,
        },
    }
    print("\n" + json.dumps(result))


if __name__ == "__main__":
    main()
