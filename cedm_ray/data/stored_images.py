"""Images of any generator as they lie: a folder, a zip or an npz file, read by position, nothing copied.

A folder and a zip are listed and decoded as a study's images are (`sources.py`, `decoding.py`), sorted by name. An npz
file holds uint8 images as `images` (as `cedm-ray sample --out x.npz` writes them) or `arr_0` (as ADM's tools do), each
[n, S, S, 3] or [n, 3, S, S]; where the array is stored it is mapped, where it is compressed it is held in memory as a
whole. Here every image counts: one that cannot be read, or has another size, is an error that names it.

Shapes: n images, b of a batch, S image side.
"""

import hashlib
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from cedm_ray.config import digest
from cedm_ray.data.decoding import ImagesConfig, Refusal, printable
from cedm_ray.data.image_set import pixels_digest
from cedm_ray.data.sources import Source, open_source
from cedm_ray.errors import InputDataError, SecurityError

ARRAYS = ("images", "arr_0")
UNREADABLE = (
    OSError,
    EOFError,
    ValueError,
    KeyError,
    RuntimeError,
    NotImplementedError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What Python's zipfile raises for archives that are broken, encrypted or packed in an unknown way."""

_BATCH = 256
_LOCAL_HEADER_BYTES = 30


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
    """A folder or a zip. first: name of the image that the others are held to."""

    source: Source
    size: int
    first: str

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def fingerprint(self) -> str:
        return self.source.fingerprint

    def __len__(self) -> int:
        return len(self.source.files)

    def read(self, positions: Sequence[int]) -> np.ndarray:
        return np.stack([image.pixels for image in self._images(positions)])

    def _images(self, positions: Sequence[int]) -> Iterator:
        for image in self.source.at(positions):
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
    source = open_source(ImagesConfig(source=path))
    if source.refused:
        raise _bad(source, source.refused[0])
    (first,) = source.at([0])
    if isinstance(first, Refusal):
        raise _bad(source, first)
    return _ImageFiles(source=source, size=first.pixels.shape[-1], first=first.name)


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
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            key = next((name for name in ARRAYS if name in names), None)
            if key is None:
                raise InputDataError(
                    f"{where} holds no images: its arrays are {printable(', '.join(names)) or 'none'}",
                    mend="name the array of the images `images` or `arr_0`, uint8 [n, S, S, 3]",
                )
            member = archive.getinfo(f"{key}.npy")
            pixels = _member_array(path, archive, member)
    except FileNotFoundError:
        raise InputDataError(f"there is no file {where}") from None
    except UNREADABLE as error:
        raise InputDataError(f"{where} is not an npz file that can be read: {printable(str(error))}") from None
    shape = pixels.shape
    square = len(shape) == 4 and ((shape[3] == 3 and shape[1] == shape[2]) or (shape[1] == 3 and shape[2] == shape[3]))
    if pixels.dtype != np.uint8 or not square:
        raise InputDataError(
            f"{where}: {key} must be uint8 [n, S, S, 3] or [n, 3, S, S], got {pixels.dtype} {list(shape)}"
        )
    fingerprint = digest({"array": key, "crc": member.CRC, "bytes": member.file_size})
    return _ImageArray(name=path.stem, fingerprint=fingerprint, pixels=pixels)


def _member_array(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """One array of an npz file: a map of the file where it is stored, a copy in memory where it is compressed.

    Raises SecurityError for Python objects, which are never unpickled, ValueError for what is no array.
    """
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran_order, dtype = read_header(file)
        if dtype.hasobject:
            raise SecurityError(f"{path}: {member.filename} holds pickled Python objects and was not read")
        if fortran_order:
            raise ValueError(f"{member.filename} is in Fortran order, which is not read")
        header_bytes = file.tell()
        if int(np.prod(shape)) * dtype.itemsize != member.file_size - header_bytes:
            raise ValueError(f"{member.filename} is not as long as its shape {list(shape)} says")
        if member.compress_type != zipfile.ZIP_STORED:
            return np.frombuffer(file.read(), dtype=dtype).reshape(shape)
    with open(path, "rb") as file:
        # The local header may carry other extra fields than the directory of the archive.
        file.seek(member.header_offset)
        local = file.read(_LOCAL_HEADER_BYTES)
        name_bytes, extra_bytes = (int.from_bytes(local[at : at + 2], "little") for at in (26, 28))
    offset = member.header_offset + _LOCAL_HEADER_BYTES + name_bytes + extra_bytes + header_bytes
    return np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=shape)
