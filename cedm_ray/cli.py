"""The verbs of `cedm-ray`: parse, call, print. torch and Ray are imported by the verbs that need them, not for help."""

import contextlib
import json
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import click

from cedm_ray.errors import CedmError, ConfigurationError, LockedError, NoUsableResultError, StorageError

SOME_TRIALS_FAILED = 4


class _Terminated(BaseException):
    """SIGTERM arrived. What was acknowledged is on disk already."""


def _options(*names: str) -> Callable:
    """Options that several verbs share."""
    known = {
        "study": click.option("--study", required=True, type=click.Path(path_type=Path), help="Folder of the study."),
        "images": click.option("--images", metavar="PATH", help="Folder or zip of images; replaces images.source."),
        "address": click.option(
            "--address", metavar="HOST:PORT", help="Ray cluster to use; default: $RAY_ADDRESS, else this machine."
        ),
        "quiet": click.option("-q", "--quiet", is_flag=True, help="Show no progress."),
        "json": click.option("--json", "as_json", is_flag=True, help="Print the result as JSON."),
        "trial": click.option("--trial", metavar="NAME", help="Trial, such as c00020; default: the best model."),
    }

    def decorate(function: Callable) -> Callable:
        for name in reversed(names):
            function = known[name](function)
        return function

    return decorate


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(package_name="cedm-ray")
@click.pass_context
def cli(context: click.Context, debug: bool) -> None:
    """How many groups should a diffusion model of your unlabelled images be conditioned on, and how good does it get?

    SPACE is a search space (a YAML file), STUDY the folder that holds all of a search. Running any command again goes
    on where it stopped.
    """
    context.obj["debug"] = debug


@cli.command()
@click.argument("space", type=click.Path(path_type=Path))
@_options("study", "images", "address", "quiet", "json")
def search(space: Path, study: Path, images: str | None, address: str | None, quiet: bool, as_json: bool) -> None:
    """Find C_max and C_V, train the best model and write the report."""
    from cedm_ray.distributed.run import run_study
    from cedm_ray.report.publish import publish
    from cedm_ray.search.agenda import Goal
    from cedm_ray.terminal import Display

    place, read = _open(space, study, images)
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


@cli.command()
@click.argument("space", type=click.Path(path_type=Path))
@_options("study", "images", "address", "quiet", "json")
def features(space: Path, study: Path, images: str | None, address: str | None, quiet: bool, as_json: bool) -> None:
    """Import the images and extract their features and neighbors."""
    from cedm_ray.distributed.run import run_features
    from cedm_ray.features.store import open_features
    from cedm_ray.terminal import Display

    place, read = _open(space, study, images)
    with Display(quiet=quiet) as show:
        found, key = run_features(place, read, address=address, show=show)
    rows, width = open_features(place.features(key)).shape
    where = str(place.features(key).absolute())
    about = {"extractor": read.features.extractor, "images": rows, "size": found.size, "dim": width, "path": where}
    _print_one(about, as_json)


@cli.command()
@click.argument("space", type=click.Path(path_type=Path))
@_options("study", "images", "address", "quiet", "json")
def bound(space: Path, study: Path, images: str | None, address: str | None, quiet: bool, as_json: bool) -> None:
    """Find C_max, the upper bound of C, by clustering alone."""
    import dataclasses

    from cedm_ray.distributed.run import run_study
    from cedm_ray.search.agenda import Goal
    from cedm_ray.search.outcome import restore
    from cedm_ray.terminal import Display, print_table

    place, read = _open(space, study, images)
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


@cli.command()
@click.argument("space", type=click.Path(path_type=Path))
@click.option("--num-clusters", type=click.IntRange(min=2), help="C; without it the unconditional model is trained.")
@_options("study", "images", "address", "quiet", "json")
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

    place, read = _open(space, study, images)
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
            [f"{r.images_seen / 1000:g}", _short(r.distance), _short(r.loss), f"{r.train_s:.1f}", f"{r.evaluate_s:.1f}"]
            for r in reports
        ]
        metric = distance_name(read.evaluation.detector)
        print_table("", ["kimg", metric, "loss", "training s", "evaluation s"], rows)
        click.echo(f"{name} {end.reason}")
    if end.status in ("diverged", "collapsed"):
        raise NoUsableResultError(f"{name} {end.reason}", mend="lower training.learning_rate, or train longer")


@cli.command()
@click.argument("study", type=click.Path(path_type=Path))
@click.option("--num", type=click.IntRange(min=1), default=64, show_default=True, help="Number of images.")
@click.option("--seeds", metavar="A-B", help="Seeds from A to B instead; image and seed belong together.")
@click.option("--cluster", type=click.IntRange(min=0), help="Sample this cluster only; default: drawn from q(c).")
@click.option("--steps", type=click.IntRange(min=2), help="Steps of the sampler; default: those of the evaluation.")
@click.option("--grid", type=click.Path(path_type=Path), help="Write one picture of all images.")
@click.option("--out", type=click.Path(path_type=Path), help="Write the images: a folder, *.zip or *.npz.")
@_options("trial", "quiet")
def sample(
    study: Path,
    num: int,
    seeds: str | None,
    cluster: int | None,
    steps: int | None,
    grid: Path | None,
    out: Path | None,
    trial: str | None,
    quiet: bool,
) -> None:
    """Generate images with a trained model of a study."""
    from cedm_ray.report.samples import sample_to_files
    from cedm_ray.terminal import Display

    if grid is None and out is None:
        raise ConfigurationError("nothing to write", mend="add --grid out.png, or --out with a folder, *.zip or *.npz")
    place, _ = _open_finished(study)
    wanted = range(num) if seeds is None else _seeds(seeds)
    with Display(quiet=quiet) as show:
        sample_to_files(place, trial, wanted, cluster=cluster, steps=steps, grid=grid, out=out, show=show)
    for path in (grid, out):
        if path is not None:
            click.echo(path.absolute())


@cli.command()
@click.argument("study", type=click.Path(path_type=Path))
@click.option("--num", type=click.IntRange(min=2), help="Images to generate; default: evaluation.num_samples.")
@_options("trial", "quiet", "json")
def evaluate(study: Path, num: int | None, trial: str | None, quiet: bool, as_json: bool) -> None:
    """Measure a trained model of a study against the training images."""
    from cedm_ray.search.measure import evaluate_model
    from cedm_ray.terminal import Display

    place, space = _open_finished(study)
    with Display(quiet=quiet) as show:
        _print_one(evaluate_model(place, space, trial, num, show=show), as_json)


@cli.command()
@click.argument("study", type=click.Path(path_type=Path))
@_options("json")
def report(study: Path, as_json: bool) -> None:
    """Print the result of a study and write its page anew."""
    from cedm_ray.data.image_set import open_image_set
    from cedm_ray.report.publish import publish

    place, space = _open_finished(study)
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
        click.echo(f"Report: {place.report.absolute()}")


def _open(space: Path, study: Path, images: str | None):
    """The study and its space for a verb that drives it; notes the study for exit.json."""
    from cedm_ray.search.space import read_space
    from cedm_ray.search.study import Study

    place = Study(study)
    read = read_space(space, images=images)
    click.get_current_context().find_root().obj["study"] = place
    return place, read


def _open_finished(study: Path):
    """An existing study and the space that it was begun with, for a verb that only reads."""
    from cedm_ray.search.space import SearchSpace
    from cedm_ray.search.study import Study

    place = Study(study)
    return place, SearchSpace.from_settled(place.settled())


def _seeds(text: str) -> range:
    found = re.fullmatch(r"([0-9]{1,10})(?:-([0-9]{1,10}))?", text)
    first, last = (int(found[1]), int(found[2] or found[1])) if found else (0, -1)
    if not first <= last < 2**32:
        raise ConfigurationError(f"--seeds must be one number or A-B with A <= B < 2^32, got {text!r}")
    return range(first, last + 1)


def _short(value: float | None) -> str | None:
    return None if value is None else f"{value:.4g}"


def _print_one(values: dict, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(values, indent=2))
        return
    width = max(len(name) for name in values)
    for name, value in values.items():
        click.echo(f"{name:<{width}}  {value}")


def _terminate(signum: int, frame: FrameType | None) -> None:
    raise _Terminated


def main() -> None:
    """Run a verb and end with the exit code that tells the truth; `exit.json` in the study repeats it."""
    signal.signal(signal.SIGTERM, _terminate)
    context: dict = {}
    code, text = 0, "done"
    try:
        # click makes the context; this mapping outlives it, so that the end of the command can be written down.
        code = cli.main(standalone_mode=False, obj=context) or 0
        text = "done" if code == 0 else "finished, and some trials failed"
    except CedmError as error:
        code, text = error.exit_code, str(error)
        _explain(error, debug=context.get("debug", False))
    except click.ClickException as error:
        code, text = ConfigurationError.exit_code, error.format_message()
        error.show()
    except (KeyboardInterrupt, click.Abort):
        code, text = 128 + signal.SIGINT, "interrupted; everything acknowledged is saved"
    except _Terminated:
        code, text = 128 + signal.SIGTERM, "terminated; everything acknowledged is saved"
    except (BrokenPipeError, SystemExit):
        # Whoever read our output has left; the work itself is done.
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - it stays open until the process ends.
    except Exception as error:
        code, text = 1, f"{type(error).__name__}: {error}"
        traceback.print_exc()
        print("This is a bug of ours; what was acknowledged is saved.", file=sys.stderr)
    if code in (128 + signal.SIGINT, 128 + signal.SIGTERM):
        print(f"cedm-ray was {text}; the same command goes on", file=sys.stderr)
    study = context.get("study")
    if study is not None and study.exists and code != LockedError.exit_code:
        # Where the storage is full this cannot be written either, and the code must still be the one that was found.
        with contextlib.suppress(StorageError):
            study.write_exit(code, text)
    sys.stdout.flush()
    sys.stderr.flush()
    # Threads of Ray and torch may still be about; nothing of ours depends on them, and a signal must end us at once.
    os._exit(code)


def _explain(error: CedmError, *, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    print(f"error: {error}", file=sys.stderr)
    if error.mend:
        print(f"  to mend it: {error.mend}", file=sys.stderr)
