"""Everything that a study shows: its pages, its table, its grid of samples and its results for other programs."""

import dataclasses
from pathlib import Path

from cedm_ray import durable
from cedm_ray.data.image_set import ImageSet
from cedm_ray.data.pictures import png, sample_grid
from cedm_ray.report.clustering_page import write_clustering_page
from cedm_ray.report.page import ClusterRow, write_report, write_table
from cedm_ray.search.clusterings import Clustering, keep_clustering
from cedm_ray.search.findings import BoundFindings, bound_json
from cedm_ray.search.outcome import study_result
from cedm_ray.search.results import StudyResult
from cedm_ray.search.showcase import read_showcase
from cedm_ray.search.space import SearchSpace
from cedm_ray.search.study import Study
from cedm_ray.watching.curves import complete_curves

GRID_COLUMNS = 8


def publish(study: Study, space: SearchSpace, images: ImageSet) -> StudyResult | None:
    """Write report.html, results.csv, result.json and samples.png anew from the records, and what TensorBoard's curves
    lack of them.

    Returns the result; None, and nothing is written, while the bound is unknown. Raises StorageError.
    """
    result = study_result(study, space, images)
    if result is None:
        return None
    rows = []
    showcase = read_showcase(study)
    if showcase is not None:
        sides = zip(showcase.clusters, showcase.shares, showcase.training, showcase.samples, strict=True)
        rows = [
            ClusterRow(cluster=int(cluster), share=float(share), training=training, samples=samples)
            for cluster, share, training, samples in sides
        ]
        durable.write_bytes(study.sample_grid, png(sample_grid(showcase.grid, GRID_COLUMNS)))
    write_table(result, study.table)
    write_report(result, rows, study.report)
    study.write_result(result_json(result))
    complete_curves(study, space)
    return result


def publish_bound(study: Study, images: ImageSet, findings: BoundFindings) -> None:
    """Write bound.json and bound.html anew, and as Parquet every clustering that is not there yet.

    Raises StorageError.
    """
    for clustering in findings.clusterings:
        keep_clustering(study, clustering, images)
    write_clustering_page(
        study.bound_page,
        images=images,
        title="Upper bound of the number of clusters",
        summaries=[clustering.summary for clustering in findings.clusterings],
        shown=None if findings.largest is None else findings.largest.assignment,
        findings=findings,
    )
    study.write_bound(bound_json(findings))


def publish_clustering(study: Study, images: ImageSet, clustering: Clustering) -> tuple[Path, Path]:
    """Write a clustering as Parquet where it is not there yet, and its page anew. Returns both. Raises StorageError."""
    path, summary = keep_clustering(study, clustering, images), clustering.summary
    page = path.with_suffix(".html")
    title = f"{summary.num_used:,} of {summary.num_clusters:,} clusters by {summary.method}"
    write_clustering_page(page, images=images, title=title, summaries=[summary], shown=clustering.assignment)
    return path, page


def result_json(result: StudyResult) -> dict:
    """The result as plain values, with C_V spelled out."""
    return {**dataclasses.asdict(result), "best_num_clusters": result.best_num_clusters}
