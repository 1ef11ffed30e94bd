"""The verbs that need no generative model: features, bound."""

import json
from pathlib import Path

import click

from cedm_ray.errors import NoUsableResultError
from cedm_ray.verbs.options import open_study, options, print_one


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


@click.command()
@click.argument("space", type=click.Path(path_type=Path))
@options("study", "images", "address", "quiet", "json")
def bound(space: Path, study: Path, images: str | None, address: str | None, quiet: bool, as_json: bool) -> None:
    """Find C_max, the upper bound of C, by clustering alone."""
    import dataclasses

    from cedm_ray.distributed.run import run_study
    from cedm_ray.search.agenda import Goal
    from cedm_ray.search.outcome import restore
    from cedm_ray.terminal import Display, print_table

    place, read = open_study(space, study, images)
    with Display(quiet=quiet) as show:
        found = run_study(place, read, Goal(kind="bound"), address=address, show=show)
    result = restore(place, read, len(found), Goal(kind="bound"))[0].bound
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(result), indent=2))
    else:
        rows = [
            [p.num_clusters, p.num_used, f"{p.utilization:.4f}", "passes" if p.passed else "fails"]
            for p in sorted(result.points, key=lambda point: point.num_clusters)
        ]
        print_table("", ["C", "C^u", "r_C", f"r_C > {result.alpha:g}"], rows)
        click.echo(result.reason)
    if result.c_max is None:
        raise NoUsableResultError(result.reason, mend="train the clustering longer, or lower bound.alpha")
