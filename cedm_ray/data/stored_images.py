"""Images of any generator as they lie: a folder, a zip or an npz file, read by position, nothing copied.

A folder, a zip and whatever else can be read from any place (a plain tar, an image set, ...) are listed and decoded as
a study's images are (`sources.py`, `decoding.py`), in the order of their source. An npz file holds uint8 images as
`images` (as `cedm-ray sample --out x.npz` writes them), `arr_0` (as ADM's tools do) or another of the names in
`arrays.py`, each [n, S, S, 3] or [n, 3, S, S]; where the array is stored it is mapped, where it is compressed it is
held in memory as a whole. Here every image counts: one that cannot be read, or has another size, is an error that names
it.

Shapes: n images, b of a batch, S image side.
"""

import hashlib
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from cedm_ray.config import digest
from cedm_ray.data.arrays import UNREADABLE, MappedRows, image_key, npz_rows
from cedm_ray.data.decoding import Refusal, SourceImage, decode_entries, printable
from cedm_ray.data.entries import Source
from cedm_ray.data.image_set import pixels_digest
from cedm_ray.data.images_config import ImagesConfig
from cedm_ray.data.sources import fingerprint, open_source
from cedm_ray.errors import InputDataError

_BATCH = 256


class StoredImages(Protocol):
    """n images of one size. name: short, for people. size: S in pixels. fingerprint: changes whenever the images may
    have changed; it costs no decoding."""

    name: str
    size: int
    fingerprint: str

    def __len__(self) -> int: ...

    def read(self, positions: Sequence[int]) -> np.ndarray:
        """Images by their positions in [0, n): uint8 [b, 3, S, S]. Raises InputDataError for a bad one, by its name."""


def open_stored(path: str | Path) -> StoredImages:
    """Find out what `path` is and how many images it holds.

    Raises InputDataError where it is missing, empty, of another kind, or holds fewer than 2 images, SecurityError for
    pickled objects.
    """
    images = _open_npz(Path(path)) if str(path).endswith(".npz") else _open_files(str(path))
    if len(images) < 2:
        raise InputDataError(f"{printable(str(path))} holds {len(images)} image; at least 2 are needed")
    return images


def content_digest(images: StoredImages) -> str:
    """The digest of the pixels in their order: equal to `ImageSet.digest` for the same images. Reads all of them."""
    hasher = hashlib.sha256()
    for start in range(0, len(images), _BATCH):
        hasher.update(images.read(range(start, min(start + _BATCH, len(images)))).tobytes())
    return pixels_digest((len(images), 3, images.size, images.size), hasher.hexdigest())


# Files --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _ImageFiles:
    """A folder or a zip. config: how its images are decoded. first: name of the image that the others are held to."""

    source: Source
    config: ImagesConfig
    size: int
    first: str

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.source, self.config)

    def __len__(self) -> int:
        return len(self.source.files)

    def read(self, positions: Sequence[int]) -> np.ndarray:
        return np.stack([image.pixels for image in self._images(positions)])

    def _images(self, positions: Sequence[int]) -> Iterator[SourceImage]:
        for image in decode_entries(self.source.at(positions), self.config):
            if isinstance(image, Refusal):
                raise _bad(self.source, image)
            if (side := image.pixels.shape[-1]) != self.size:
                raise InputDataError(
                    f"the images of {printable(self.source.location)} differ in size: {printable(self.first)} has side "
                    f"{self.size}, {printable(image.name)} has side {side}",
                    mend="bring them to one size; a distance compares pictures, not crops",
                )
            yield image


def _open_files(path: str) -> _ImageFiles:
    config = ImagesConfig(source=path)
    source = open_source(config)
    if source.refused:
        raise _bad(source, source.refused[0])
    if source.streamed:
        raise InputDataError(
            f"{printable(source.location)} can only be read from its beginning to its end",
            mend=f"make a set of it first: cedm-ray images import {printable(path)} --out SET",
        )
    (first,) = decode_entries(source.at([0]), config)
    if isinstance(first, Refusal):
        raise _bad(source, first)
    return _ImageFiles(source=source, config=config, size=first.pixels.shape[-1], first=first.name)


def _bad(source: Source, refusal: Refusal) -> InputDataError:
    where = printable(source.location)
    return InputDataError(f"{where} holds an image that cannot be used: {refusal}", mend="repair it, or take it away")


# Arrays -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _ImageArray:
    """pixels: uint8 [n, S, S, 3] or [n, 3, S, S]."""

    name: str
    fingerprint: str
    pixels: np.ndarray

    @property
    def size(self) -> int:
        return self.pixels.shape[2]

    def __len__(self) -> int:
        return len(self.pixels)

    def read(self, positions: Sequence[int]) -> np.ndarray:
        found = np.array(self.pixels[list(positions)])
        return found if found.shape[1] == 3 else np.ascontiguousarray(found.transpose(0, 3, 1, 2))


def _open_npz(path: Path) -> _ImageArray:
    where = printable(str(path.absolute()))
    try:
        with zipfile.ZipFile(path) as archive:
            key = image_key(archive, where)
            member = archive.getinfo(f"{key}.npy")
            rows = npz_rows(path, archive, key)
            shape = rows.shape
            square = len(shape) == 4 and (
                (shape[3] == 3 and shape[1] == shape[2]) or (shape[1] == 3 and shape[2] == shape[3])
            )
            if rows.dtype != np.uint8 or not square:
                raise InputDataError(
                    f"{where}: {key} must be uint8 [n, S, S, 3] or [n, 3, S, S], got {rows.dtype} {list(shape)}"
                )
            pixels = rows.map() if isinstance(rows, MappedRows) else np.stack(list(rows.read(range(shape[0]))))
    except FileNotFoundError:
        raise InputDataError(f"there is no file {where}") from None
    except UNREADABLE as error:
        raise InputDataError(f"{where} is not an npz file that can be read: {printable(str(error))}") from None
    state = digest({"array": key, "crc": member.CRC, "bytes": member.file_size})
    return _ImageArray(name=path.stem, fingerprint=state, pixels=pixels)
