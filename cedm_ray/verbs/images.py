"""The verb of images alone, without a study: inspect, import, export."""

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import click

from cedm_ray.errors import ConfigurationError, InputDataError
from cedm_ray.verbs.options import Target, options

SHOWN = 5


@click.group()
def images() -> None:
    """Look at images, make a set of them, write a set as files.

    PATH is whatever `search --images` takes, SET the folder of an image set.
    """


_background = click.option(
    "--background", default="black", show_default=True, help="Color under transparent pixels: black, white or #rrggbb."
)
LIMITS = {
    "max_pixels": ("64,000,000", "width x height of an image, judged by its header"),
    "max_file_bytes": ("268,435,456", "bytes of one file"),
    "max_files": ("20,000,000", "files of a source"),
    "max_unpacked_bytes": ("4,398,046,511,104", "bytes of an archive, unpacked"),
    "max_ratio": ("200", "times that anything packed may inflate"),
    "max_shards": ("100,000", "files that a pattern names"),
}
"""Of `ImagesConfig`: the default and what it is, here too because reading it there takes a second."""


def _limits(function: Callable) -> Callable:
    for name, (default, what) in reversed(LIMITS.items()):
        option = "--" + name.replace("_", "-")
        function = click.option(option, type=int, help=f"Limit: {what}.  [default: {default}]")(function)
    return function


@images.command("inspect")
@click.argument("path")
@click.option("--sheet", type=Target(".png"), help="Write a contact sheet, a PNG file.")
@_background
@_limits
@options("quiet", "json")
def inspect_verb(
    path: str, sheet: Path | None, background: str, quiet: bool, as_json: bool, **limits: int | None
) -> None:
    """Say what PATH holds: sizes, modes, formats, bad images, copies.

    Equal images have the same pixels; alike ones are the same picture after another encoding, a change of brightness or
    a shift by a pixel, as far as a comparison at 32x32 pixels can tell.
    """
    from cedm_ray import durable
    from cedm_ray.data.inspection import inspect_images
    from cedm_ray.search.prepare import reading_images
    from cedm_ray.search.results import shown
    from cedm_ray.terminal import Display

    steps = inspect_images(_config(source=path, background=background, **limits))
    with Display(quiet=quiet) as show:
        found = shown(steps, reading_images, show)
    if sheet is not None:
        if not found.samples:
            raise InputDataError(f"{path} has no good image for a contact sheet", mend="leave --sheet away")
        from cedm_ray.data.pictures import png
        from cedm_ray.report.contact_sheet import contact_sheet

        durable.write_bytes(sheet, png(contact_sheet(found)))
    if as_json:
        click.echo(json.dumps(_plain(found, sheet), indent=2))
        return
    for line in _describe(found):
        click.echo(line)
    if sheet is not None:
        click.echo(f"contact sheet: {sheet.absolute()}")
    if found.num_images:
        click.echo(f"to make a set of them: {_advice(found, path)}")


def _plain(found, sheet: Path | None) -> dict:
    return {
        "source": found.location,
        "kind": found.kind,
        "labelled": found.labelled,
        "images": found.num_images,
        "refused": [{"name": refusal.name, "reason": refusal.reason} for refusal in found.refused],
        "reasons": {reason: len(names) for reason, names in found.reasons.items()},
        "formats": found.formats,
        "modes": found.modes,
        "sizes": [{"width": w, "height": h, "images": count} for (w, h), count in found.sizes.items()],
        "other_sizes": found.num_other_sizes,
        "smallest_side": found.smallest_side,
        "largest_side": found.largest_side,
        "not_square": found.num_not_square,
        "flat": found.num_flat,
        "equal": found.exact,
        "alike": found.near,
        "sheet": None if sheet is None else str(sheet.absolute()),
    }


def _describe(found) -> list[str]:
    """What was found, in lines for a terminal; every name in them is printable."""
    from cedm_ray.data.decoding import printable

    total = found.num_images + len(found.refused)
    labels = ", with labels" if found.labelled else ""
    lines = [f"{printable(found.location)}: {found.kind}, {total:,} images{labels}"]
    lines.append(f"good        {found.num_images:,}")
    lines.append(f"refused     {len(found.refused):,}")
    for reason, names in found.reasons.items():
        lines.append(f"            {len(names):,} x {printable(reason)}: {_some(names)}")
    if not found.num_images:
        return lines
    sizes = {f"{width}x{height}": count for (width, height), count in found.sizes.items()}
    lines.append(f"formats     {_counts(found.formats)}")
    lines.append(f"modes       {_counts(found.modes)}")
    lines.append(f"sizes       {_counts(sizes, found.num_other_sizes)}; sides {_range(found)} pixels")
    lines.append(f"not square  {found.num_not_square:,}")
    lines.append(f"one color   {found.num_flat:,}, or almost")
    for what, groups in (("equal", found.exact), ("alike", found.near)):
        extra = sum(len(group) - 1 for group in groups)
        lines.append(f"{what:<12}{sum(map(len, groups)):,} in {len(groups):,} groups, {extra:,} more than one of each")
        lines += [f"            {len(group):,} x {_some(group)}" for group in groups[:SHOWN]]
        if len(groups) > SHOWN:
            lines.append(f"            and {len(groups) - SHOWN:,} more groups (all are in --json)")
    return lines


def _range(found) -> str:
    one = found.smallest_side == found.largest_side
    return f"{found.smallest_side:,}" if one else f"{found.smallest_side:,} to {found.largest_side:,}"


def _counts(counts: Mapping[str, int], more: int = 0) -> str:
    """The most frequent ones with their numbers."""
    shown = list(counts.items())[:SHOWN]
    others = sum(counts.values()) + more - sum(count for _, count in shown)
    text = ", ".join(f"{count:,} {name}" for name, count in shown)
    return text + (f", {others:,} of {len(counts) - len(shown):,} more kinds" if others else "")


def _some(names: Sequence[str]) -> str:
    from cedm_ray.data.decoding import printable

    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return ", ".join(printable(name) for name in names[:SHOWN]) + more


def _advice(found, path: str) -> str:
    """The command that makes a set of these images at the size that most of them have."""
    import shlex

    from cedm_ray.data.decoding import printable

    side = found.common_side
    crop = " --crop center" if found.num_not_square else ""
    small = found.num_smaller_than(side)
    note = f"  ({small:,} are smaller and refused then; --enlarge takes them)" if small else ""
    return f"cedm-ray images import {printable(shlex.quote(path))} --size {side}{crop} --out SET{note}"


@images.command("import")
@click.argument("path")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the set.")
@click.option("--size", type=int, metavar="S", help="Side in pixels; default: the images' own, if it is one.")
@click.option(
    "--crop", type=click.Choice(["none", "center"]), default="none", show_default=True, help="What is cut out of each."
)
@click.option("--enlarge", is_flag=True, help="Enlarge smaller images instead of refusing them.")
@_background
@click.option(
    "--on-bad",
    type=click.Choice(["fail", "skip"]),
    default="skip",
    show_default=True,
    help="End at the first refused image, or leave such out.",
)
@click.option(
    "--max-bad-fraction", type=float, default=0.01, show_default=True, help="Largest refused part with --on-bad skip."
)
@_limits
@options("address", "quiet", "json")
def import_verb(path: str, out: Path, address: str | None, quiet: bool, as_json: bool, **settings: object) -> None:
    """Make an image set of PATH, and name what is refused.

    A set that is there already and was made of the same images in the same way is checked and left as it is. Of 200,000
    images or 4 GiB on, all machines of a cluster that is named decode; they must find PATH where this one does.
    """
    from cedm_ray.data.image_set import INDEX, MANIFEST
    from cedm_ray.lock import exclusive_lock
    from cedm_ray.search.prepare import import_shown
    from cedm_ray.terminal import Display

    config = _config(source=path, **settings)
    with _speaking_of_options(), exclusive_lock(out / ".import.lock"):
        there = (out / MANIFEST).exists()
        if there:
            found = _check_same(config, out)
        else:
            with Display(quiet=quiet) as show, _decoding(address, show) as decode:
                found = import_shown(config, out, show, decode)
    about = {
        "set": str(out.absolute()),
        "images": len(found),
        "size": found.size,
        "digest": found.digest,
        "refused": len(found.refused),
        "made": not there,
    }
    if as_json:
        refused = [{"name": refusal.name, "reason": refusal.reason} for refusal in found.refused]
        click.echo(json.dumps(about | {"refused": refused}, indent=2))
        return
    for refusal in found.refused[: 4 * SHOWN]:
        click.echo(f"refused {_as_options(str(refusal))}")
    if len(found.refused) > 4 * SHOWN:
        click.echo(f"refused {len(found.refused) - 4 * SHOWN:,} more, named in {out.absolute() / INDEX}")
    done = "unchanged, every pixel checked" if there else "made"
    click.echo(
        f"{out.absolute()}: {len(found):,} images of {found.size}x{found.size}, {len(found.refused):,} refused, {done}"
    )
    click.echo(f"digest {found.digest}")


@images.command("export")
@click.argument("folder", metavar="SET", type=click.Path(path_type=Path))
@click.option(
    "--out", required=True, type=Target(".zip", ".parquet", folder=True), help="A folder, *.zip or *.parquet."
)
@options("quiet")
def export_verb(folder: Path, out: Path, quiet: bool) -> None:
    """Write a set as files: PNG in a folder or in EDM's zip, or Parquet."""
    from cedm_ray.data.exporting import export_images
    from cedm_ray.data.image_set import open_image_set
    from cedm_ray.search.results import Progress
    from cedm_ray.terminal import Display

    images = open_image_set(folder)
    with Display(quiet=quiet) as show:
        for done in export_images(images, out):
            show(Progress(task="images", done=done, total=len(images), unit="images"))
    click.echo(out.absolute())


@contextlib.contextmanager
def _decoding(address: str | None, show) -> Iterator:
    """What decodes: the cluster where one is named, else None. Ray takes a second to import."""
    if not (address or os.environ.get("RAY_ADDRESS")):
        yield None
        return
    from cedm_ray.distributed.decoding import cluster_decode

    with cluster_decode(address, show) as decode:
        yield decode


def _config(**settings: object):
    """The settings as ImagesConfig; None means the default. ConfigurationError naming the option that breaks a rule."""
    from cedm_ray.config import parse_config
    from cedm_ray.data.images_config import ImagesConfig

    with _speaking_of_options():
        given = {name: value for name, value in settings.items() if value is not None}
        return parse_config(ImagesConfig, given, "the command line")


@contextlib.contextmanager
def _speaking_of_options() -> Iterator[None]:
    """Errors inside name the options of this verb where they name the keys of a YAML file."""
    try:
        yield
    except (ConfigurationError, InputDataError) as error:
        mend = None if error.mend is None else _as_options(error.mend)
        raise type(error)(_as_options(str(error)), mend=mend) from None


def _as_options(text: str) -> str:
    """`images.on_bad` becomes `--on-bad`."""
    return re.sub(r"\bimages\.([a-z_]+)", lambda match: "--" + match[1].replace("_", "-"), text)


def _check_same(config, folder: Path):
    """The set in `folder`, every pixel of it checked. ConfigurationError where it was made in another way than `config`
    says, InputDataError where the images are others now, IntegrityError where it is damaged."""
    from cedm_ray import durable
    from cedm_ray.data.image_set import MANIFEST, open_image_set
    from cedm_ray.data.images_config import ImagesConfig
    from cedm_ray.data.same_images import same_images
    from cedm_ray.data.sources import source_fingerprint

    made = durable.read_record(folder / MANIFEST)
    mend = f"name another folder with --out, or remove {folder.absolute()}"
    now = config.model_dump(mode="json")
    # A set of an earlier version was made with the defaults of settings that came since.
    made = made | {"config": ImagesConfig().model_dump(mode="json") | made["config"]}
    changed = [key for key in now if key != "source" and made["config"].get(key) != now[key]]
    if changed:
        differences = ", ".join(f"images.{key} was {made['config'].get(key)} and is {now[key]} now" for key in changed)
        raise ConfigurationError(f"{folder.absolute()} holds a set made otherwise: {differences}", mend=mend)
    if source_fingerprint(config) != made["fingerprint"] and not same_images(config, folder):
        raise InputDataError(
            f"{folder.absolute()} was made of other images than {config.source} holds now (it was {made['source']})",
            mend=mend,
        )
    return open_image_set(folder, verify=True)
