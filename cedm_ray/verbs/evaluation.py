"""The verb that measures: evaluate."""

import contextlib
import json
from pathlib import Path
from typing import Any

import click

from cedm_ray.errors import ConfigurationError
from cedm_ray.verbs.options import needs_cluster, options


@click.command()
@click.argument("source", metavar="STUDY|DIR|ZIP|NPZ")
@click.option(
    "--reference",
    metavar="PATH",
    help="What the images are compared with: a study, a folder, zip or npz of images, or an npz of mu and sigma; "
    "default: the study's training images.",
)
@click.option("--metrics", metavar="LIST", help="Words with commas, see below; default: fd.")
@click.option("--num", type=click.IntRange(min=2), help="Images of each set; default: evaluation.final_samples.")
@click.option("--sets", type=click.IntRange(min=1), help="Disjoint sets of seeds; default: 3.")
@click.option("--detector", metavar="NAME", help="Network of fd, kd and prdc; default: the study's, else inception.")
@click.option(
    "--weights", metavar="[NAME=]FILE", multiple=True, help="Take the weights of the detector, or of NAME, from a file."
)
@click.option(
    "--versus",
    metavar="TRIAL",
    help="Also compare the distance with that of another trial, or of TRIAL@KIMG, on the same seeds.",
)
@click.option(
    "--against",
    metavar="JSON",
    type=click.Path(path_type=Path),
    help="Also compare with an earlier result (--json), if its numbers are of the same kind.",
)
@click.option("--test", metavar="PATH", help="Images that the model was not trained on, for auroc.")
@options("trial", "address", "quiet", "json")
def evaluate(
    source: str,
    reference: str | None,
    metrics: str | None,
    num: int | None,
    sets: int | None,
    detector: str | None,
    weights: tuple[str, ...],
    versus: str | None,
    against: Path | None,
    test: str | None,
    trial: str | None,
    address: str | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Measure a study's model, or any generator's images.

    Metrics are fd (the Fréchet distance in the detector's features), kd (kernel distance), prdc (precision, recall,
    density, coverage), fd_inf (fd for infinitely many images), ufd (fd to the unconditional model), auroc, memorization
    and msp; fid, kid, is, fid_inf and ufid are those of Inception-v3, fdd is DINOv2's.

    A model is measured on three disjoint sets of images unless told otherwise; what was measured is kept in the study,
    and the same command prints it again. It runs in this process, and over a Ray cluster where --address or
    $RAY_ADDRESS names one or this machine has several GPUs.
    """
    from cedm_ray.evaluation.curves import efficiency
    from cedm_ray.evaluation.evaluate import compare
    from cedm_ray.evaluation.evaluate import evaluate as measure
    from cedm_ray.evaluation.requests import Request
    from cedm_ray.features.weight_files import cache_folder
    from cedm_ray.search.study import Study
    from cedm_ray.terminal import Display

    request = Request(
        source=source,
        reference=reference,
        metrics=tuple(word.strip().lower() for word in (metrics or "").split(",") if word.strip()),
        trial=trial,
        num=num,
        sets=sets,
        detector=detector,
        weights=tuple(_weights(text) for text in weights),
        versus=versus,
        test=test,
    )
    if metrics is not None and not request.metrics:
        raise ConfigurationError("--metrics names none", mend="name them with commas between: --metrics fd,prdc")
    earlier = None if against is None else _read(against)
    with Display(quiet=quiet) as show, _runner(address) as run:
        told = measure(request, cache=cache_folder(), run=run, show=show, against=earlier)
    study = Study(Path(source))
    told |= {
        "efficiency": efficiency(study, told["name"]) if study.exists else None,
        "against": [] if earlier is None else compare(told, earlier),
    }
    if as_json:
        click.echo(json.dumps(told, indent=2))
    else:
        _print(told)


def _weights(text: str) -> tuple[str | None, str]:
    name, equals, file = text.partition("=")
    return (name, file) if equals else (None, text)


def _runner(address: str | None) -> contextlib.AbstractContextManager:
    """Where the work is done."""
    if needs_cluster(address):
        from cedm_ray.distributed.shares import cluster_runner

        return cluster_runner(address)
    from cedm_ray.evaluation.gathering import run_here

    return contextlib.nullcontext(run_here)


def _print(told: dict[str, Any]) -> None:
    from cedm_ray.terminal import print_table

    count = len(told["scores"][0]["values"])
    several = count > 1
    sets = [f"set {number}" for number in range(1, count + 1)] if several else []
    rows = [
        [
            score["metric"],
            _number(score["mean"]),
            *([_number(score["std"]), *map(_number, score["values"])] if several else []),
            "–" if score["errors"] is None else f"±{_number(max(score['errors']))}",
            f"{score['images']:,}",
            score["network"],
        ]
        for score in told["scores"]
    ]
    columns = ["metric", *(["mean", "std", *sets] if several else ["value"]), "error", "images", "detector"]
    print_table(_title(told), columns, rows)
    # With the numbers, and not as a notice: it holds where they are read from the study's record, and with -q too.
    if told["collapsed"]:
        click.echo(f"The images of {told['name']} are all alike: no number of them is a result")
    for one in told["differences"]:
        click.echo(_say_difference(told, one))
    for one in told["against"]:
        error = "" if one["standard_error"] is None else f" ± {_number(one['standard_error'])}"
        click.echo(f"{one['metric']} less the earlier one: {_number(one['value'])}{error}")
    if told["efficiency"] is not None:
        click.echo(_say_efficiency(told["name"], told["efficiency"]))


def _say_difference(told: dict[str, Any], one: dict[str, Any]) -> str:
    interval = f"{one['level']:.0%} interval {_number(one['low'])} to {_number(one['high'])}"
    verdict = "" if one["resolved"] else "; the interval holds 0, so the order of the two is not settled"
    # Where a trial was stopped early, the difference is one of training too. Earlier records do not know it.
    seen = one.get("versus_images_seen", told["images_seen"])
    if seen != told["images_seen"]:
        verdict += f"; {one['versus']} was trained on {seen:,} images, {told['name']} on {told['images_seen']:,}"
    return (
        f"{one['metric']} of {told['name']} less that of {one['versus']}: {_number(one['value'])}, {interval}{verdict}"
    )


def _say_efficiency(name: str, found: dict[str, Any]) -> str:
    baseline = f"the unconditional model's best distance at a rung, {_number(found['target'])}"
    if found["factor"] is None:
        return f"Sample efficiency: {name} has not reached {baseline}"
    bound = "at least " if found["at_first"] else ""
    return (
        f"Sample efficiency: {name} reaches {baseline}, with {bound}{found['factor']:.3g} times fewer training images"
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        mend = "name what cedm-ray evaluate --json printed of an earlier measurement"
        raise ConfigurationError(f"cannot read {path.absolute()}: {error}", mend=mend) from None


def _title(told: dict[str, Any]) -> str:
    reference, against = told["reference"], ""
    if reference is not None:
        images = f"{reference['images']:,} images of " if reference["images"] is not None else ""
        against = f", against {images}{reference['name']}"
    if told["seeds"] is None:
        return f"{told['name']}, {told['num_samples']:,} images{against}"
    seeds = ", ".join(f"{first}-{end - 1}" for first, end in told["seeds"])
    return f"{told['name']} at {told['images_seen']:,} images seen, seeds {seeds}{against}"


def _number(value: float) -> str:
    return f"{value:.4g}"
