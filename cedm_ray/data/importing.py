"""Any source into an image set: decoded on all cores, in the order of the source, one chunk of images in memory.

The bytes of the set are those of the images, whatever the number of workers: `pixels.npy` and `index.parquet` are equal
files on any machine.

Shapes: N images, S image side.
"""

import contextlib
import functools
import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cedm_ray.config import digest
from cedm_ray.data.decoding import TOO_SMALL, OneSize, Refusal, SourceImage, printable
from cedm_ray.data.decoding_pool import Decoded, EarlyPool, decode_source
from cedm_ray.data.entries import Source
from cedm_ray.data.image_set import INDEX, MANIFEST, PIXELS, ImageSet, open_image_set, pixels_digest
from cedm_ray.data.images_config import ImagesConfig
from cedm_ray.data.sources import fingerprint, open_source
from cedm_ray.durable import commit_file, is_temporary, sha256_file, storage_error, temporary_path, write_record
from cedm_ray.errors import InputDataError

SHARD_BYTES = 64 * 2**20
_WRITE_BYTES = 256 * 2**10
Decode = Callable[[Source, ImagesConfig], Iterator[Decoded]]
"""Decodes a source as `decode_source` does: every image and refusal in its order."""
_INDEX_SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("name", pa.string()),
        ("sha256", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("mode", pa.string()),
        ("label", pa.int32()),
        ("reason", pa.string()),
    ]
)
_ROWS_PER_GROUP = 4096


class ImportProgress(NamedTuple):
    """done: images and refusals so far. total: of both, None where the source cannot tell. refused: so far."""

    done: int
    total: int | None
    refused: int


def import_images(
    config: ImagesConfig, folder: Path, *, workers: int | None = None, decode: Decode | None = None
) -> Generator[ImportProgress, None, ImageSet]:
    """Read `config`'s source into `folder` and return the opened set (as StopIteration's value).

    workers: processes that decode beside this one; 0 = none, None = one for each core where there are many images; it
    changes no byte. decode: decodes instead of them, over a cluster for example. Yields after every image. An import
    that was cut short leaves nothing that counts; it is begun again. Raises InputDataError as the source does, with
    `on_bad` "fail" for the first refused image, with "skip" as soon as more than `max_bad_fraction` of all are refused,
    where images differ in size and `images.size` is None, and for fewer than 2 good images; SecurityError as the source
    does; StorageError where `folder` cannot be written; ValueError where it holds a set already.
    """
    folder = Path(folder)
    if (folder / MANIFEST).exists():
        raise ValueError(f"folder must not hold an image set, got {folder}")
    with EarlyPool(config, workers) as early:
        source = open_source(config, listed_so_far=(lambda number: None) if decode else early.listed)
        decode = decode or functools.partial(decode_source, workers=workers, pool=early.pool)
        yield from _make_set(source, config, folder, decode)
        # The names of a million files take as much memory here as in the set that is opened.
        del source
    return open_image_set(folder)


def _make_set(
    source: Source, config: ImagesConfig, folder: Path, decode: Decode
) -> Generator[ImportProgress, None, None]:
    """Write the files of a set, the manifest last."""
    needed_bytes = len(source) * 3 * (config.size or 0) ** 2
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.iterdir():
            if is_temporary(path):
                path.unlink()
        with (
            _temporary_file(folder / PIXELS) as pixels,
            _temporary_file(folder / INDEX) as index,
            _Flushing(pixels) as flushing,
        ):
            written = yield from _copy_images(source, config, _Pixels(file=pixels, flushing=flushing), index, decode)
        shape = (written.count, 3, written.size, written.size)
        manifest = {
            "name": re.sub(r"[^A-Za-z0-9._-]", "-", source.name)[:64],
            "num_images": written.count,
            "size": written.size,
            "digest": pixels_digest(shape, written.whole.hexdigest()),
            "pixels_sha256": written.whole.hexdigest(),
            "shards": written.shards,
            "index_sha256": sha256_file(folder / INDEX),
            "num_refused": len(source) - written.count,
            "labelled": source.labelled,
            "kind": source.kind,
            "source": source.location,
            "fingerprint": fingerprint(source, config),
            "config": config.model_dump(mode="json"),
            "config_digest": digest(config),
        }
        write_record(folder / MANIFEST, manifest)
    except OSError as error:
        # Errors of reading have become refusals or InputDataError on their way; what is left is our own folder.
        raise storage_error(error, folder, needed_bytes) from error


class _Flushing:
    """Brings what was written to a file to the disk in a thread, so that the end of a large one is not waited for."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._thread = file, ThreadPoolExecutor(1)
        self._last: Future | None = None

    def __enter__(self) -> "_Flushing":
        return self

    def __exit__(self, *error: object) -> None:
        self._thread.shutdown()
        if self._last is not None and error[0] is None:
            self._last.result()

    def begin(self) -> None:
        """Begin with what is written now, unless the last time is not over. Raises OSError where that one failed."""
        if self._last is not None:
            if not self._last.done():
                return
            # The system tells of a failed write once; the flush at the end would not hear of it.
            self._last.result()
        self._file.flush()
        self._last = self._thread.submit(os.fsync, self._file.fileno())


@dataclass(slots=True, kw_only=True)
class _Pixels:
    """`pixels.npy` while it is written. count: N so far. size: S. shards: those that are full."""

    file: BinaryIO
    flushing: _Flushing
    count: int = 0
    size: int = 0
    shards: list[dict[str, Any]] = field(default_factory=list)
    whole: Any = field(default_factory=hashlib.sha256)
    _shard: Any = None
    _first: int = 0
    _waiting: list[np.ndarray] = field(default_factory=list)
    _waiting_bytes: int = 0

    def add(self, pixels: np.ndarray) -> None:
        """Append one image, uint8 [3, S, S]."""
        if self.count == 0:
            self.size = pixels.shape[-1]
            self._write_header()
        size_bytes = pixels.nbytes
        if (self.count + 1 - self._first) * size_bytes > SHARD_BYTES and self.count > self._first:
            self._end_shard()
            self.flushing.begin()
        self._waiting.append(pixels)
        self._waiting_bytes += size_bytes
        self.count += 1
        if self._waiting_bytes >= _WRITE_BYTES:
            self._write()

    def end(self) -> None:
        """Write the header anew, with N."""
        self._end_shard()
        self.file.seek(0)
        self._write_header()

    def _write(self) -> None:
        # Together, because a call for each small image costs more than its bytes do.
        data = b"".join(self._waiting)
        self._waiting, self._waiting_bytes = [], 0
        self.file.write(data)
        self.whole.update(data)
        # The first shard is the whole so far.
        if self._shard is not None:
            self._shard.update(data)

    def _end_shard(self) -> None:
        self._write()
        sha256 = (self._shard or self.whole).hexdigest()
        self.shards.append({"rows": [self._first, self.count], "sha256": sha256})
        self._shard, self._first = hashlib.sha256(), self.count

    def _write_header(self) -> None:
        # NumPy pads its header so that the first axis can grow without moving the data, whatever N turns out to be.
        header = {"descr": "|u1", "fortran_order": False, "shape": (self.count, 3, self.size, self.size)}
        np.lib.format.write_array_header_1_0(self.file, header)


@contextlib.contextmanager
def _temporary_file(path: Path) -> Iterator[BinaryIO]:
    """A file to be written that gets its name durably when the block ends well, and vanishes when it does not."""
    temporary = temporary_path(path)
    try:
        with open(temporary, "xb") as file:
            yield file
        commit_file(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _copy_images(
    source: Source, config: ImagesConfig, pixels: _Pixels, index: BinaryIO, decode: Decode
) -> Generator[ImportProgress, None, _Pixels]:
    """Write the images and their index to two open files; returns what was written."""
    total = len(source)
    reasons: Counter[str] = Counter()
    refused: list[Refusal] = []
    lines: list[tuple] = []
    one_size = OneSize()
    with pq.ParquetWriter(index, _INDEX_SCHEMA, write_page_checksum=True) as table:
        for done, (item, label) in enumerate(decode(source, config), start=1):
            if isinstance(item, SourceImage):
                one_size.check(item.name, item.pixels.shape[-1])
                stored = (item.width, item.height, item.mode)
                lines.append((pixels.count, item.name, item.sha256, *stored, label, None))
                pixels.add(item.pixels)
            else:
                refused.append(item)
                reasons[item.reason] += 1
                _check_refusals(config, refused, reasons, total)
                lines.append((None, item.name, None, None, None, None, None, item.reason))
            if len(lines) == _ROWS_PER_GROUP:
                _write_lines(table, lines)
                lines = []
            yield ImportProgress(done=done, total=total, refused=len(refused))
        _write_lines(table, lines)
    if pixels.count < 2:
        raise InputDataError(
            f"{source.location} has {pixels.count} usable images ({len(refused)} refused); at least 2 are needed"
        )
    pixels.end()
    return pixels


def _write_lines(table: pq.ParquetWriter, lines: list[tuple]) -> None:
    columns = zip(*lines, strict=True) if lines else [()] * len(_INDEX_SCHEMA)
    arrays = [_array(column, field.type) for column, field in zip(columns, _INDEX_SCHEMA, strict=True)]
    table.write_table(pa.Table.from_arrays(arrays, schema=_INDEX_SCHEMA))


def _array(values: tuple, kind: pa.DataType) -> pa.Array:
    """Text or whole numbers, None among them, as a column. Not by `pa.array`, which imports pandas to look whether they
    are of its kinds: a fifth of a second, and some 40 MiB."""
    valid = None
    if None in values:
        valid = pa.py_buffer(np.packbits([value is not None for value in values], bitorder="little"))
    if pa.types.is_string(kind):
        texts = [b"" if value is None else value.encode() for value in values]
        ends = np.cumsum([0, *map(len, texts)], dtype=np.int32)
        return pa.Array.from_buffers(kind, len(values), [valid, pa.py_buffer(ends), pa.py_buffer(b"".join(texts))])
    numbers = np.array([0 if value is None else value for value in values], dtype=f"int{kind.bit_width}")
    return pa.Array.from_buffers(kind, len(values), [valid, pa.py_buffer(numbers)])


def _check_refusals(config: ImagesConfig, refused: list[Refusal], reasons: Counter[str], total: int) -> None:
    if config.on_bad == "fail":
        raise InputDataError(
            f"refused image {refused[-1]}", mend="repair or remove it, or set images.on_bad to skip to leave such out"
        )
    if len(refused) > config.max_bad_fraction * total:
        common = "; ".join(f"{count:,} x {reason}" for reason, count in reasons.most_common(5))
        # One reason for all is said once.
        named = ", ".join(printable(one.name) if len(reasons) == 1 else str(one) for one in refused[:5])
        mend = "repair or remove them, or allow more with images.max_bad_fraction"
        if all(TOO_SMALL in reason for reason in reasons):
            mend = "lower images.size, or let smaller images in with images.enlarge"
        raise InputDataError(
            f"{len(refused):,} of {total:,} images are refused so far, more than images.max_bad_fraction allows "
            f"({config.max_bad_fraction:g}). Reasons: {common}. The first: {named}",
            mend=mend,
        )
