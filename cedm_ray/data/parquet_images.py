"""Parquet files with a column of image files, as Hugging Face writes them: a struct of `bytes` and `path`, or plain
binary.

Rows come in the order of the files' names and of the files. Only `bytes` is read: a `path` without bytes would lead out
of the file and is refused. A column of whole numbers named `label`, `labels`, `fine_label` or `class` gives labels.

Source: https://huggingface.co/docs/datasets, "Image" (the column's layout).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cedm_ray.data.decoding import Refusal, printable
from cedm_ray.data.entries import Entry, Listed, check_label, stamp
from cedm_ray.data.limits import LIMITS, RAISE, Limits, inflates, too_large, too_many, too_much
from cedm_ray.errors import InputDataError

IMAGE_COLUMNS = ("image", "img", "images", "jpg", "jpeg", "png", "webp", "bytes", "content")
"""What a plain binary column must be called where it is not the only one."""
LABEL_COLUMNS = ("label", "labels", "fine_label", "class")
_ROWS = 64
_BUFFER_BYTES = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    """path, size_bytes: of the file. count: its rows. image: the column of images. nested: whether it is a struct."""

    path: Path
    size_bytes: int
    count: int
    image: str
    nested: bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ParquetSource(Listed):
    """Parquet files, listed. labels: int32 [N], None without any. content: what `listing` gives."""

    name: str
    location: str
    shards: tuple[_File, ...]
    labels: np.ndarray | None
    content: tuple[Any, ...]
    limits: Limits = LIMITS
    kind: str = "parquet"
    refused: tuple[Refusal, ...] = ()
    streamed: bool = True

    @property
    def files(self) -> range:
        """The numbers of the rows of all files together."""
        return range(sum(shard.count for shard in self.shards))

    @property
    def size_bytes(self) -> int:
        return sum(shard.size_bytes for shard in self.shards)

    def at(self, positions: Iterable[int]) -> Iterator[Entry | Refusal]:
        wanted = iter(positions)
        position = next(wanted, None)
        first = 0
        for shard in self.shards:
            if position is not None and position < first + shard.count:
                for row, content in enumerate(_images(shard)):
                    if position != first + row:
                        continue
                    yield self._entry(shard, row, position, content)
                    position = next(wanted, None)
                    if position is None or position >= first + shard.count:
                        break
            first += shard.count

    def _entry(self, shard: _File, row: int, position: int, content: bytes | None) -> Entry | Refusal:
        name = f"{shard.path.name}/{row:08d}"
        if content is None:
            return Refusal(name=name, reason="no bytes; a path alone is not followed")
        if len(content) > self.limits.max_file_bytes:
            return Refusal(name=name, reason=too_large(len(content), self.limits))
        return Entry(name=name, content=content, label=self.label_at(position))

    def listing(self) -> Iterator[Any]:
        yield from self.content


def _images(shard: _File) -> Iterator[bytes | None]:
    """The content of every row of a file, None where there is none."""
    column = f"{shard.image}.bytes" if shard.nested else shard.image
    try:
        with pq.ParquetFile(shard.path, pre_buffer=False, buffer_size=_BUFFER_BYTES) as file:
            for batch in file.iter_batches(batch_size=_ROWS, columns=[column], use_threads=False):
                values = batch.column(0)
                if shard.nested:
                    # Flattening, and not taking the field, leaves nothing where the whole struct is null.
                    (values,) = values.flatten()
                yield from values.to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _unreadable(shard.path, error) from None


def list_parquet(paths: Sequence[Path], location: Path, limits: Limits = LIMITS) -> ParquetSource:
    """List one Parquet file or several. Raises InputDataError for one that is damaged, holds too much or has no column
    of images, for labels that break a rule, and where only some files have labels."""
    shards: list[_File] = []
    labels: list[np.ndarray] = []
    for path in paths:
        try:
            with pq.ParquetFile(path, pre_buffer=False, buffer_size=_BUFFER_BYTES) as file:
                _check_amount(path, file.metadata, limits)
                image, nested = _image_column(path, file.schema_arrow)
                shards.append(
                    _File(
                        path=path,
                        size_bytes=path.stat().st_size,
                        count=file.metadata.num_rows,
                        image=image,
                        nested=nested,
                    )
                )
                column = _label_column(file.schema_arrow)
                if column is not None:
                    labels.append(_labels(path, file, column))
        except (pa.ArrowException, OSError, ValueError) as error:
            raise _unreadable(path, error) from None
    if labels and len(labels) < len(paths):
        raise InputDataError(
            f"of the {len(paths)} files of {printable(str(location))}, {len(labels)} have a column of labels",
            mend="give labels to all or to none",
        )
    if not sum(shard.count for shard in shards):
        raise InputDataError(f"no images in {printable(str(location))}: it has no rows")
    return ParquetSource(
        name=location.stem or "images",
        location=str(location),
        shards=tuple(shards),
        labels=np.concatenate(labels) if labels else None,
        content=("parquet", *([path.name, *stamp(path)] for path in paths)),
        limits=limits,
    )


def _unreadable(path: Path, error: Exception) -> InputDataError:
    text = printable(str(error).strip().partition("\n")[0])
    return InputDataError(f"{printable(str(path))} is not a Parquet file that can be read: {text}")


def _check_amount(path: Path, metadata: pq.FileMetaData, limits: Limits) -> None:
    # Not column by column: pyarrow ends the process where it looks at a column whose statistics are damaged.
    unpacked = sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
    what = None
    if unpacked > limits.max_ratio * path.stat().st_size:
        what = inflates(limits)
    elif unpacked > limits.max_unpacked_bytes:
        what = too_much(unpacked, limits)
    elif metadata.num_rows > limits.max_files:
        what = too_many(limits)
    if what is not None:
        raise InputDataError(f"cannot use {printable(str(path))}: {what}", mend=RAISE)


def _image_column(path: Path, schema: pa.Schema) -> tuple[str, bool]:
    """(name, whether it is a struct) of the column of images. Raises InputDataError where there is none."""
    nested = [
        field.name
        for field in schema
        if pa.types.is_struct(field.type)
        and field.type.get_field_index("bytes") >= 0
        and _is_binary(field.type.field("bytes").type)
    ]
    plain = [field.name for field in schema if _is_binary(field.type)]
    for names, is_struct in ((nested, True), (plain, False)):
        known = [name for name in IMAGE_COLUMNS if name in names]
        if known or len(names) == 1:
            return (known or names)[0], is_struct
    columns = ", ".join(f"{field.name} ({field.type})" for field in schema)
    raise InputDataError(
        f"{printable(str(path))} has no column of images; its columns are {printable(columns[:500])}",
        mend=f"a column of images is binary, or a struct with binary `bytes`, named {' or '.join(IMAGE_COLUMNS[:3])}",
    )


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _label_column(schema: pa.Schema) -> str | None:
    for name in LABEL_COLUMNS:
        index = schema.get_field_index(name)
        kind = schema.field(index).type if index >= 0 else None
        if kind is not None and (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
            return name
    return None


def _labels(path: Path, file: pq.ParquetFile, column: str) -> np.ndarray:
    where = printable(str(path))
    checked = []
    for batch in file.iter_batches(columns=[column], use_threads=False):
        for value in batch.column(0).to_pylist():
            checked.append(check_label(value, f"{where}: {column} of row {len(checked)}"))
    return np.array(checked, dtype=np.int32)
