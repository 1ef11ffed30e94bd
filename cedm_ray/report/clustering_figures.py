"""The figures of the clustering half: how many clusters stay in use as C grows, and how large they are.

The first is the right axis of Fig. 3 of the paper. As in `figures.py`, every function takes values and returns a
matplotlib Figure.
"""

import math

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from cedm_ray.clustering.bound import BoundResult
from cedm_ray.clustering.lower_bound import LowerBoundResult
from cedm_ray.report.figures import BLUE, GREEN, INK, MUTED, ORANGE, PAPER, log_cluster_axis, new_figure

_TEXT, _SMALL = 9.5, 8.5
_BINS = 30
_WIDE = 30
"""Cluster sizes that span more than this factor are drawn on a logarithmic axis."""


def utilization_versus_clusters(bound: BoundResult, lower: LowerBoundResult | None) -> Figure:
    """r_C of every answered C, those that fail hollow, with the threshold and the range [2, C_max].

    A bar through a point goes from the lowest to the highest share of its repeated fits. lower: drawn as a dotted line,
    with a band of one standard deviation to each side; None is left out.
    """
    figure, axes = new_figure(right=0.97, top=0.86)
    points = sorted(bound.points, key=lambda point: point.num_clusters)
    sizes = [point.num_clusters for point in points]
    wanted = [c for c in (bound.c_max, 2 if bound.c_max else None, lower and lower.c_min) if c is not None]
    log_cluster_axis(axes, [*wanted, *sizes])
    if bound.c_max is not None:
        end = f"at least {bound.c_max:,}" if bound.censored else f"{bound.c_max:,}"
        axes.axvspan(2, bound.c_max, color=GREEN, alpha=0.11, linewidth=0, zorder=0, label=f"C from 2 to {end}")
    axes.axhline(bound.alpha, color=MUTED, linestyle=":", linewidth=1.3, label=f"threshold α = {bound.alpha:g}")
    if lower is not None:
        axes.axvline(
            lower.c_min, color=ORANGE, linestyle=(0, (1, 2)), linewidth=1.6, label=f"lower end {lower.c_min:,}"
        )
        if lower.deviation:
            low = max(lower.c_min - lower.deviation, 1)
            axes.axvspan(low, lower.c_min + lower.deviation, color=ORANGE, alpha=0.1, linewidth=0, zorder=0)
    axes.plot(sizes, [point.utilization for point in points], "-", color=BLUE, linewidth=1.4, zorder=2)
    for point in points:
        face = BLUE if point.passed else PAPER
        axes.plot(point.num_clusters, point.utilization, "o", color=BLUE, markerfacecolor=face, markersize=6, zorder=3)
        if point.spread:
            # From the lowest to the highest share: the median lies where it lies between them.
            ends = [[(point.num_used - min(point.told)) / point.num_clusters]]
            ends.append([(max(point.told) - point.num_used) / point.num_clusters])
            axes.errorbar(point.num_clusters, point.utilization, ends, color=BLUE, capsize=3, zorder=2)
    shares = [*(min(point.told) / point.num_clusters for point in points), bound.alpha]
    margin = 0.12 * max(1 - min(shares), 0.02)
    axes.set_ylim(min(shares) - margin, 1 + margin)
    axes.set_ylabel("share of clusters used, r(C)", fontsize=_TEXT, color=INK)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    figure.legend(loc="upper left", bbox_to_anchor=(0.065, 0.995), ncols=3, frameon=False, fontsize=_SMALL)
    return figure


def size_histogram(counts: np.ndarray) -> Figure:
    """How many clusters have how many images. counts: images of every cluster asked for, integers [C].

    Empty clusters are told in the legend: they have no place on an axis that may be logarithmic.
    """
    figure, axes = new_figure(right=0.97, top=0.86)
    used = counts[counts > 0]
    low, high = int(used.min()), int(used.max())
    if high > _WIDE * low:
        # Whole sizes only: below a size of some tens the bins of a logarithmic axis would be narrower than one image.
        edges = np.unique(np.geomspace(low, high + 1, _BINS + 1).round()) - 0.5
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        width = max(1, math.ceil((high - low + 1) / _BINS))
        edges = np.arange(low, high + width + 1, width) - 0.5
    axes.hist(used, bins=edges, color=BLUE, alpha=0.85)
    mean = counts.sum() / len(used)
    axes.axvline(mean, color=INK, linestyle=(0, (5, 3)), linewidth=1.3, label=f"equal sizes: {mean:,.0f} images")
    if empty := len(counts) - len(used):
        axes.plot([], [], " ", label=f"{empty:,} of {len(counts):,} clusters are empty")
    # A logarithmic axis has a tick at half an image, which is no size and would read 0.
    whole = FuncFormatter(lambda value, _: f"{value:,.0f}" if value == round(value) else "")
    axes.xaxis.set_major_formatter(whole)
    axes.set_xlabel("images in a cluster", fontsize=_TEXT, color=INK)
    axes.set_ylabel("clusters", fontsize=_TEXT, color=INK)
    axes.yaxis.get_major_locator().set_params(integer=True)
    figure.legend(loc="upper left", bbox_to_anchor=(0.065, 0.995), ncols=2, frameon=False, fontsize=_SMALL)
    return figure
