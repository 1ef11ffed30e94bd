"""The verb of one generative model: train."""

import json
from pathlib import Path

import click

from cedm_ray.errors import NoUsableResultError
from cedm_ray.verbs.options import open_study, options, short


@click.command()
@click.argument("space", type=click.Path(path_type=Path))
@click.option("--num-clusters", type=click.IntRange(min=2), help="C; without it the unconditional model is trained.")
@options("study", "images", "address", "quiet", "json")
def train(
    space: Path,
    study: Path,
    num_clusters: int | None,
    images: str | None,
    address: str | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Train one C-EDM through the rungs, with its clusters."""
    import dataclasses

    from cedm_ray.distributed.run import run_study
    from cedm_ray.features.extractors import distance_name
    from cedm_ray.search.agenda import Goal
    from cedm_ray.search.results import trial_name
    from cedm_ray.terminal import Display, print_table

    place, read = open_study(space, study, images)
    goal = Goal(kind="trial", num_clusters=num_clusters)
    with Display(quiet=quiet) as show:
        run_study(place, read, goal, address=address, show=show)
    name = trial_name(num_clusters)
    for task in (name, f"{name}-r0"):
        if (text := place.failures().get(task)) is not None:
            raise NoUsableResultError(f"{task} failed: {text}", mend=place.how_to_retry(task))
    reports = place.reports(name)
    *_, end = (decision for decision in place.decisions() if decision.trial == name)
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(report) for report in reports], indent=2))
    else:
        rows = [
            [f"{r.images_seen / 1000:g}", short(r.distance), short(r.loss), f"{r.train_s:.1f}", f"{r.evaluate_s:.1f}"]
            for r in reports
        ]
        metric = distance_name(read.evaluation.detector, read.evaluation.weights)
        print_table("", ["kimg", metric, "loss", "training s", "evaluation s"], rows)
        click.echo(f"{name} {end.reason}")
    if end.status in ("diverged", "collapsed"):
        raise NoUsableResultError(f"{name} {end.reason}", mend="lower training.learning_rate, or train longer")
