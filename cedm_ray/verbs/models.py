"""The verb of one generative model: train."""

import json
from pathlib import Path

import click

from cedm_ray.errors import ConfigurationError, NoUsableResultError
from cedm_ray.verbs.options import open_study, options, short


@click.command()
@click.argument("space", type=click.Path(path_type=Path))
@click.option("--num-clusters", type=click.IntRange(min=2), help="C; without it the unconditional model is trained.")
@click.option(
    "--condition",
    type=click.Choice(["features"]),
    help="Train on the images' feature vectors instead of clusters: the paper's oracle, to compare with.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Train nothing and write nothing: print parameters, memory, speed on 20 steps, hours to the budget.",
)
@options("study", "images", "address", "quiet", "json")
def train(
    space: Path,
    study: Path,
    num_clusters: int | None,
    condition: str | None,
    dry_run: bool,
    images: str | None,
    address: str | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Train one C-EDM through the rungs, with its clusters."""
    import dataclasses

    from cedm_ray.search.goals import Goal

    features = condition is not None
    if features and num_clusters is not None:
        raise ConfigurationError("--condition features and --num-clusters exclude each other", mend="give one of them")
    goal = Goal(kind="trial", num_clusters=num_clusters, features=features)
    if dry_run:
        _print_rehearsal(space, study, num_clusters, features, images, quiet, as_json)
        return
    from cedm_ray.distributed.run import run_study
    from cedm_ray.features.extractors import distance_name
    from cedm_ray.terminal import Display, print_table

    place, read = open_study(space, study, images)
    with Display(quiet=quiet) as show:
        run_study(place, read, goal, address=address, show=show)
    name = goal.trial.name
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
        raise NoUsableResultError(
            f"{name} {end.reason}", mend="in another study, lower training.learning_rate or train longer"
        )


def _print_rehearsal(
    space: Path, study: Path, num_clusters: int | None, features: bool, images: str | None, quiet: bool, as_json: bool
) -> None:
    """What `train` would take, on this machine and without Ray. Leaves the study alone, exit.json included."""
    import dataclasses

    import torch

    from cedm_ray.config import read_config
    from cedm_ray.search.rehearsal import STEPS, Rehearsal, rehearse
    from cedm_ray.search.space import SearchSpace
    from cedm_ray.search.study import Study
    from cedm_ray.terminal import Display, print_table

    # Not read_space: a space whose images are still to come can be tried too.
    read = read_config(SearchSpace, space, {"images.source": images} if images is not None else None)
    place = Study(study)
    if place.exists:
        place.check_settled(read.settled(), SearchSpace.completed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with Display(quiet=quiet) as show:
        for event in rehearse(place, read, num_clusters, device=device, features=features):
            if isinstance(event, Rehearsal):
                found = event
            else:
                show(event)
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(found), indent=2))
        return
    rows = [
        [c.trial, "not fitted yet" if c.num_classes is None else c.num_classes, f"{c.parameters:,}"]
        for c in found.conditions
    ]
    print_table("", ["trial", "classes", "parameters"], rows)
    share = found.batch_size // found.workers
    where = "the study's images" if found.images == "study" else f"random {found.image_size}x{found.image_size} images"
    hours = f"{found.hours:,.0f} h" if found.hours >= 100 else f"{found.hours:.3g} h"
    lines = {
        "memory": f"{found.memory_bytes / 2**30:.2f} GiB predicted at the peak of a worker, {share} images a step",
        "speed": f"{found.images_per_s:.4g} images/s of one worker, {STEPS} steps of {found.measured_batch} on {where}",
        "device": f"{found.device}, {found.precision}",
        "time": f"{hours} to {found.budget_kimg:,g} kimg with {found.workers} worker(s), sampling left out",
    }
    for name, text in lines.items():
        click.echo(f"{name:<8}{text}")
