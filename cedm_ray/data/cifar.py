"""The official Python version of CIFAR-10 and CIFAR-100: the tarball as it is published, or the folder in it.

The training images are taken, in the official order: `data_batch_1` to `data_batch_5`, or CIFAR-100's `train` with its
fine labels. Their files are pickles; `plain_pickle.py` reads them without unpickling.

Source: A. Krizhevsky, "Learning multiple layers of features from tiny images", 2009;
https://www.cs.toronto.edu/~kriz/cifar.html for the layout.

Shapes: n images of a batch.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from cedm_ray.data.decoding import Refusal, printable
from cedm_ray.data.entries import Entry, Listed, check_label, stamp
from cedm_ray.data.files import read_file
from cedm_ray.data.limits import LIMITS, Limits, too_large
from cedm_ray.data.plain_pickle import read_plain_pickle
from cedm_ray.data.tars import is_zipped, members_of, open_tar
from cedm_ray.errors import InputDataError

_SIDE = 32
_LAYOUTS = {
    "cifar-10-batches-py": (tuple(f"data_batch_{number}" for number in range(1, 6)), "labels"),
    "cifar-100-python": (("train",), "fine_labels"),
}
"""By the name of the folder: its training batches in order, and the key of their labels."""
_MEND = "fetch it again from https://www.cs.toronto.edu/~kriz/cifar.html"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Batch:
    """name: of the batch. path: of its file, or of the tarball. offset, size_bytes: in the tarball; offset None: the
    file itself. count: n."""

    name: str
    path: Path
    offset: int | None
    size_bytes: int
    count: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CifarSource(Listed):
    """The training images of CIFAR. labels: int32 [N]. content: what `listing` gives."""

    name: str
    location: str
    batches: tuple[_Batch, ...]
    labels: np.ndarray
    content: tuple[Any, ...]
    streamed: bool
    limits: Limits = LIMITS
    kind: str = "cifar"
    refused: tuple[Refusal, ...] = ()

    @property
    def files(self) -> range:
        """The numbers of the images."""
        return range(len(self.labels))

    @property
    def size_bytes(self) -> int:
        return sum(batch.size_bytes for batch in self.batches)

    def at(self, positions: Iterable[int]) -> Iterator[Entry | Refusal]:
        ends = np.cumsum([batch.count for batch in self.batches])
        read, pixels = -1, None
        for position in positions:
            number = int(np.searchsorted(ends, position, side="right"))
            batch = self.batches[number]
            if number != read:
                # The old batch goes before the new one comes.
                pixels = None
                pixels, read = _pixels(_content(batch, self.limits), _where(batch)), number
            row = position - int(ends[number]) + batch.count
            picture = np.ascontiguousarray(pixels[row].reshape(3, _SIDE, _SIDE).transpose(1, 2, 0))
            yield Entry(name=f"{batch.name}/{row:05d}", content=picture, label=self.label_at(position))

    def listing(self) -> Iterator[Any]:
        yield from self.content


def cifar_layout(path: Path, limits: Limits = LIMITS) -> str | None:
    """Which folder of CIFAR `path` is or holds at its top: a key of the layouts, None where it is something else.

    path: a folder, or a tar. InputDataError for a damaged tar.
    """
    if path.is_dir():
        fitting = (name for name, (batches, _) in _LAYOUTS.items() if (path / batches[0]).is_file())
        # A folder of one's own may well have a file named train.
        return next((name for name in fitting if name != "cifar-100-python" or (path / "meta").is_file()), None)
    first = islice((member.name for member, _ in members_of(path, limits)), 2)
    tops = {PurePosixPath(name.removeprefix("./")).parts[:1] for name in first}
    return next((name for name in _LAYOUTS if (name,) in tops), None)


def list_cifar(path: Path, layout: str, limits: Limits = LIMITS) -> CifarSource:
    """List the training batches of `layout` in a folder or a tarball. Raises InputDataError where one is missing or
    damaged, SecurityError where one holds anything but plain values and arrays."""
    names, key = _LAYOUTS[layout]
    found: dict[str, tuple[_Batch, np.ndarray]] = {}
    if path.is_dir():
        for name in names:
            file = path / name
            if not file.is_file():
                continue
            batch = _Batch(name=name, path=file, offset=None, size_bytes=file.stat().st_size, count=0)
            found[name] = _labelled(batch, _content(batch, limits), key)
        content = [[name, *stamp(path / name)] for name in found]
    else:
        for member, archive in members_of(path, limits):
            name = member.name.removeprefix("./").removeprefix(f"{layout}/")
            if name not in names or member.reason is not None:
                continue
            if name in found:
                raise InputDataError(f"{printable(str(path))} has two members {name}", mend=_MEND)
            batch = _Batch(name=name, path=path, offset=member.offset, size_bytes=member.size_bytes, count=0)
            _check_size(batch, limits)
            archive.seek(member.offset)
            found[name] = _labelled(batch, archive.read(member.size_bytes), key)
        content = [[path.name, *stamp(path)]]
    for name in names:
        if name not in found:
            raise InputDataError(f"{printable(str(path))} has no {layout}/{name}", mend=_MEND)
    return CifarSource(
        name="cifar10" if layout.startswith("cifar-10-") else "cifar100",
        location=str(path),
        batches=tuple(found[name][0] for name in names),
        labels=np.concatenate([found[name][1] for name in names]),
        content=("cifar", layout, *content),
        streamed=path.is_file() and is_zipped(path),
        limits=limits,
    )


def _where(batch: _Batch) -> str:
    return f"{batch.path}: {batch.name}" if batch.offset is not None else str(batch.path)


def _check_size(batch: _Batch, limits: Limits) -> None:
    if batch.size_bytes > limits.max_file_bytes:
        raise InputDataError(f"{printable(_where(batch))}: {too_large(batch.size_bytes, limits)}", mend=_MEND)


def _content(batch: _Batch, limits: Limits) -> bytes:
    if batch.offset is None:
        data = read_file(batch.path, limits)
        if isinstance(data, str):
            raise InputDataError(f"cannot read {printable(_where(batch))}: {data}")
        return data
    with open_tar(batch.path, limits) as archive:
        archive.seek(batch.offset)
        return archive.read(batch.size_bytes)


def _pixels(content: bytes, where: str) -> np.ndarray:
    return _checked_pixels(read_plain_pickle(content, where), where)


def _checked_pixels(read: dict[str, Any], where: str) -> np.ndarray:
    """uint8 [n, 3072]: the red, the green and the blue values of each image, row by row."""
    pixels = read.get("data")
    if not isinstance(pixels, np.ndarray) or pixels.ndim != 2 or pixels.shape[1] != 3 * _SIDE**2 or not len(pixels):
        shape = list(pixels.shape) if isinstance(pixels, np.ndarray) else type(pixels).__name__
        raise InputDataError(f"{printable(where)}: data must be uint8 [n, {3 * _SIDE**2}], got {shape}", mend=_MEND)
    return pixels


def _labelled(batch: _Batch, content: bytes, key: str) -> tuple[_Batch, np.ndarray]:
    """The batch with its n, and its labels."""
    where = _where(batch)
    read = read_plain_pickle(content, where)
    count = len(_checked_pixels(read, where))
    labels = read.get(key)
    if not isinstance(labels, list) or len(labels) != count:
        held = f"{len(labels):,}" if isinstance(labels, list) else "none"
        raise InputDataError(f"{printable(where)}: {key} must be a list of {count:,} labels, got {held}", mend=_MEND)
    checked = [check_label(label, f"{printable(where)}: image {row}") for row, label in enumerate(labels)]
    counted = _Batch(name=batch.name, path=batch.path, offset=batch.offset, size_bytes=batch.size_bytes, count=count)
    return counted, np.array(checked, dtype=np.int32)
