"""The verbs of the whole search: search, report."""

import json
from pathlib import Path

import click

from cedm_ray.errors import ConfigurationError, NoUsableResultError
from cedm_ray.verbs.options import NO_C_PASSES, open_finished, open_like, open_study, options
from cedm_ray.verbs.planning import print_plan

SOME_TRIALS_FAILED = 4


@click.command()
@click.argument("space", required=False, type=click.Path(path_type=Path))
@click.option(
    "--like",
    metavar="STUDY",
    type=click.Path(path_type=Path),
    help="An earlier study: its space (unless SPACE is given), a climb that starts at a quarter of its C_max, and its "
    "best C first. What it computed of the same images is taken over.",
)
@click.option("--dry-run", is_flag=True, help="Start nothing and write nothing: print what the search will cost.")
@options("study", "images", "address", "gpus", "rate", "quiet", "json")
def search(
    space: Path | None,
    like: Path | None,
    dry_run: bool,
    study: Path,
    images: str | None,
    address: str | None,
    gpus: str | None,
    rate: float | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Find C_max and C_V, train the best model and write the report."""
    from cedm_ray.search.goals import Goal
    from cedm_ray.terminal import Display

    old = None
    if like is not None:
        place, read, old = open_like(like, space, study, images)
    elif space is not None:
        place, read = open_study(space, study, images)
    else:
        raise ConfigurationError("neither SPACE nor --like is given", mend="name a search space, or an earlier study")
    if dry_run:
        # How a command that starts nothing ends is not how the study's search ended.
        del click.get_current_context().find_root().obj["study"]
        measured = next((one.path for one in (place, old) if one is not None and one.exists), None)
        print_plan(read, study=measured, image_size=None, gpus=gpus, rate=rate, as_json=as_json)
        return
    from cedm_ray.distributed.run import run_study

    with Display(quiet=quiet) as show:
        found = run_study(
            place,
            read,
            Goal(kind="search"),
            address=address,
            show=show,
            like=old,
            next_imports=("cedm_ray.report.publish",),
        )
    from cedm_ray.report.publish import publish

    result = publish(place, read, found)
    _print_study(place, result, as_json)
    if result.bound.c_max is None:
        raise NoUsableResultError(result.bound.reason, mend=NO_C_PASSES)
    if result.best is None:
        raise NoUsableResultError("no trial inside the bound has a usable distance", mend="see the table's last column")
    if any(trial.status == "failed" for trial in result.trials):
        click.echo(
            f"some trials failed; to try them again, remove their records in {place.path / 'failures'}", err=True
        )
        raise click.exceptions.Exit(SOME_TRIALS_FAILED)


@click.command()
@click.argument("study", type=click.Path(path_type=Path))
@options("json")
def report(study: Path, as_json: bool) -> None:
    """Print the result of a study and write its page anew."""
    from cedm_ray.data.image_set import open_image_set
    from cedm_ray.report.publish import publish

    place, space = open_finished(study)
    result = publish(place, space, open_image_set(place.images))
    if result is None:
        raise NoUsableResultError(f"{study} has no bound yet", mend="run cedm-ray search SPACE --study again")
    _print_study(place, result, as_json)


def _print_study(place, result, as_json: bool) -> None:
    """The result of a study and where its page is, or the result alone as JSON."""
    from cedm_ray.report.publish import result_json
    from cedm_ray.terminal import print_result

    if as_json:
        click.echo(json.dumps(result_json(result), indent=2))
    else:
        print_result(result)
        for told in [] if result.best is None else place.evaluations(result.best):
            for score in told["scores"]:
                sets = f"{len(score['values'])} x {told['num_samples']:,} images"
                spread = "" if score["std"] is None else f", standard deviation {score['std']:.2g}"
                click.echo(f"{score['metric']} of {sets} at {told['images_seen']:,}: {score['mean']:.4g}{spread}")
        click.echo(f"Report: {place.report.absolute()}")
