"""Clusterings in pictures: one self-contained HTML page with the bound's curve, the sizes, and a row for each cluster.

N images, C clusters, k images in a row. The page keeps the rules of `page.py`.
"""

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from markupsafe import Markup
from PIL import Image

from cedm_ray.clustering.assignment import ClusterAssignment
from cedm_ray.data.image_set import ImageSet
from cedm_ray.data.pictures import sample_grid
from cedm_ray.durable import write_bytes
from cedm_ray.report import clustering_figures, figures
from cedm_ray.report.page import template
from cedm_ray.search.findings import BoundFindings
from cedm_ray.search.results import ClusteringSummary

PER_ROW, MOST_ROWS = 12, 500
_QUALITY, _LARGEST_TILE = 90, 64


def write_clustering_page(
    path: Path,
    *,
    images: ImageSet,
    title: str,
    summaries: Sequence[ClusteringSummary],
    shown: ClusterAssignment | None,
    findings: BoundFindings | None = None,
) -> None:
    """Write a page, durably.

    summaries: lines of its table. shown: the clustering whose sizes and images are drawn, None for no pictures.
    findings: of the search for the bound, None for a single clustering's page. Raises StorageError.
    """
    curve = None
    if findings is not None:
        drawing = clustering_figures.utilization_versus_clusters(findings.bound, findings.lower)
        curve = Markup(figures.svg(drawing, "Share of used clusters against C; the table below has the same numbers."))
    sizes, rows = None, []
    if shown is not None:
        sizes = Markup(figures.svg(clustering_figures.size_histogram(shown.counts), "Histogram of the cluster sizes."))
        rows = [
            {"cluster": cluster, "count": int(shown.counts[cluster]), "images": _strip(images.pixels[members])}
            for cluster, members in cluster_rows(shown)
        ]
    page = template("clustering.html.jinja").render(
        title=title,
        images=images,
        summaries=summaries,
        findings=findings,
        curve=curve,
        sizes=sizes,
        shown=shown,
        rows=rows,
        with_labels=any(summary.agreement is not None for summary in summaries),
    )
    write_bytes(path, page.encode())


def cluster_rows(assignment: ClusterAssignment) -> list[tuple[int, np.ndarray]]:
    """(cluster, at most 12 of its images by their row numbers, ascending) of the 500 largest clusters, largest first.

    The images are drawn at random, the same ones every time.
    """
    counts = assignment.counts
    order = np.argsort(assignment.labels, kind="stable")
    starts = np.concatenate([[0], np.cumsum(counts)])
    largest = np.argsort(-counts, kind="stable")[:MOST_ROWS]
    rng = np.random.default_rng(0)
    rows = []
    for cluster in largest[counts[largest] > 0].tolist():
        members = order[starts[cluster] : starts[cluster + 1]]
        rows.append((cluster, np.sort(rng.permutation(members)[:PER_ROW])))
    return rows


def _strip(images: np.ndarray) -> str:
    """Images side by side as the address of an image that stands in the page: small, since there are hundreds."""
    strip, buffer = sample_grid(images, columns=PER_ROW), io.BytesIO()
    if (size := images.shape[-1]) > _LARGEST_TILE:
        share = _LARGEST_TILE / size
        strip = strip.resize((round(strip.width * share), round(strip.height * share)), Image.Resampling.LANCZOS)
    strip.save(buffer, format="WEBP", quality=_QUALITY)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
