"""What several verbs share: options, how a study is opened, how values are printed."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import click

NO_C_PASSES = "train the clustering longer (clustering.epochs) or lower bound.alpha, in another study: --study"
"""What mends a bound that no C passes: what fits were made by stays as it is in their study."""

_FILES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".zip", ".tar", ".tgz", ".gz", ".npz")
_FILES += (".npy", ".parquet", ".pt", ".mp4")


class Target(click.Path):
    """A path to write to. kinds: endings that its file may have. folder: whether it may be a folder as well, which is
    any name but one that ends as a file of another kind does: a folder `x.gif` is not what was meant."""

    def __init__(self, *kinds: str, folder: bool = False) -> None:
        super().__init__(path_type=Path)
        self.kinds, self.folder = kinds, folder

    def convert(self, value: str, param: click.Parameter | None, context: click.Context | None) -> Path:
        path = super().convert(value, param, context)
        ending = path.suffix.lower()
        if ending not in self.kinds and (ending in _FILES or not self.folder):
            allowed = " or ".join(["a folder"] * self.folder + [f"*{kind}" for kind in self.kinds])
            self.fail(f"{path} must be {allowed}", param, context)
        return path


def options(*names: str) -> Callable:
    """Options that several verbs share."""
    known = {
        "study": click.option("--study", required=True, type=click.Path(path_type=Path), help="Folder of the study."),
        "images": click.option(
            "--images", metavar="PATH", help="Folder, archive or imported set of images; replaces images.source."
        ),
        "address": click.option(
            "--address", metavar="HOST:PORT", help="Ray cluster to use; default: $RAY_ADDRESS, else this machine."
        ),
        "quiet": click.option("-q", "--quiet", is_flag=True, help="Show no progress."),
        "json": click.option("--json", "as_json", is_flag=True, help="Print the result as JSON."),
        "labels": click.option(
            "--labels",
            metavar="FILE",
            default="own",
            help="Labels to compare with, for evaluation only: *.npz, *.parquet or *.pt with an integer for each "
            "image, the word folders, where each folder is a class, or the word own, for those that came with the "
            "images; default: own.",
        ),
        "gpus": click.option(
            "--gpus", metavar="NxNAME", help="GPUs to plan for, such as 8xA100; default: this machine's."
        ),
        "rate": click.option(
            "--rate",
            metavar="IMAGES_PER_S",
            type=click.FloatRange(min=0, min_open=True),
            help="Measured training speed to plan with, of one GPU, or of one trial on CPUs.",
        ),
        "trial": click.option(
            "--trial", metavar="NAME", help="Trial, such as c00020, or c00020@KIMG; default: the best model."
        ),
    }

    def decorate(function: Callable) -> Callable:
        for name in reversed(names):
            function = known[name](function)
        return function

    return decorate


def open_study(space: Path, study: Path, images: str | None):
    """The study and its space for a verb that drives it; notes the study for exit.json."""
    from cedm_ray.search.space import read_space
    from cedm_ray.search.study import Study

    place = Study(study)
    read = read_space(space, images=images)
    click.get_current_context().find_root().obj["study"] = place
    return place, read


def open_like(like: Path, space: Path | None, study: Path, images: str | None):
    """(the study, its space, the earlier study) for a search that is begun like an earlier one; notes the study for
    exit.json."""
    from cedm_ray.search.likeness import like_space
    from cedm_ray.search.space import read_space
    from cedm_ray.search.study import Study

    place, old = Study(study), Study(like)
    given = None if space is None else read_space(space, images=images)
    read = like_space(old, place, given, images)
    click.get_current_context().find_root().obj["study"] = place
    return place, read, old


def open_finished(study: Path):
    """An existing study and the space that it was begun with, for a verb that only reads."""
    from cedm_ray.search.space import SearchSpace
    from cedm_ray.search.study import Study

    place = Study(study)
    return place, SearchSpace.from_settled(place.settled())


def needs_cluster(address: str | None) -> bool:
    """Whether work is for a Ray cluster: one is named, or this machine has several GPUs. Starting Ray costs seconds,
    which one process and one GPU need not pay."""
    import torch

    return bool(address or os.environ.get("RAY_ADDRESS")) or torch.cuda.device_count() > 1


def short(value: float | None) -> str | None:
    return None if value is None else f"{value:.4g}"


def print_one(values: dict, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(values, indent=2))
        return
    width = max(len(name) for name in values)
    for name, value in values.items():
        click.echo(f"{name:<{width}}  {value}")
