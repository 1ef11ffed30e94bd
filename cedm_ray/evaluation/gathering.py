"""From images to what a metric needs of them, in shares that any number of processes can do and that add up alike.

Sets of n images each, from a model and its seeds or from files, go batch by batch through one or several frozen
networks. Of the features only this is kept: their statistics (sums that add), those of B blocks apart where a metric
asks for it, and the rows of a bounded sample of images. Memory is that, whatever n is.

The unit of work is one block of one set: every B-th image of it, so that a block is as mixed as the set even where
files are sorted by class. Whoever does a unit forms the same batches, and units are added in their order: one, two or
three workers give the same sums to the last bit where their arithmetic is the same.

Shapes: n images of a set, D feature width, R kept rows, B blocks.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from cedm_ray.data.image_set import ImageSet, open_image_set
from cedm_ray.data.stored_images import open_stored
from cedm_ray.errors import ConfigurationError, TryAgainError
from cedm_ray.features.extractors import Extractor, open_extractor
from cedm_ray.features.inception import open_inception_classifier
from cedm_ray.metrics.statistics import FeatureStatistics
from cedm_ray.search.evaluate import features_of
from cedm_ray.search.model import find_model
from cedm_ray.search.results import Progress, Show
from cedm_ray.search.study import Study

MAX_ROWS = 10_000
"""Feature rows that are kept of a set for the metrics that compare images one by one, as in the published protocols."""

PROBABILITIES = "inception:probabilities"
"""The word of Inception-v3's class probabilities, which take the place of features."""

BATCH = 256
"""Images of files that are read and put through the networks at once."""

BLOCKS = (20, 12, 10, 6)
"""Numbers of blocks, the first one of which each block has at least SMALLEST_BLOCK images; they have many divisors, as
an extrapolation wants."""

SMALLEST_BLOCK = 25
_ROWS_SEED = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A frozen network by its word. weights: a file to take its weights from, None = its own."""

    spec: str
    weights: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """What is kept of one network's features. rows: of so many images of each set at most."""

    statistics: bool = False
    blocks: bool = False
    rows: int = 0

    def __or__(self, other: "Keep") -> "Keep":
        return Keep(
            statistics=self.statistics or other.statistics,
            blocks=self.blocks or other.blocks,
            rows=max(self.rows, other.rows),
        )


# What is measured ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelImages:
    """Images of a study's model, by their position: that of seed first_seed + position.

    trial: None = the best model. images_seen: of the model when the work was planned; a worker that finds another
    refuses it.
    """

    study: str
    trial: str | None
    images_seen: int
    first_seed: int
    batch_size: int

    def batches(self, positions: Sequence[int], opened) -> Iterator[torch.Tensor]:
        yield from opened.sample_on_device(
            [self.first_seed + position for position in positions],
            config=opened.meaning.sampling.model_copy(update={"batch_size": self.batch_size}),
        )

    def open(self, device: str):
        model = find_model(Study(Path(self.study)), self.trial, device, lambda event: None)
        if model.images_seen != self.images_seen:
            what = f"{self.trial or 'the best model'} of {self.study} went on training while it was measured"
            raise TryAgainError(what, mend="run the same command again")
        return model


@dataclass(frozen=True, slots=True, kw_only=True)
class FileImages:
    """Images of a folder, a zip or an npz file, by their position in the order of their names."""

    path: str
    batch_size: int

    def batches(self, positions: Sequence[int], opened) -> Iterator[np.ndarray]:
        for start in range(0, len(positions), self.batch_size):
            yield opened.read(positions[start : start + self.batch_size])

    def open(self, device: str):
        return open_stored(self.path)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingImages:
    """The image set of a study, by row."""

    images: str
    batch_size: int

    def batches(self, positions: Sequence[int], opened) -> Iterator[np.ndarray]:
        for start in range(0, len(positions), self.batch_size):
            yield opened.pixels[positions[start : start + self.batch_size]]

    def open(self, device: str):
        return open_image_set(Path(self.images))


Subject = ModelImages | FileImages | TrainingImages


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Everything that a process needs in order to do units, as plain values.

    task: its name for people. num_sets, num_images: sets, and images of each. networks, keeps: what is computed, and
    what is kept of it. fitted_on: folder of the image set that `pixels` is fitted on, None where there is none.
    image_size: S that networks are tried out with. pixel_components: of `pixels`.
    """

    task: str
    subject: Subject
    num_sets: int
    num_images: int
    networks: tuple[Network, ...]
    keeps: tuple[Keep, ...]
    fitted_on: str | None
    image_size: int
    pixel_components: int

    @property
    def num_blocks(self) -> int:
        """B. All blocks hold equally many images; those that are left over, fewer than B, are a unit of their own."""
        return blocks_of(self.num_images)

    @property
    def units(self) -> list[tuple[int, int]]:
        """All (set, block) in the order in which their parts are added; block B is what is left over."""
        rest = 1 if self.num_images % self.num_blocks else 0
        return [(number, block) for number in range(self.num_sets) for block in range(self.num_blocks + rest)]

    def positions(self, unit: tuple[int, int]) -> range:
        """The images of a unit."""
        number, block = unit
        first, end = number * self.num_images, (number + 1) * self.num_images
        whole = end - self.num_images % self.num_blocks
        return range(whole, end) if block == self.num_blocks else range(first + block, whole, self.num_blocks)


def blocks_of(num_images: int) -> int:
    """B, the blocks of a set of n images: 20, but fewer where blocks would be small."""
    large = (number for number in BLOCKS if num_images // number >= SMALLEST_BLOCK)
    return next(large, BLOCKS[-1] if num_images >= 2 * BLOCKS[-1] else 2)


def kept_rows(num_images: int, rows: int) -> np.ndarray:
    """Which images of a set keep their rows: bool [n], a seeded random choice, the same for equal arguments."""
    chosen = np.ones(num_images, dtype=bool)
    if rows < num_images:
        chosen[np.random.default_rng(_ROWS_SEED).permutation(num_images)[rows:]] = False
    return chosen


# Doing it -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What one unit gives for one network. statistics: arrays of FeatureStatistics, or None. rows: float32 [R, D]."""

    statistics: dict[str, np.ndarray] | None
    rows: np.ndarray


def open_network(network: Network, work: Work, device: str) -> Extractor:
    """Open one network of the work. Raises as `open_extractor`."""
    weights = None if network.weights is None else Path(network.weights)
    if network.spec == PROBABILITIES:
        return open_inception_classifier(torch.device(device), weights)
    if work.fitted_on is not None:
        images = open_image_set(Path(work.fitted_on))
    elif network.spec == "pixels":
        raise ConfigurationError(
            "the detector pixels is fitted on the training images of a study, and there is none",
            mend="measure a study, or give one as --reference, or another --detector",
        )
    else:
        # A network takes nothing from it but the size of its images.
        nothing = np.zeros((2, 3, work.image_size, work.image_size), dtype=np.uint8)
        images = ImageSet(name="nothing", names=("0", "1"), pixels=nothing, digest="")
    components = work.pixel_components
    return open_extractor(network.spec, images, pixel_components=components, weights=weights, device=device)


class Worker:
    """One process's copy of the images' source and of the networks."""

    def __init__(self, work: Work, device: str) -> None:
        self.work = work
        self._source = work.subject.open(device)
        self._networks = [open_network(network, work, device) for network in work.networks]
        self._kept = [kept_rows(work.num_images, keep.rows) for keep in work.keeps]

    def run(self, unit: tuple[int, int]) -> Iterator[int | tuple[Part, ...]]:
        """Do one unit: yields the images done so far after every batch, at last the parts, one for each network."""
        positions = self.work.positions(unit)
        first = unit[0] * self.work.num_images
        totals: list[FeatureStatistics | None] = [None] * len(self._networks)
        rows: list[list[np.ndarray]] = [[] for _ in self._networks]
        done = 0
        for batch in self.work.subject.batches(positions, self._source):
            places = np.asarray(positions[done : done + len(batch)]) - first
            for index, (network, keep) in enumerate(zip(self._networks, self.work.keeps, strict=True)):
                features = features_of(network, batch)
                if keep.statistics or keep.blocks:
                    found = FeatureStatistics.of(features)
                    totals[index] = found if totals[index] is None else totals[index] + found
                chosen = self._kept[index][places]
                if chosen.any():
                    rows[index].append(features.cpu().numpy()[chosen])
            done += len(batch)
            yield done
        yield tuple(
            Part(
                statistics=None if total is None else total.to_arrays(),
                rows=np.concatenate(kept) if kept else np.empty((0, network.dim), dtype=np.float32),
            )
            for total, kept, network in zip(totals, rows, self._networks, strict=True)
        )


Runner = Callable[[Work, Show], Iterable[tuple[Part, ...]]]
"""Does all units of a work, wherever, and gives their parts in the order of `Work.units`."""


def run_here(work: Work, show: Show) -> Iterator[tuple[Part, ...]]:
    """Do all units in this process, on its GPU where it has one."""
    worker = Worker(work, "cuda" if torch.cuda.is_available() else "cpu")
    total, before = work.num_sets * work.num_images, 0
    for unit in work.units:
        for said in worker.run(unit):
            if isinstance(said, tuple):
                yield said
            else:
                show(Progress(task=work.task, done=before + said, total=total, unit="images"))
        before += len(work.positions(unit))
    show(Progress(task=work.task, done=total, total=total, unit="images", ended=True))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Summary:
    """What is left of one set under one network.

    statistics: of all its images, None where not asked for. blocks: those of its B blocks, empty where not asked for.
    rows: float32 [R, D] of the images that were chosen.
    """

    statistics: FeatureStatistics | None
    blocks: tuple[FeatureStatistics, ...]
    rows: np.ndarray


def gather(work: Work, run: Runner, show: Show) -> list[tuple[Summary, ...]]:
    """Do the work: for every set, one Summary a network. Parts are added as they come and not kept.

    Raises what opening or reading raises, and InputDataError for features that are not finite.
    """
    found: list[tuple[Summary, ...]] = []
    parts = iter(run(work, show))
    for number in range(work.num_sets):
        totals: list[FeatureStatistics | None] = [None] * len(work.networks)
        blocks: list[list[FeatureStatistics]] = [[] for _ in work.networks]
        rows: list[list[np.ndarray]] = [[] for _ in work.networks]
        for block in (block for of_set, block in work.units if of_set == number):
            for index, part in enumerate(next(parts)):
                rows[index].append(part.rows)
                if part.statistics is None:
                    continue
                statistics = FeatureStatistics.from_arrays(part.statistics)
                totals[index] = statistics if totals[index] is None else totals[index] + statistics
                if work.keeps[index].blocks and block < work.num_blocks:
                    blocks[index].append(statistics)
        found.append(
            tuple(
                Summary(statistics=total, blocks=tuple(apart), rows=np.concatenate(kept))
                for total, apart, kept in zip(totals, blocks, rows, strict=True)
            )
        )
    for _ in parts:
        raise AssertionError("more parts than units")
    return found
