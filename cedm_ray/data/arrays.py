"""Images as NumPy arrays: `.npy`, `.npz`, and scikit-learn's digits.

An array holds uint8 [N, S, S, 3], [N, 3, S, S], [N, S, S, 1] or [N, S, S]. In an npz the images are `images`, `arr_0`,
`x` and the like (`ARRAYS`), and the labels, if there are any, have the name that goes with it. What is stored is
mapped, what is compressed is read row by row; objects, which would have to be unpickled, are refused.

Shapes: N images, H and W (or S) of one, R bytes of one.
"""

import math
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

from cedm_ray.data.decoding import Refusal, printable
from cedm_ray.data.entries import Entry, Listed, check_label, stamp
from cedm_ray.data.limits import LIMITS, RAISE, Limits, inflates, too_many, too_much
from cedm_ray.durable import BROKEN_ARRAY
from cedm_ray.errors import InputDataError, SecurityError

DIGITS = "sklearn:digits"
NUM_DIGITS = 1797
ARRAYS = {
    "images": "labels",
    "arr_0": "arr_1",
    "x": "y",
    "x_train": "y_train",
    "train_images": "train_labels",
    "X": "y",
}
"""The names of images in an npz, the first that is there counts, each with the name of its labels: ours, ADM's, plain
ones, Keras', MedMNIST's, scikit-learn's."""
UNREADABLE = BROKEN_ARRAY
"""What NumPy raises for broken arrays, and zipfile for archives that are encrypted or packed in an unknown way."""
_LOCAL_HEADER_BYTES = 30
_MAX_LABEL_BYTES = 2**30


class Rows(Protocol):
    """N rows of equal arrays that lie in a file. shape, dtype: of all of them. streamed: whether reading a row reads
    all rows before it."""

    shape: tuple[int, ...]
    dtype: np.dtype
    streamed: bool

    def read(self, positions: Iterable[int]) -> Iterator[np.ndarray]:
        """These rows, in rising order where `streamed`."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MappedRows:
    """Rows that lie in a file uncompressed. offset: of the first byte."""

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int
    streamed: bool = False

    def map(self) -> np.ndarray:
        """All rows as a read-only memory map. OSError, ValueError."""
        return np.memmap(self.path, dtype=self.dtype, mode="r", offset=self.offset, shape=self.shape)

    def read(self, positions: Iterable[int]) -> Iterator[np.ndarray]:
        rows = self.map()
        for position in positions:
            yield np.array(rows[position])


def stream_rows(
    file: BinaryIO, shape: tuple[int, ...], dtype: np.dtype, positions: Iterable[int]
) -> Iterator[np.ndarray]:
    """Rows at rising positions of a stream that stands at the first byte of the first. EOFError where it ends early."""
    row_bytes = math.prod(shape[1:]) * dtype.itemsize
    at = 0
    for position in positions:
        while at < position:
            _read_exactly(file, row_bytes)
            at += 1
        yield np.frombuffer(_read_exactly(file, row_bytes), dtype=dtype).reshape(shape[1:])
        at += 1


def _read_exactly(file: BinaryIO, count: int) -> bytes:
    data = file.read(count)
    if len(data) < count:
        raise EOFError("it ends early")
    return data


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _DeflatedRows:
    """Rows of an npz's array that is compressed."""

    path: Path
    member: str
    shape: tuple[int, ...]
    dtype: np.dtype
    streamed: bool = True

    def read(self, positions: Iterable[int]) -> Iterator[np.ndarray]:
        with zipfile.ZipFile(self.path) as archive, archive.open(self.member) as file:
            _read_header(file, self.member)
            yield from stream_rows(file, self.shape, self.dtype, positions)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ArraySource(Listed):
    """Images of one array. rows: uint8 [N, H, W, 3], [N, 3, H, W], [N, H, W, 1] or [N, H, W]. labels: int32 [N], None
    without any. content: what `listing` gives."""

    kind: str
    name: str
    location: str
    rows: Rows
    labels: np.ndarray | None
    content: tuple[Any, ...]
    refused: tuple[Refusal, ...] = ()

    @property
    def files(self) -> range:
        """The numbers of the rows."""
        return range(self.rows.shape[0])

    @property
    def streamed(self) -> bool:
        return self.rows.streamed

    @property
    def size_bytes(self) -> int:
        return math.prod(self.rows.shape)

    def at(self, positions: Iterable[int]) -> Iterator[Entry | Refusal]:
        positions = list(positions)
        try:
            for position, row in zip(positions, self.rows.read(positions), strict=True):
                yield Entry(name=f"{position:08d}", content=_picture(row), label=self.label_at(position))
        except UNREADABLE as error:
            raise InputDataError(
                f"{printable(self.location)} cannot be read to its end: {printable(str(error))}",
                mend="fetch or write it again",
            ) from None

    def listing(self) -> Iterator[Any]:
        yield from self.content


def _picture(row: np.ndarray) -> np.ndarray:
    """A row as [H, W, 3] or [H, W]."""
    if row.ndim == 3 and row.shape[2] == 1:
        return row[:, :, 0]
    # 3x3 pictures aside, three channels are where a three is; the last place is asked first, as in all of our readers.
    if row.ndim == 3 and row.shape[2] != 3:
        return np.ascontiguousarray(row.transpose(1, 2, 0))
    return row


def check_pictures(shape: tuple[int, ...], dtype: np.dtype, where: str, limits: Limits = LIMITS) -> None:
    """Raises InputDataError where an array holds no images or too many, SecurityError where it holds Python objects."""
    if dtype.hasobject:
        raise SecurityError(f"{printable(where)} holds pickled Python objects and was not read")
    colored = len(shape) == 4 and (shape[3] in (1, 3) or shape[1] == 3)
    if dtype != np.uint8 or not (colored or len(shape) == 3) or 0 in shape:
        raise InputDataError(
            f"{printable(where)} must be uint8 [N, S, S, 3], [N, 3, S, S] or [N, S, S], got {dtype} {list(shape)}",
            mend="write the images as whole numbers in 0..255 in one of these shapes",
        )
    if shape[0] > limits.max_files or math.prod(shape) > limits.max_unpacked_bytes:
        what = too_many(limits) if shape[0] > limits.max_files else too_much(math.prod(shape), limits)
        raise InputDataError(f"cannot use {printable(where)}: {what}", mend=RAISE)


def array_labels(labels: np.ndarray, count: int, where: str) -> np.ndarray:
    """Labels out of an array as int32 [count]. Raises InputDataError naming the first bad one."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.shape != (count,):
        raise InputDataError(f"{printable(where)} must hold {count:,} labels, got an array {list(labels.shape)}")
    checked = [check_label(value.item(), f"{printable(where)}: image {row}") for row, value in enumerate(labels)]
    return np.array(checked, dtype=np.int32)


def list_npy(path: Path, limits: Limits = LIMITS) -> ArraySource:
    """One array. Raises InputDataError, SecurityError."""
    where = printable(str(path))
    try:
        with open(path, "rb") as file:
            shape, dtype = _read_header(file, where)
            rows = MappedRows(path=path, shape=shape, dtype=dtype, offset=file.tell())
        check_pictures(shape, dtype, where, limits)
        rows.map()
    except UNREADABLE as error:
        raise InputDataError(f"{where} is not an npy file that can be read: {printable(str(error))}") from None
    return ArraySource(
        kind="npy", name=path.stem, location=str(path), rows=rows, labels=None, content=(["npy", *stamp(path)],)
    )


def list_npz(path: Path, limits: Limits = LIMITS) -> ArraySource:
    """The images of an npz. Raises InputDataError, SecurityError."""
    where = printable(str(path))
    try:
        with zipfile.ZipFile(path) as archive:
            key = image_key(archive, where)
            content = [[info.filename, info.CRC, info.file_size] for info in archive.infolist()]
            rows = npz_rows(path, archive, key, limits)
            check_pictures(rows.shape, rows.dtype, f"{path}: {key}", limits)
            labels = (
                _npz_labels(path, archive, key, rows.shape[0]) if f"{ARRAYS[key]}.npy" in archive.namelist() else None
            )
    except UNREADABLE as error:
        raise InputDataError(f"{where} is not an npz file that can be read: {printable(str(error))}") from None
    return ArraySource(
        kind="npz", name=path.stem, location=str(path), rows=rows, labels=labels, content=("npz", key, *content)
    )


def image_key(archive: zipfile.ZipFile, where: str) -> str:
    """The name of the images in an npz. Raises InputDataError where it holds none."""
    names = [name.removesuffix(".npy") for name in archive.namelist()]
    key = next((name for name in ARRAYS if name in names), None)
    if key is None:
        raise InputDataError(
            f"{where} holds no images: its arrays are {printable(', '.join(names)) or 'none'}",
            mend=f"name the array of the images {' or '.join(ARRAYS)}, uint8 [N, S, S, 3]",
        )
    return key


def _npz_labels(path: Path, archive: zipfile.ZipFile, key: str, count: int) -> np.ndarray:
    rows = npz_rows(path, archive, ARRAYS[key])
    if math.prod(rows.shape) * rows.dtype.itemsize > _MAX_LABEL_BYTES:
        raise ValueError(f"{ARRAYS[key]} is too large for labels")
    return array_labels(np.array(list(rows.read(range(rows.shape[0])))), count, f"{path}: {ARRAYS[key]}")


def npz_rows(path: Path, archive: zipfile.ZipFile, key: str, limits: Limits = LIMITS) -> MappedRows | _DeflatedRows:
    """One array of an npz that is open as `archive`: a map of the file where it is stored, a stream where it is
    compressed.

    Raises SecurityError for Python objects, which are never unpickled, ValueError (and what else is in UNREADABLE) for
    what is no array.
    """
    member = archive.getinfo(f"{key}.npy")
    with archive.open(member) as file:
        shape, dtype = _read_header(file, f"{path}: {member.filename}")
        header_bytes = file.tell()
    if math.prod(shape) * dtype.itemsize != member.file_size - header_bytes or not shape:
        raise ValueError(f"{member.filename} is not as long as its shape {list(shape)} says")
    if member.compress_type != zipfile.ZIP_STORED:
        if member.file_size > limits.max_ratio * max(member.compress_size, 1):
            raise ValueError(f"{member.filename}: {inflates(limits)}")
        return _DeflatedRows(path=path, member=member.filename, shape=shape, dtype=dtype)
    with open(path, "rb") as file:
        # The local header may carry other extra fields than the directory of the archive.
        file.seek(member.header_offset)
        local = file.read(_LOCAL_HEADER_BYTES)
        name_bytes, extra_bytes = (int.from_bytes(local[at : at + 2], "little") for at in (26, 28))
    offset = member.header_offset + _LOCAL_HEADER_BYTES + name_bytes + extra_bytes + header_bytes
    return MappedRows(path=path, shape=shape, dtype=dtype, offset=offset)


def _read_header(file: BinaryIO, where: str) -> tuple[tuple[int, ...], np.dtype]:
    """(shape, dtype) of an npy file that stands at its beginning; it then stands at the first value."""
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran_order, dtype = read_header(file)
    if dtype.hasobject:
        raise SecurityError(f"{printable(where)} holds pickled Python objects and was not read")
    if fortran_order and len(shape) > 1:
        raise ValueError(f"{printable(where)} is in Fortran order, which is not read")
    return shape, dtype


# Digits -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DigitsSource(Listed):
    """The 1,797 handwritten digits, 8x8 grey, that come with scikit-learn: grey levels 0..16 are spread over 0..255.

    Source: E. Alpaydin and C. Kaynak, "Optical recognition of handwritten digits", UCI repository, 1998.
    """

    kind: str = "digits"
    name: str = "digits"
    location: str = DIGITS
    files: range = field(default=range(NUM_DIGITS))
    refused: tuple[Refusal, ...] = ()
    streamed: bool = False
    labelled: bool = True
    size_bytes: int = NUM_DIGITS * 64

    def at(self, positions: Iterable[int]) -> Iterator[Entry | Refusal]:
        from sklearn.datasets import load_digits

        digits = load_digits()
        greys = np.rint(digits.images * (255 / 16)).astype(np.uint8)
        for index in positions:
            yield Entry(name=f"digits/{index:04d}", content=greys[index], label=int(digits.target[index]))

    def listing(self) -> Iterator[Any]:
        yield DIGITS
