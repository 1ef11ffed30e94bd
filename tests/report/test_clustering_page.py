"""The page of clusterings: its rows are the clusters' own images, and it is whole in one file."""

import base64
import io
import re

import numpy as np
from PIL import Image

from cedm_ray.clustering.assignment import ClusterAssignment
from cedm_ray.clustering.bound import BoundPoint, BoundResult
from cedm_ray.clustering.lower_bound import lower_bound
from cedm_ray.data.image_set import ImageSet
from cedm_ray.report.clustering_page import MOST_ROWS, PER_ROW, cluster_rows, write_clustering_page
from cedm_ray.search.clusterings import Clustering, summarize
from cedm_ray.search.findings import BoundFindings

LABELS = np.array([0] * 3 + [2] * 30 + [4] * 7, dtype=np.int32)
ASSIGNMENT = ClusterAssignment(labels=LABELS, num_clusters=5, method="temi")


def images():
    """Every image has the gray of its cluster."""
    pixels = np.broadcast_to((LABELS * 50).astype(np.uint8)[:, None, None, None], (40, 3, 8, 8)).copy()
    return ImageSet(name="<script>", names=tuple(f"{i}.png" for i in range(40)), pixels=pixels, digest="0" * 64)


def findings(truth=None, c_max=5, told=(3,)):
    spread = (max(told) - min(told)) / 5 if len(told) > 1 else None
    points = (
        BoundPoint(num_clusters=5, num_used=3, utilization=0.6, passed=c_max is not None, spread=spread, told=told),
    )
    bound = BoundResult(c_max=c_max, alpha=0.5, censored=False, reason="C_max = 5: <b>", points=points)
    summary = summarize("temi-c00005-r0", ASSIGNMENT, truth, seconds=61.0, passed=c_max is not None)
    return BoundFindings(
        bound=bound,
        lower=lower_bound({9: [3, 4]}),
        clusterings=(Clustering(summary=summary, assignment=ASSIGNMENT),),
        ahead=(),
        knn_accuracy=None if truth is None else 0.875,
    )


def write(path, found, shown=ASSIGNMENT):
    lines = [clustering.summary for clustering in found.clusterings]
    write_clustering_page(path, images=images(), title="Bound", summaries=lines, shown=shown, findings=found)
    return path.read_text()


def test_rows_are_the_clusters_from_the_largest_with_their_own_images():
    rows = cluster_rows(ASSIGNMENT)
    assert [cluster for cluster, _ in rows] == [2, 4, 0]
    assert [len(members) for _, members in rows] == [PER_ROW, 7, 3]
    for cluster, members in rows:
        assert (LABELS[members] == cluster).all()
        assert len(set(members.tolist())) == len(members)
    again = cluster_rows(ASSIGNMENT)
    assert all((a == b).all() for (_, a), (_, b) in zip(rows, again, strict=True))


def test_only_the_largest_clusters_are_shown_where_there_are_many():
    labels = np.arange(MOST_ROWS + 7, dtype=np.int32)
    many = ClusterAssignment(labels=np.concatenate([labels, labels[3:]]), num_clusters=len(labels), method="temi")
    rows = cluster_rows(many)
    assert len(rows) == MOST_ROWS
    assert rows[0][0] == 3


def test_the_page_shows_the_rows_images_and_loads_nothing(tmp_path):
    page = write(tmp_path / "page.html", findings())
    pictures = [
        Image.open(io.BytesIO(base64.b64decode(p))) for p in re.findall(r'src="data:image/webp;base64,(.*?)"', page)
    ]
    grays = [np.asarray(picture.convert("RGB"))[4, 4].mean() for picture in pictures]
    assert len(grays) == 3
    assert np.allclose(grays, [100, 200, 0], atol=3)
    assert "://" not in page
    assert "&lt;script&gt;" in page
    assert "C_max = 5: &lt;b&gt;" in page


def test_the_table_says_what_labels_say_only_where_there_are_labels(tmp_path):
    without = write(tmp_path / "a.html", findings())
    assert "ANMI" not in without
    assert "1 min 1 s" in without
    assert "3.5 +- 0.7 clusters" in without
    with_labels = write(tmp_path / "b.html", findings(truth=LABELS // 2))
    assert "100.00" in with_labels
    assert "87.50 %" in with_labels


def test_the_page_says_that_the_median_of_repeats_counts_only_where_there_are_repeats(tmp_path):
    assert "the median" not in write(tmp_path / "a.html", findings())
    assert "the median" in write(tmp_path / "b.html", findings(told=(3, 2, 5)))


def test_a_bound_that_nothing_passes_has_a_page_without_pictures(tmp_path):
    page = write(tmp_path / "page.html", findings(c_max=None), shown=None)
    assert "<img" not in page
    assert "fails" not in page


def test_one_clusterings_page_has_no_curve(tmp_path):
    summary = summarize("kmeans-c00005", ASSIGNMENT, None)
    path = tmp_path / "page.html"
    write_clustering_page(path, images=images(), title="3 of 5", summaries=[summary], shown=ASSIGNMENT)
    page = path.read_text()
    assert page.count("<svg") == 1
    assert "above α" not in page
