"""What generated images are compared with: the training images of a study, images of files, or published moments.

The statistics of a reference, and the rows of its sample, are computed once for every pair of image digest and
detector key and then read: in the study, or for files in the user's cache folder.

Shapes: N reference images, D feature width, R kept rows.
"""

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cedm_ray import durable
from cedm_ray.config import digest
from cedm_ray.data.image_set import ImageSet, open_image_set
from cedm_ray.data.stored_images import content_digest, open_stored
from cedm_ray.errors import InputDataError, IntegrityError
from cedm_ray.evaluation.gathering import FileImages, Keep, Network, Runner, Summary, TrainingImages, Work, gather
from cedm_ray.features.extractors import Extractor
from cedm_ray.features.store import extract_features, feature_key
from cedm_ray.metrics.frechet import ReferenceFactor, read_reference
from cedm_ray.metrics.statistics import FeatureStatistics
from cedm_ray.search.results import Notice, Progress, Show
from cedm_ray.search.study import Study


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """Reference images that can be put through a network.

    name: for people. digest: of the pixels. count: N. image_size: S in pixels. image_set: folder of the image set that
    they are, None where they are files. fitted_on, pixel_components: as in `Work`, which need not be about these
    images. folder: where what is computed of them is kept.
    """

    name: str
    digest: str
    count: int
    image_size: int
    image_set: str | None
    fitted_on: str | None
    subject: TrainingImages | FileImages
    pixel_components: int
    folder: Path

    def summary(self, network: Network, extractor: Extractor, keep: Keep, run: Runner, show: Show) -> Summary:
        """Statistics, and rows of a sample, under one network: read where they were computed before."""
        # In a study the image set is the study's own, so that the detector's key alone tells its statistics apart.
        stem = extractor.key if self.image_set else digest({"images": self.digest, "extractor": extractor.key})
        places = self._places(stem, keep)
        found = {kind: _read(path, self.digest, extractor.key, show) for kind, path in places.items()}
        missing = [kind for kind, arrays in found.items() if arrays is None]
        if not missing:
            return _summary(found)
        wanted = Keep(statistics="statistics" in missing, rows=keep.rows if "rows" in missing else 0)
        ((computed,),) = gather(self.work(network, wanted), run, show)
        about = {"detector": extractor.name, "key": extractor.key, "images": self.digest}
        for kind in missing:
            found[kind] = computed.statistics.to_arrays() if kind == "statistics" else {"rows": computed.rows}
            durable.write_tensors(places[kind], found[kind], about)
        return _summary(found)

    def work(self, network: Network, keep: Keep) -> Work:
        """All images through one network."""
        return Work(
            task="reference",
            subject=self.subject,
            num_sets=1,
            num_images=self.count,
            networks=(network,),
            keeps=(keep,),
            fitted_on=self.fitted_on,
            image_size=self.image_size,
            pixel_components=self.pixel_components,
        )

    def _places(self, stem: str, keep: Keep) -> dict[str, Path]:
        places = {}
        if keep.statistics or keep.blocks:
            places["statistics"] = self.folder / f"{stem[:16]}.safetensors"
        if keep.rows:
            places["rows"] = self.folder / f"{stem[:16]}-rows-{min(keep.rows, self.count)}.safetensors"
        return places


def _read(path: Path, images: str, key: str, show: Show) -> dict[str, np.ndarray] | None:
    """What was computed before; None where it was not, or where it is damaged, of which `show` is told."""
    try:
        arrays, about = durable.read_tensors(path)
    except FileNotFoundError:
        return None
    except IntegrityError as error:
        show(Notice(text=f"the reference is computed again: {error}"))
        return None
    return arrays if about["images"] == images and about.get("key", key) == key else None


def _summary(found: dict[str, dict[str, np.ndarray]]) -> Summary:
    statistics = found.get("statistics")
    return Summary(
        statistics=None if statistics is None else FeatureStatistics.from_arrays(statistics),
        blocks=(),
        rows=found["rows"]["rows"] if "rows" in found else np.empty((0, 0), dtype=np.float32),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """Published mean and covariance, from an npz file with `mu` [D] and `sigma` [D, D]. name: of the file."""

    path: str
    name: str
    digest: str
    image_size: None = None
    image_set: None = None
    count: None = None

    @classmethod
    def open(cls, path: str) -> "Moments":
        """The moments of a file, which is read when they are needed."""
        place = Path(path).expanduser().absolute()
        return cls(path=str(place), name=place.stem, digest=durable.sha256_file(place))

    def factor(self, extractor: Extractor) -> ReferenceFactor:
        """What a Fréchet distance needs of them. Raises InputDataError where they are not of this detector's width."""
        factor = read_reference(self.path)
        if len(factor.mean) != extractor.dim:
            raise InputDataError(
                f"{self.path} holds moments of {len(factor.mean)} features, and {extractor.name} has {extractor.dim}",
                mend="name the detector that they were computed with: --detector, or fid, fdd",
            )
        return factor


def is_moments(path: str) -> bool:
    """Whether a path is an npz file that holds `mu` and `sigma`."""
    place = Path(path).expanduser()
    if place.suffix != ".npz" or not zipfile.is_zipfile(place):
        return False
    with zipfile.ZipFile(place) as archive:
        return {"mu.npy", "sigma.npy"} <= set(archive.namelist())


# Kinds of references ------------------------------------------------------------------------------------------------


def study_reference(
    study: Study, images: ImageSet, *, fitted_on: str, pixel_components: int, batch_size: int
) -> Reference:
    """The training images of a study. fitted_on, pixel_components: as in `Work`."""
    return Reference(
        name=images.name,
        digest=images.digest,
        count=len(images),
        image_size=images.size,
        image_set=str(study.images.absolute()),
        fitted_on=fitted_on,
        subject=TrainingImages(images=str(study.images.absolute()), batch_size=batch_size),
        pixel_components=pixel_components,
        folder=study.references,
    )


def files_reference(
    path: str, cache: Path, *, batch_size: int, fitted_on: str | None = None, pixel_components: int = 1
) -> Reference:
    """The images of a folder, a zip or an npz file. cache: the user's folder. fitted_on, pixel_components: as in
    `Work`. Raises as `open_stored`."""
    images = open_stored(path)
    folder = cache / "references"
    known = folder / f"{images.fingerprint[:16]}.json"
    # The digest is over the pixels, for which all images must be decoded: once, as long as the files stay as they are.
    try:
        content = durable.read_record(known)
    except (FileNotFoundError, IntegrityError):
        content = None
    if content is None or content["fingerprint"] != images.fingerprint:
        content = {"fingerprint": images.fingerprint, "digest": content_digest(images)}
        durable.replace_record(known, content)
    return Reference(
        name=images.name,
        digest=content["digest"],
        count=len(images),
        image_size=images.size,
        image_set=None,
        fitted_on=fitted_on,
        subject=FileImages(path=path, batch_size=batch_size),
        pixel_components=pixel_components,
        folder=folder,
    )


def training_features(reference: Reference, extractor: Extractor, show: Show) -> np.ndarray:
    """The features of a study's training images, float32 [N, D], computed where the study does not have them yet."""
    images = open_image_set(Path(reference.image_set))
    folder = Study(reference.folder.parent).features(feature_key(images, extractor))
    steps = extract_features(images, extractor, folder, batch_size=reference.subject.batch_size)
    while True:
        try:
            step = next(steps)
        except StopIteration as end:
            show(Progress(task="features", done=len(images), total=len(images), unit="images", ended=True))
            return end.value
        show(Progress(task="features", done=step.done, total=step.total, unit="images"))


def all_features(reference: Reference, network: Network, run: Runner, show: Show) -> np.ndarray:
    """The features of every image of a reference outside a study, float32 [N, D], held in memory and not kept."""
    ((summary,),) = gather(reference.work(network, Keep(rows=reference.count)), run, show)
    return summary.rows
