"""The verbs that make images: sample."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from cedm_ray.errors import ConfigurationError, NoUsableResultError
from cedm_ray.verbs.options import open_finished, options


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
@click.option("--grid", type=click.Path(path_type=Path), help="Write one picture of all images.")
@click.option("--out", type=click.Path(path_type=Path), help="Write the images: a folder, *.zip or *.npz.")
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
    for path in (grid, out):
        if path is not None:
            click.echo(path.absolute())
    if min_confidence is not None:
        click.echo(f"kept {made.kept:,} of {made.drawn:,} images drawn; {made.without:,} seeds have none", err=True)
        if not made.kept + made.found:
            raise NoUsableResultError(
                f"no image reached a confidence of {min_confidence:g}", mend="lower --min-confidence, or try more often"
            )


def _generate(job, seeds: Sequence[int], address: str | None) -> Iterator:
    """The images of a job: by a cluster where one is named or there are several GPUs, else by this process."""
    import torch

    if address or os.environ.get("RAY_ADDRESS") or torch.cuda.device_count() > 1:
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
