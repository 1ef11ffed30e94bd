"""MNIST's idx files, plain or gzipped: `train-images-idx3-ubyte.gz` with its labels beside it.

A file is two zero bytes, 8 for uint8, the number of dimensions, each dimension as a big-endian uint32, and the values
(Y. LeCun, "The MNIST database", section "the IDX file format").

Shapes: N images of H x W grey values.
"""

import gzip
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from cedm_ray.data.arrays import UNREADABLE, ArraySource, MappedRows, array_labels, check_pictures, stream_rows
from cedm_ray.data.decoding import printable
from cedm_ray.data.entries import stamp
from cedm_ray.data.limits import LIMITS, Limits, inflates
from cedm_ray.errors import InputDataError

TRAIN_IMAGES = ("train-images-idx3-ubyte", "train-images-idx3-ubyte.gz", "train-images.idx3-ubyte")
_UBYTE = 8
_CHUNK_BYTES = 2**20


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _ZippedRows:
    """Rows of a gzipped idx file. offset: of the first value in what it inflates to."""

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int
    streamed: bool = True

    def read(self, positions: Iterable[int]) -> Iterator[np.ndarray]:
        with gzip.open(self.path) as file:
            file.read(self.offset)
            yield from stream_rows(file, self.shape, self.dtype, positions)


def is_idx(head: bytes) -> bool:
    """Whether a file that begins so, inflated if need be, is an idx file of bytes in three or four dimensions."""
    return head[:3] == bytes([0, 0, _UBYTE]) and head[3:4] in (b"\3", b"\4")


def list_idx(path: Path, limits: Limits = LIMITS) -> ArraySource:
    """The images of an idx file, with the labels of the file beside it if it is there. Raises InputDataError."""
    rows = _open(path, limits)
    check_pictures(rows.shape, rows.dtype, str(path), limits)
    content = [["idx", *stamp(path)]]
    labels = None
    beside = _labels_beside(path)
    if beside is not None:
        found = _open(beside, limits)
        if len(found.shape) != 1:
            raise InputDataError(f"{printable(str(beside))} must have one dimension, got {len(found.shape)}")
        labels = array_labels(np.array(list(found.read(range(found.shape[0])))), rows.shape[0], str(beside))
    return ArraySource(
        kind="idx",
        name=path.name.partition(".")[0],
        location=str(path),
        rows=rows,
        labels=labels,
        content=tuple(content),
    )


def _labels_beside(path: Path) -> Path | None:
    for old, new in (("images-idx3", "labels-idx1"), ("images.idx3", "labels.idx1")):
        if old in path.name:
            plain = path.with_name(path.name.replace(old, new).removesuffix(".gz"))
            return next((file for file in (plain, plain.with_name(plain.name + ".gz")) if file.is_file()), None)
    return None


def _open(path: Path, limits: Limits) -> MappedRows | _ZippedRows:
    where = printable(str(path))
    try:
        with open(path, "rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
        with gzip.open(path) if zipped else open(path, "rb") as file:
            head = file.read(4)
            if head[:3] != bytes([0, 0, _UBYTE]) or not 1 <= head[3] <= 4:
                raise InputDataError(f"{where} is not an idx file of uint8 (it starts with {head!r})")
            shape = tuple(int.from_bytes(file.read(4), "big") for _ in range(head[3]))
            offset = file.tell()
            expected = math.prod(shape)
            found = _length(file, expected, path, limits) if zipped else path.stat().st_size - offset
    except UNREADABLE as error:
        raise InputDataError(f"{where} is a truncated or damaged idx file: {printable(str(error))}") from None
    if found != expected:
        more = "more" if found > expected else f"{found:,}"
        raise InputDataError(
            f"{where} must have {expected:,} bytes of values for its shape {list(shape)}, and has {more}",
            mend="fetch it again",
        )
    kind = _ZippedRows if zipped else MappedRows
    return kind(path=path, shape=shape, dtype=np.dtype(np.uint8), offset=offset)


def _length(file: BinaryIO, expected: int, path: Path, limits: Limits) -> int:
    """How many bytes are left to inflate, counted no further than to one more than expected."""
    limit = limits.max_ratio * path.stat().st_size
    found = 0
    while found <= expected and (data := file.read(min(_CHUNK_BYTES, expected + 1 - found))):
        found += len(data)
        if found > limit:
            raise ValueError(inflates(limits))
    return found
