"""What a study needs before its tasks: the image set and the neighbors. Each is made once and then found.

N images, D features, m neighbors.
"""

from pathlib import Path

import numpy as np

from cedm_ray import durable
from cedm_ray.clustering.neighbors import nearest_neighbors
from cedm_ray.data.image_set import ImageSet, open_image_set
from cedm_ray.data.images_config import ImagesConfig
from cedm_ray.data.importing import Decode, ImportProgress, import_images
from cedm_ray.data.same_images import same_images
from cedm_ray.data.sources import source_fingerprint
from cedm_ray.errors import InputDataError
from cedm_ray.search.results import Notice, Progress, Show, shown
from cedm_ray.search.space import SearchSpace
from cedm_ray.search.study import Study


def prepare_images(study: Study, space: SearchSpace, show: Show, decode: Decode | None = None) -> ImageSet:
    """The study's image set, imported where it is not there yet.

    A study goes on with the images that it has, also where their source is gone. Raises InputDataError where the source
    is there and holds other images now, and as `import_images`. decode: as there.
    """
    if (study.images / durable.MANIFEST).exists():
        images = open_image_set(study.images)
        _check_unchanged(images, space.images, study, show)
        return images
    images = import_shown(space.images, study.images, show, decode)
    if images.refused:
        first = images.refused[0]
        more = f" and {len(images.refused) - 1} more, listed in {study.images / 'index.parquet'}"
        show(Notice(text=f"left out {first}" + (more if len(images.refused) > 1 else "")))
    return images


def reading_images(step: ImportProgress) -> Progress:
    """A step of whatever reads a source."""
    return Progress(task="images", done=step.done, total=step.total, unit="images")


def import_shown(config: ImagesConfig, folder: Path, show: Show, decode: Decode | None = None) -> ImageSet:
    """`import_images` with its progress shown."""
    images = shown(import_images(config, folder, decode=decode), reading_images, show)
    show(Progress(task="images", done=len(images), total=len(images), unit="images", ended=True))
    return images


def _check_unchanged(images: ImageSet, config: ImagesConfig, study: Study, show: Show) -> None:
    try:
        now = source_fingerprint(config)
    except InputDataError as error:
        show(Notice(text=f"the source is out of reach ({error}); the study goes on with its own copy of the images"))
        return
    if images.fingerprint in (None, now) or now in study.same_sources():
        return
    show(Notice(text=f"the files of {config.source} are not dated as they were: their contents are compared"))
    if not same_images(config, study.images):
        raise InputDataError(
            f"the images at {config.source} are not those that {study.path} was begun with",
            mend="put the old images back, or begin a new study with another --study",
        )
    # Reading a large source takes long, and every command that goes on with the study comes by here.
    study.write_same_source(now)


def prepare_neighbors(
    study: Study,
    space: SearchSpace,
    features: np.ndarray,
    key: str,
    device: str,
    show: Show,
    *,
    extractor: str | None = None,
) -> None:
    """Find the nearest neighbors of all images in the features of `key`, unless they are there.

    extractor: whose features they are, where that is another than the space's own. Where there are no more images than
    neighbors, every other image is a neighbor, and `show` is told.
    """
    place = study.neighbors_in(extractor)
    if place.exists() and durable.read_tensors(place)[1]["features"] == key:
        return
    wanted = space.clustering.num_neighbors
    num_neighbors = min(wanted, len(features) - 1)
    if num_neighbors < wanted:
        text = f"clustering.num_neighbors is {wanted} and there are {len(features)} images: {num_neighbors} are used"
        show(Notice(text=text))
    neighbors = nearest_neighbors(features, num_neighbors, device=device)
    about = {"features": key, "extractor": extractor or space.features.extractor}
    durable.write_tensors(place, {"neighbors": neighbors}, about)
