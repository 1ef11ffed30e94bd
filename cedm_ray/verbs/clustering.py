"""The verbs that need no generative model: features, bound, cluster."""

import json
from pathlib import Path

import click

from cedm_ray.errors import NoUsableResultError
from cedm_ray.verbs.options import NO_C_PASSES, open_study, options, print_one


@click.command()
@click.argument("space", type=click.Path(path_type=Path))
@options("study", "images", "address", "quiet", "json")
def features(space: Path, study: Path, images: str | None, address: str | None, quiet: bool, as_json: bool) -> None:
    """Import the images and extract their features and neighbors."""
    from cedm_ray.distributed.run import run_features
    from cedm_ray.features.store import open_features
    from cedm_ray.terminal import Display

    place, read = open_study(space, study, images)
    with Display(quiet=quiet) as show:
        found, key = run_features(place, read, address=address, show=show)
    rows, width = open_features(place.features(key)).shape
    where = str(place.features(key).absolute())
    about = {"extractor": read.features.extractor, "images": rows, "size": found.size, "dim": width, "path": where}
    print_one(about, as_json)


_MODULES_OF_BOUND = ("cedm_ray.distributed.run", "cedm_ray.search.findings", "cedm_ray.terminal")


@click.command()
@click.argument("space", type=click.Path(path_type=Path))
@options("study", "images", "labels", "address", "quiet", "json")
def bound(
    space: Path, study: Path, images: str | None, labels: str | None, address: str | None, quiet: bool, as_json: bool
) -> None:
    """Find C_max, the upper bound of C, by clustering alone."""
    from cedm_ray.distributed.ahead import ray_ahead
    from cedm_ray.search.study import Study

    with ray_ahead(Study(study), address, imports=_MODULES_OF_BOUND) as spares:
        from cedm_ray.distributed.run import run_study
        from cedm_ray.search.findings import bound_findings, bound_json
        from cedm_ray.search.goals import Goal
        from cedm_ray.terminal import ClusteringTable, Display

        place, read = open_study(space, study, images)
        table = None if as_json else ClusteringTable()
        with Display(quiet=quiet, table=table) as show:
            found = run_study(
                place,
                read,
                Goal(kind="bound"),
                address=address,
                show=show,
                labels=labels,
                spares=spares,
                next_imports=("cedm_ray.report.publish",),
            )
    from cedm_ray.report.publish import publish_bound

    findings = bound_findings(place, read, found, labels)
    publish_bound(place, found, findings)
    if table is None:
        click.echo(json.dumps(bound_json(findings), indent=2))
    else:
        # What an earlier run found was not shown as it came.
        for clustering in findings.clusterings:
            table.show(clustering.summary)
        if findings.knn_accuracy is not None:
            click.echo(f"{100 * findings.knn_accuracy:.2f} % of the labels by a vote of 20 neighbors in the features")
        click.echo(findings.bound.reason)
        if findings.passed_ahead:
            sizes = ", ".join(map(str, findings.passed_ahead))
            click.echo(f"C = {sizes} passes too, but was asked ahead: one question at a time the search ends below it")
        if findings.lower is not None:
            click.echo(findings.lower.reason)
        click.echo(f"Page: {place.bound_page.absolute()}")
    if findings.bound.c_max is None:
        raise NoUsableResultError(findings.bound.reason, mend=NO_C_PASSES)


@click.command()
@click.argument("space", type=click.Path(path_type=Path))
@click.option(
    "--method",
    metavar="NAME",
    default="temi",
    show_default=True,
    help="temi, kmeans, clip, labels, or a file with an assignment (*.npz, *.npz:KEY, *.parquet, *.pt).",
)
@click.option("--num-clusters", "sizes", metavar="C[,C...]", help="Numbers of clusters, for temi and kmeans.")
@click.option("--classes", metavar="FILE", help="For clip: names of the classes, one on each line.")
@click.option("--clip-weights", metavar="FILE", help="For clip: a weight file; default: downloaded once.")
@options("study", "images", "labels", "address", "quiet", "json")
def cluster(
    space: Path,
    method: str,
    sizes: str | None,
    classes: str | None,
    clip_weights: str | None,
    study: Path,
    images: str | None,
    labels: str | None,
    address: str | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Group the images by TEMI or one of its rivals; show the groups."""
    from cedm_ray.distributed.clusterings import run_clusterings
    from cedm_ray.report.publish import publish_clustering
    from cedm_ray.search.findings import summary_json
    from cedm_ray.search.rivals import Wanted
    from cedm_ray.terminal import ClusteringTable, Display

    place, read = open_study(space, study, images)
    wanted = Wanted.parse(method, sizes, classes=classes, clip_weights=clip_weights, labels=labels)
    table = None if as_json else ClusteringTable()
    with Display(quiet=quiet, table=table) as show:
        found, clusterings, failures = run_clusterings(place, read, wanted, address=address, show=show)
    for clustering in clusterings:
        files = publish_clustering(place, found, clustering)
        if table is not None:
            table.show(clustering.summary)
            for path in files:
                click.echo(f"  {path.absolute()}")
    if as_json:
        click.echo(json.dumps([summary_json(clustering.summary) for clustering in clusterings], indent=2))
    for task, text in failures.items():
        raise NoUsableResultError(f"{task} failed: {text}", mend=place.how_to_retry(task))
