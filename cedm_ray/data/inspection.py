"""What a source of images holds, before anything is made of it.

Every image is decoded once, with the judgement of the import (`decode_image`), and the largest central square of it is
looked at in its own size: that is the most that training could see of it. One image at a time goes through memory; what
is kept of each is its name and its hashes (`duplicates.py`).

T side of a tile.
"""

import array
import re
import tempfile
from collections import Counter
from collections.abc import Generator, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cedm_ray.data.decoding import Refusal, SourceImage, decode_image, format_name
from cedm_ray.data.duplicates import DuplicateFinder
from cedm_ray.data.entries import Source
from cedm_ray.data.images_config import ImagesConfig
from cedm_ray.data.importing import ImportProgress
from cedm_ray.data.limits import Limits
from cedm_ray.data.sources import open_source
from cedm_ray.durable import storage_error

TILE_SIDE = 64
NUM_SAMPLES = 64
GROUPS_SHOWN, SHOWN_OF_GROUP = 12, 8
# So that a source of photographs, each of another size, takes no more memory than one of equal tiles.
MAX_SIZES = 10_000


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tile:
    """One image for a contact sheet. pixels: uint8 [3, T, T], its central square."""

    name: str
    pixels: np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Inspection:
    """What was found.

    kind: of source ("folder", "zip", ...). labelled: whether every image has a label. location: absolute path, or the
    name of what is built in. num_images: good ones. refused: the others, with their reasons. formats, modes: images of
    each, the most frequent first. sizes: images of each (width, height) as stored; the first MAX_SIZES sizes only.
    num_other_sizes: of all further sizes. smallest_side, largest_side: over all images, in pixels; 0 without any.
    num_not_square: images. exact, near: groups of names of images that are copies of each other
    (`duplicates.Duplicates`). num_flat: images of one color, or almost, over the background. samples: images at even
    distances. exact_shown, near_shown: the first images of the largest groups.
    """

    kind: str
    labelled: bool
    location: str
    num_images: int
    refused: tuple[Refusal, ...]
    formats: dict[str, int]
    modes: dict[str, int]
    sizes: dict[tuple[int, int], int]
    num_other_sizes: int
    smallest_side: int
    largest_side: int
    num_not_square: int
    exact: tuple[tuple[str, ...], ...]
    near: tuple[tuple[str, ...], ...]
    num_flat: int
    samples: tuple[Tile, ...]
    exact_shown: tuple[tuple[Tile, ...], ...]
    near_shown: tuple[tuple[Tile, ...], ...]

    @property
    def reasons(self) -> dict[str, list[str]]:
        """Names of the refused images by reason, the most frequent first; numbers in a reason are written as N."""
        found: dict[str, list[str]] = {}
        for refusal in self.refused:
            found.setdefault(re.sub(r"\d[\d,]*", "N", refusal.reason), []).append(refusal.name)
        return dict(sorted(found.items(), key=lambda item: -len(item[1])))

    @property
    def common_side(self) -> int:
        """The shorter side that most images have, in pixels; the largest of them where several do, 0 without images."""
        sides: Counter[int] = Counter()
        for (width, height), count in self.sizes.items():
            sides[min(width, height)] += count
        return max(sides, key=lambda side: (sides[side], side), default=0)

    def num_smaller_than(self, side: int) -> int:
        """How many images have a side shorter than this (of those in `sizes`)."""
        return sum(count for size, count in self.sizes.items() if min(size) < side)


def inspect_images(config: ImagesConfig) -> Generator[ImportProgress, None, Inspection]:
    """Look at every image of `config.source` and return what was found (as StopIteration's value); yields after each.

    Of `config` only source, background and the limits are used. Raises as `open_source` and as its source does, and
    StorageError where the folder for temporary files is full.
    """
    limits = {name: getattr(config, name) for name in Limits.model_fields}
    config = ImagesConfig(source=config.source, background=config.background, crop="center", **limits)
    source = open_source(config)
    count, samples = _Count(), []
    try:
        with DuplicateFinder() as finder:
            for done, entry in enumerate(source, start=1):
                image = entry if isinstance(entry, Refusal) else decode_image(entry.name, entry.content, config)
                if isinstance(image, SourceImage):
                    finder.add(len(count.names), image.pixels)
                    # What was refused when the source was listed comes before its files.
                    count.add(done - 1 - len(source.refused), image, entry.content)
                    # The next good one after each of so many even steps.
                    if (done - 1) * NUM_SAMPLES >= len(samples) * len(source):
                        samples.append(tile(image))
                else:
                    count.refused.append(image)
                yield ImportProgress(done=done, total=len(source), refused=len(count.refused))
            copies = finder.find()
    except OSError as error:
        # What cannot be read has become a refusal on its way; what is left is the temporary file.
        raise storage_error(error, Path(tempfile.gettempdir()) / "images", 0) from error
    names, positions = count.names, count.positions
    exact, near = (sorted(groups, key=len, reverse=True) for groups in (copies.exact, copies.near))
    shown = [group[:SHOWN_OF_GROUP] for group in (*exact[:GROUPS_SHOWN], *near[:GROUPS_SHOWN])]
    tiles = _tiles(source, {positions[number] for group in shown for number in group}, config)
    pictures = [tuple(tiles[positions[n]] for n in group if positions[n] in tiles) for group in shown]
    return Inspection(
        kind=source.kind,
        labelled=source.labelled,
        location=source.location,
        num_images=len(names),
        refused=tuple(count.refused),
        formats=dict(count.formats.most_common()),
        modes=dict(count.modes.most_common()),
        sizes=dict(count.sizes.most_common()),
        num_other_sizes=count.num_other_sizes,
        smallest_side=count.smallest_side or 0,
        largest_side=count.largest_side,
        num_not_square=count.num_not_square,
        exact=tuple(tuple(names[number] for number in group) for group in exact),
        near=tuple(tuple(names[number] for number in group) for group in near),
        num_flat=copies.num_flat,
        samples=tuple(samples),
        exact_shown=tuple(pictures[: len(exact[:GROUPS_SHOWN])]),
        near_shown=tuple(pictures[len(exact[:GROUPS_SHOWN]) :]),
    )


@dataclass(slots=True)
class _Count:
    """What is counted on the way. names, positions: of the good images, in their order."""

    names: list[str] = field(default_factory=list)
    positions: array.array = field(default_factory=lambda: array.array("q"))
    refused: list[Refusal] = field(default_factory=list)
    formats: Counter[str] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    num_other_sizes: int = 0
    smallest_side: int | None = None
    largest_side: int = 0
    num_not_square: int = 0

    def add(self, position: int, image: SourceImage, content: Any) -> None:
        self.names.append(image.name)
        self.positions.append(position)
        self.formats[format_name(content) if isinstance(content, bytes) else "pixels"] += 1
        self.modes[image.mode] += 1
        size = image.width, image.height
        if size in self.sizes or len(self.sizes) < MAX_SIZES:
            self.sizes[size] += 1
        else:
            self.num_other_sizes += 1
        self.smallest_side = min(size) if self.smallest_side is None else min(self.smallest_side, *size)
        self.largest_side = max(self.largest_side, *size)
        self.num_not_square += image.width != image.height


def _tiles(source: Source, positions: Iterable[int], config: ImagesConfig) -> dict[int, Tile]:
    """Small pictures of the files at these places. A file that is not what it was has none."""
    found = {}
    places = sorted(positions)
    for position, entry in zip(places, source.at(places), strict=True):
        image = entry if isinstance(entry, Refusal) else decode_image(entry.name, entry.content, config)
        if isinstance(image, SourceImage):
            found[position] = tile(image)
    return found


def tile(image: SourceImage) -> Tile:
    """A small picture of an image: smaller ones keep their pixels, each repeated, as far as they go into T."""
    side = image.pixels.shape[-1]
    picture = Image.fromarray(image.pixels.transpose(1, 2, 0))
    how = Image.Resampling.NEAREST if TILE_SIDE % side == 0 else Image.Resampling.LANCZOS
    picture = picture.resize((TILE_SIDE, TILE_SIDE), how)
    return Tile(name=image.name, pixels=np.asarray(picture).transpose(2, 0, 1))
