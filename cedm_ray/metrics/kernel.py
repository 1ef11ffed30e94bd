"""The kernel distance (KID where the features are Inception's): an unbiased squared maximum mean discrepancy.

n generated images, N reference images, D feature width, m images of a subset.

With the kernel k(x, y) = (x·y / D + 1)³ the squared discrepancy of a subset X of the generated and Y of the reference
images is (Bińkowski et al. 2018, section 4; Gretton et al. 2012, Eq. 3)

    mean k(x, x') over x ≠ x'  +  mean k(y, y') over y ≠ y'  -  2 mean k(x, y)

and the value is its mean over random subsets. It is unbiased, so that, unlike a Fréchet distance, it can be compared
across numbers of images, and can lie below zero where two sets are alike.

The usual "KID ± standard deviation over subsets" is no error of the value: it grows as subsets get smaller, and divided
by the root of their number it can be made as small as one likes by drawing more of them from the same images. The error
given here is that of the images: what the value would scatter by if both sets were drawn again. It follows from
Hoeffding's decomposition of the statistic into the means g of each image's row, which vary with ζ = Var g, and the rest
of the kernel matrix, which after the means of rows and columns are taken out varies with ρ:

    V(n, N) = 4 ζx / n + 4 ζy / N + 2 ρxx / n(n-1) + 2 ρyy / N(N-1) + 4 ρxy / nN

is the variance of the statistic of all images, and the mean of K subsets adds (V(m, m) - V(n, N)) / K to it.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cedm_ray.metrics.statistics import check_features


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelDistance:
    """value: the squared discrepancy, in no unit; lower is better, below 0 by chance. standard_error: of the value.

    The error is that of drawing both sets of images and the subsets anew; at least 0.
    """

    value: float
    standard_error: float


def kernel_distance(
    features: Tensor, reference: Tensor, *, num_subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> KernelDistance:
    """The kernel distance of two sets of features, computed in float64 on the device of `reference`.

    features: [n, D], reference: [N, D], of any floating type. num_subsets: at least 1. subset_size: m, in
    [2, min(n, N)]. seed: of the subsets; torch-fidelity draws the same subsets for the same `rng_seed`, so that the
    values are equal too. Held at once: both sets and a few float64 matrices [m, m].
    Raises ValueError for arguments outside these ranges, different D, or features that are not finite.
    """
    check_features(features, "features", at_least=2)
    check_features(reference, "reference", at_least=2)
    if features.shape[1] != reference.shape[1]:
        raise ValueError(f"both sides must have the same width, got D = {features.shape[1]} and {reference.shape[1]}")
    fewest = min(len(features), len(reference))
    if not 2 <= subset_size <= fewest:
        raise ValueError(f"subset_size must lie in [2, {fewest}], the images of the smaller side, got {subset_size}")
    if num_subsets < 1:
        raise ValueError(f"num_subsets must be at least 1, got {num_subsets}")
    features = features.to(reference.device)
    stream = np.random.RandomState(seed)
    subsets = []
    with torch.no_grad():
        for _ in range(num_subsets):
            x, y = (
                side[torch.from_numpy(stream.choice(len(side), subset_size, replace=False)).to(side.device)].double()
                for side in (features, reference)
            )
            subsets.append(_of_subset(x, y))
    value, *parts = torch.stack(subsets).mean(dim=0).tolist()
    of_images = _variance(parts, len(features), len(reference))
    # A subset scatters as a set of its size does, less what it shares with the others: the images they are drawn from.
    of_subsets = max(_variance(parts, subset_size, subset_size) - of_images, 0.0) / num_subsets
    return KernelDistance(value=value, standard_error=(of_images + of_subsets) ** 0.5)


def _of_subset(x: Tensor, y: Tensor) -> Tensor:
    """The squared discrepancy of a subset, and ζx, ζy, ρxx, ρyy, ρxy as estimated from it: [6]."""
    size = len(x)
    xx, yy, xy = _kernel(x, x), _kernel(y, y), _kernel(x, y)
    for within in (xx, yy):
        within.fill_diagonal_(0)
    mean_xx, mean_yy = xx.sum(dim=1) / (size - 1), yy.sum(dim=1) / (size - 1)
    mean_xy, mean_yx = xy.mean(dim=1), xy.mean(dim=0)
    value = mean_xx.mean() + mean_yy.mean() - 2 * mean_xy.mean()
    rest_xx, rest_yy = _rest_within(xx, mean_xx), _rest_within(yy, mean_yy)
    rest_xy = (xy - mean_xy[:, None] - mean_yx + mean_xy.mean()).square().sum() / (size - 1) ** 2
    # The rows' means are over a subset's images only and scatter by the rest too, which is taken off again.
    zeta_x = (mean_xx - mean_xy).var() - rest_xx / (size - 1) - rest_xy / size
    zeta_y = (mean_yy - mean_yx).var() - rest_yy / (size - 1) - rest_xy / size
    return torch.stack([value, zeta_x, zeta_y, rest_xx, rest_yy, rest_xy])


def _variance(parts: list[float], count_x: int, count_y: int) -> float:
    """Variance of the squared discrepancy of sets of these sizes; an estimated ζ can come out below zero."""
    zeta_x, zeta_y, rest_xx, rest_yy, rest_xy = parts
    return (
        4 * max(zeta_x, 0.0) / count_x
        + 4 * max(zeta_y, 0.0) / count_y
        + 2 * rest_xx / (count_x * (count_x - 1))
        + 2 * rest_yy / (count_y * (count_y - 1))
        + 4 * rest_xy / (count_x * count_y)
    )


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _rest_within(kernel: Tensor, means: Tensor) -> Tensor:
    """Variance of what is left of the off-diagonal kernel values after their rows' and columns' means."""
    size = len(kernel)
    rest = kernel - means[:, None] - means + means.mean()
    rest.fill_diagonal_(0)
    return rest.square().sum() / max(size * (size - 3), 1)
