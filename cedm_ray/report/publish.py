"""Everything that a study shows: its page, its table, its grid of samples and its result for other programs."""

import dataclasses

from cedm_ray import durable
from cedm_ray.data.image_set import ImageSet
from cedm_ray.report.figures import png, sample_grid
from cedm_ray.report.page import ClusterRow, write_report, write_table
from cedm_ray.search.outcome import study_result
from cedm_ray.search.results import StudyResult
from cedm_ray.search.showcase import read_showcase
from cedm_ray.search.space import SearchSpace
from cedm_ray.search.study import Study

GRID_COLUMNS = 8


def publish(study: Study, space: SearchSpace, images: ImageSet) -> StudyResult | None:
    """Write report.html, results.csv, result.json and samples.png anew from the records.

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
    return result


def result_json(result: StudyResult) -> dict:
    """The result as plain values, with C_V spelled out."""
    return {**dataclasses.asdict(result), "best_num_clusters": result.best_num_clusters}
