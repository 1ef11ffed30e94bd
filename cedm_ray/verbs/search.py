"""The verbs of the whole search: search, report."""

import json
from pathlib import Path

import click

from cedm_ray.errors import NoUsableResultError
from cedm_ray.verbs.options import open_finished, open_study, options

SOME_TRIALS_FAILED = 4


@click.command()
@click.argument("space", type=click.Path(path_type=Path))
@options("study", "images", "address", "quiet", "json")
def search(space: Path, study: Path, images: str | None, address: str | None, quiet: bool, as_json: bool) -> None:
    """Find C_max and C_V, train the best model and write the report."""
    from cedm_ray.distributed.run import run_study
    from cedm_ray.report.publish import publish
    from cedm_ray.search.agenda import Goal
    from cedm_ray.terminal import Display

    place, read = open_study(space, study, images)
    with Display(quiet=quiet) as show:
        found = run_study(place, read, Goal(kind="search"), address=address, show=show)
    result = publish(place, read, found)
    _print_study(place, result, as_json)
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
