"""The verb that starts nothing: plan."""

import json
from pathlib import Path

import click

from cedm_ray.errors import ConfigurationError
from cedm_ray.verbs.options import options


@click.command()
@click.argument("space", type=click.Path(path_type=Path))
@click.option(
    "--image-size",
    type=click.IntRange(min=1),
    help="Side in pixels; default: images.size, else that of the first image.",
)
@options("images", "json")
def plan(space: Path, image_size: int | None, images: str | None, as_json: bool) -> None:
    """Count what one trial will cost, rung by rung, without starting anything."""
    from cedm_ray.config import read_config
    from cedm_ray.search.plan import plan_trial
    from cedm_ray.search.space import SearchSpace
    from cedm_ray.terminal import print_table

    # Not read_space: a template without images can be counted too.
    read = read_config(SearchSpace, space, {"images.source": images} if images is not None else None)
    counted = plan_trial(read, image_size or read.images.size or _first_side(read.images))
    rungs = [
        {
            "rung_kimg": rung.rung_kimg,
            "images": rung.images,
            "training_flops": rung.training_flops,
            "num_samples": rung.num_samples,
            "num_steps": rung.num_steps,
            "sampling_flops": rung.sampling_flops,
            "detector_flops": rung.detector_flops,
            "share": rung.share,
        }
        for rung in counted.rungs
    ]
    if as_json:
        told = {
            "name": read.name,
            "image_size": counted.image_size,
            "forward_flops": counted.forward_flops,
            "training_flops": counted.training_flops,
            "evaluation_flops": counted.evaluation_flops,
            "rungs": rungs,
        }
        click.echo(json.dumps(told, indent=2))
        return
    rows = [
        [
            f"{rung['rung_kimg']:g}",
            f"{rung['images']:,}",
            _flops(rung["training_flops"]),
            f"{rung['num_samples']:,} x {rung['num_steps']} steps",
            _flops(rung["sampling_flops"]),
            "not counted" if rung["detector_flops"] is None else _flops(rung["detector_flops"]),
            f"{rung['share']:.1%}",
        ]
        for rung in rungs
    ]
    size = counted.image_size
    print_table(
        f"One trial of {read.name} at {size} x {size} pixels; a forward pass is {_flops(counted.forward_flops)}",
        ["kimg", "images", "training", "evaluation", "sampling", "detector", "share of the training"],
        rows,
    )
    total = f"{_flops(counted.training_flops)} of training and {_flops(counted.evaluation_flops)} of evaluation"
    click.echo(f"Through all rungs: {total}. The reference statistics, computed once a study, are not in it.")


def _first_side(config) -> int:
    """The side of the first image of a source whose images keep their own."""
    from cedm_ray.data.decoding import SourceImage, decode_entries
    from cedm_ray.data.sources import open_source

    if config.source is None:
        raise ConfigurationError("neither images.size nor images.source is set", mend="name the side: --image-size 64")
    for image in decode_entries(open_source(config), config):
        if isinstance(image, SourceImage):
            return image.pixels.shape[-1]
    raise ConfigurationError(f"{config.source} holds no image that can be read", mend="name the side: --image-size 64")


def _flops(count: float) -> str:
    """A number of operations for people, such as `83.2 GFLOP`."""
    for prefix in ("", "k", "M", "G", "T", "P"):
        if count < 1000:
            return f"{count:.3g} {prefix}FLOP"
        count /= 1000
    return f"{count:,.3g} EFLOP"
