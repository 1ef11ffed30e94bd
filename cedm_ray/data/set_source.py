"""An image set that was imported before, as the source of another: its rows, names and labels as they are.

Shapes: N images, S image side.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cedm_ray.data.decoding import Refusal
from cedm_ray.data.entries import Entry, Listed
from cedm_ray.data.image_set import MANIFEST, PIXELS, ImageSet, open_image_set


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ImageSetSource(Listed):
    """The N images of a set. What the set's own source held and the set does not is not there any more."""

    location: str
    images: ImageSet
    kind: str = "image-set"
    refused: tuple[Refusal, ...] = ()
    streamed: bool = False

    @property
    def name(self) -> str:
        return self.images.name

    @property
    def labels(self) -> np.ndarray | None:
        """Those of the set."""
        return self.images.labels

    @property
    def files(self) -> tuple[str, ...]:
        """The names of the images."""
        return self.images.names

    @property
    def size_bytes(self) -> int:
        return self.images.pixels.nbytes

    def at(self, positions: Iterable[int]) -> Iterator[Entry | Refusal]:
        for row in positions:
            yield Entry(
                name=self.images.names[row],
                content=np.ascontiguousarray(self.images.pixels[row].transpose(1, 2, 0)),
                label=self.label_at(row),
            )

    def listing(self) -> Iterator[Any]:
        yield from ("image-set", self.images.digest, self.images.names_digest)


def is_image_set(folder: Path) -> bool:
    """Whether a folder is an image set, as far as its files' names say."""
    return (folder / MANIFEST).is_file() and (folder / PIXELS).is_file()


def list_image_set(folder: Path) -> ImageSetSource:
    """Open a set as a source. Raises as `open_image_set`."""
    return ImageSetSource(location=str(folder), images=open_image_set(folder))
