"""The verbs that make images: sample, figure."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from cedm_ray.errors import ConfigurationError, NoUsableResultError
from cedm_ray.verbs.options import Target, needs_cluster, open_finished, options


@click.command()
@click.argument("study", type=click.Path(path_type=Path))
@click.option("--num", type=click.IntRange(min=1), default=64, show_default=True, help="Number of images.")
@click.option("--seeds", metavar="A-B", help="Seeds from A to B instead; image and seed belong together.")
@click.option(
    "--condition",
    metavar="q|uniform|list:3,5",
    default="q",
    show_default=True,
    help="Clusters as often as in training, all alike, or these in turn, by the seed.",
)
@click.option("--guidance", type=click.FloatRange(min=0), metavar="W", help="Weight of guidance; default: the study's.")
@click.option(
    "--guide",
    metavar="[STUDY:]TRIAL[@KIMG]",
    help="Guide away from this smaller or earlier model; default: from the model without its condition.",
)
@click.option("--steps", type=click.IntRange(min=2), help="Steps of the sampler; default: those of the evaluation.")
@click.option("--min-confidence", type=float, metavar="P", help="Keep only images of whose cluster TEMI is so sure.")
@click.option(
    "--max-tries",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    help="Candidates for a seed with --min-confidence; a seed without a sure one has no image.",
)
@click.option("--grid", type=Target(".png"), help="Write one picture of all images, a PNG file.")
@click.option("--out", type=Target(".zip", ".npz", folder=True), help="Write the images: a folder, *.zip or *.npz.")
@options("trial", "address", "quiet")
def sample(
    study: Path,
    num: int,
    seeds: str | None,
    condition: str,
    guidance: float | None,
    guide: str | None,
    steps: int | None,
    min_confidence: float | None,
    max_tries: int,
    grid: Path | None,
    out: Path | None,
    trial: str | None,
    address: str | None,
    quiet: bool,
) -> None:
    """Generate images with a trained model of a study.

    On a Ray cluster (--address or $RAY_ADDRESS) or several GPUs all of them are used. A folder is gone on with where it
    stopped.
    """
    from cedm_ray.report.samples import sample_to_files
    from cedm_ray.search.sampling import Condition, settle_job
    from cedm_ray.terminal import Display

    if grid is None and out is None:
        raise ConfigurationError("nothing to write", mend="add --grid out.png, or --out with a folder, *.zip or *.npz")
    place, space = open_finished(study)
    wanted = range(num) if seeds is None else _seeds(seeds)
    with Display(quiet=quiet) as show:
        job = settle_job(
            place,
            space,
            trial=trial,
            condition=Condition.read(condition),
            guide=guide,
            guidance=guidance,
            steps=steps,
            min_confidence=min_confidence,
            max_tries=max_tries,
            show=show,
        )
        made = sample_to_files(
            lambda seeds: _generate(job, seeds, address), wanted, job.about, grid=grid, out=out, show=show
        )
    if min_confidence is not None:
        _tell_rejection(job, made)
    for path in (grid, out):
        if path is not None:
            click.echo(path.absolute())


def _tell_rejection(job, made) -> None:
    """How many images were drawn and kept, and on what scale; exit 5 where there is none."""
    from cedm_ray.search.confidence import open_confidence, training_confidence
    from cedm_ray.search.study import Study

    study = Study(job.study)
    of_training = training_confidence(study, open_confidence(study, job.space, job.num_clusters, "cpu", fit=job.fit))
    share = f"{(of_training >= job.min_confidence).mean():.1%} of the training images reach {job.min_confidence:g}"
    text = f"kept {made.kept:,} of {made.drawn:,} images drawn; {made.without:,} seeds have none; {share}"
    if not made.kept + made.found:
        raise NoUsableResultError(text, mend="lower --min-confidence, or raise --max-tries")
    click.echo(text, err=True)


@click.command()
@click.argument("study", type=click.Path(path_type=Path))
@click.argument("kind", type=click.Choice(["clusters", "sweep", "classes", "confidence"]))
@click.option("--out", required=True, type=Target(".png"), help="The picture, a PNG file.")
@click.option("--rows", type=click.IntRange(min=1, max=100), help="Rows of images; default: 8, with confidence 2.")
@click.option("--columns", type=click.IntRange(min=1, max=100), default=8, show_default=True, help="Images in a row.")
@click.option("--first-seed", type=click.IntRange(min=0, max=2**31), default=0, help="The first seed; default: 0.")
@click.option("--clusters", metavar="3,5", help="With clusters: these; default: spread over their sizes.")
@click.option("--trials", metavar="NAME,NAME", help="With sweep: these trials, each maybe @KIMG; default: all.")
@click.option(
    "--against", metavar="[STUDY:]TRIAL[@KIMG]", help="With classes: the model that is conditioned on classes."
)
@click.option(
    "--candidates",
    type=click.IntRange(min=2, max=100_000),
    default=256,
    show_default=True,
    help="With confidence: images of which the most and the least confident are shown.",
)
@options("trial", "quiet")
def figure(
    study: Path,
    kind: str,
    out: Path,
    rows: int | None,
    columns: int,
    first_seed: int,
    clusters: str | None,
    trials: str | None,
    against: str | None,
    candidates: int,
    trial: str | None,
    quiet: bool,
) -> None:
    """Draw models of a study under the same noise.

    \b
    clusters    one cluster a row, one seed a column
    sweep       one seed a row, one C a column, the unconditional model first
    classes     clusters beside the classes that they stand for (--against)
    confidence  the images that TEMI is most and least sure of, and the
                unconditional model's from the same noise
    """
    import torch

    from cedm_ray import durable
    from cedm_ray.data.pictures import png
    from cedm_ray.report import paired
    from cedm_ray.search.confidence import open_confidence
    from cedm_ray.search.model import find_model, open_model
    from cedm_ray.search.results import UNCONDITIONAL
    from cedm_ray.search.sampling import find_elsewhere
    from cedm_ray.terminal import Display

    for given, option, only in (
        (clusters, "--clusters", "clusters"),
        (trials, "--trials", "sweep"),
        (against, "--against", "classes"),
    ):
        if given is not None and kind != only:
            raise ConfigurationError(f"{option} belongs to the figure {only}, not to {kind}")
    if kind == "classes" and against is None:
        mend = "name a model that was trained on class labels: --against [STUDY:]TRIAL[@KIMG]"
        raise ConfigurationError(
            "this figure needs a class-conditional model, and images alone have no classes", mend=mend
        )
    chosen = None if clusters is None else _numbers("--clusters", clusters)
    place, space = open_finished(study)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with Display(quiet=quiet) as show:
        common = {"rows": rows or (2 if kind == "confidence" else 8), "first_seed": first_seed, "show": show}
        if kind == "sweep":
            # Of all trials those that have got to a model.
            begun = [name for name in place.trials() if place.images_saved(name)]
            names = begun if trials is None else trials.split(",")
            if not names:
                raise ConfigurationError(f"{study} has no trained model yet", mend="let the search get further first")
            picture = paired.sweep_picture([find_model(place, name, device, show) for name in names], **common)
        else:
            model, common = find_model(place, trial, device, show), common | {"columns": columns}
        if kind == "clusters":
            picture = paired.clusters_picture(model, chosen, **common)
        if kind == "classes":
            others_study, checkpoint = find_elsewhere(place, against, show)
            picture = paired.classes_picture(
                model, place, open_model(checkpoint, device, others_study), others_study, **common
            )
        if kind == "confidence":
            confidence = open_confidence(place, space, model.meaning.num_clusters, device, fit=model.meaning.fit)
            unconditional = find_model(place, UNCONDITIONAL, device, show)
            picture = paired.confidence_picture(model, unconditional, confidence, candidates=candidates, **common)
    durable.write_bytes(out, png(picture))
    click.echo(out.absolute())


def _numbers(option: str, text: str) -> list[int]:
    if not re.fullmatch(r"[0-9]{1,9}(,[0-9]{1,9})*", text):
        raise ConfigurationError(f"{option} must be numbers with commas between them, got {text!r}")
    return [int(entry) for entry in text.split(",")]


def _generate(job, seeds: Sequence[int], address: str | None) -> Iterator:
    """The images of a job: by a cluster where one is named or there are several GPUs, else by this process."""
    import torch

    if needs_cluster(address):
        from cedm_ray.distributed.sampling import sample_on_cluster

        return sample_on_cluster(job, seeds, address=address)
    from cedm_ray.search.sampling import open_sampler

    return open_sampler(job, "cuda" if torch.cuda.is_available() else "cpu").generate(seeds)


def _seeds(text: str) -> range:
    found = re.fullmatch(r"([0-9]{1,10})(?:-([0-9]{1,10}))?", text)
    first, last = (int(found[1]), int(found[2] or found[1])) if found else (0, -1)
    if not first <= last < 2**32:
        raise ConfigurationError(f"--seeds must be one number or A-B with A <= B < 2^32, got {text!r}")
    return range(first, last + 1)
