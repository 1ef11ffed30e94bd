"""A tar of image files, plain or gzipped, or the shards of a WebDataset: several tars, one after another.

Members come in the order of the archive, archives in the order of their names; they are read where they lie, never
extracted, and refused by their names as a zip's are. In a WebDataset `key.cls`, the decimal label, stands beside
`key.jpg` (https://github.com/webdataset/webdataset, "The WebDataset Format"); there a name is `shard.tar/key.jpg`.
"""

import collections
import contextlib
import gzip
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np

from cedm_ray.data.decoding import Refusal, printable
from cedm_ray.data.entries import (
    ARCHIVE_EXTENSIONS,
    MAX_LABEL,
    Entry,
    Listed,
    check_label,
    check_not_empty,
    distrust_name,
    is_hidden,
    sort_out,
    stamp,
)
from cedm_ray.data.limits import LIMITS, RAISE, Limits, inflates, too_large, too_many, too_much
from cedm_ray.data.tar_members import TarError, TarMember, tar_members
from cedm_ray.errors import InputDataError

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
_MOST_LABEL_BYTES = 32
_MEND = "fetch or pack it again; tar -t tests it"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TarSource(Listed):
    """Tars, listed. shards: their paths. files: the names. shard, offsets, sizes_bytes: int64 [n], where each file
    lies. labels: int32 [n], None without any. content: what `listing` gives."""

    kind: str
    name: str
    location: str
    shards: tuple[Path, ...]
    files: tuple[str, ...]
    shard: np.ndarray
    offsets: np.ndarray
    sizes_bytes: np.ndarray
    labels: np.ndarray | None
    refused: tuple[Refusal, ...]
    content: tuple[Any, ...]
    streamed: bool
    limits: Limits = LIMITS

    @property
    def size_bytes(self) -> int:
        return int(self.sizes_bytes.sum())

    def at(self, positions: Iterable[int]) -> Iterator[Entry | Refusal]:
        with contextlib.ExitStack() as stack:
            file, opened = None, -1
            for position in positions:
                name, shard = self.files[position], int(self.shard[position])
                if shard != opened:
                    stack.close()
                    file, opened = stack.enter_context(open_tar(self.shards[shard], self.limits)), shard
                with _tar_errors(self.shards[shard]):
                    file.seek(int(self.offsets[position]))
                    data = file.read(int(self.sizes_bytes[position]))
                if len(data) < self.sizes_bytes[position]:
                    yield Refusal(name=name, reason="the archive ends in the middle of it")
                else:
                    yield Entry(name=name, content=data, label=self.label_at(position))

    def listing(self) -> Iterator[Any]:
        yield from self.content


class _Inflated:
    """A gzip file that may not inflate more than `max_ratio` times: what a bomb does, and images never do."""

    def __init__(self, path: Path, limits: Limits) -> None:
        self._limits = limits
        self._file = gzip.open(path)  # noqa: SIM115 - closed by close().
        self._limit = limits.max_ratio * path.stat().st_size

    def seek(self, offset: int) -> None:
        self._check(offset)
        self._file.seek(offset)

    def read(self, count: int) -> bytes:
        self._check(self._file.tell() + count)
        return self._file.read(count)

    def _check(self, end: int) -> None:
        # A header may say that a member ends far beyond; only what is really inflated there counts.
        if end > self._limit:
            self._file.seek(self._limit)
            if self._file.read(1):
                raise TarError(inflates(self._limits))

    def close(self) -> None:
        self._file.close()


@contextlib.contextmanager
def open_tar(path: Path, limits: Limits = LIMITS) -> Iterator[BinaryIO | _Inflated]:
    """The bytes of a tar, whether it is gzipped or not. Raises InputDataError where it cannot be opened."""
    with _tar_errors(path):
        with open(path, "rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
        opened = _Inflated(path, limits) if zipped else open(path, "rb")  # noqa: SIM115 - closed below.
    with contextlib.closing(opened):
        yield opened


@contextlib.contextmanager
def _tar_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (TarError, zlib.error, EOFError, gzip.BadGzipFile) as error:
        what = f"{printable(str(path))} is a truncated or damaged tar ({printable(str(error))})"
        raise InputDataError(what, mend=_MEND) from None
    except OSError as error:
        raise InputDataError(f"cannot read {printable(str(path))}: {error.strerror or error}") from None


def is_zipped(path: Path) -> bool:
    """Whether a file begins as gzip does."""
    with open(path, "rb") as file:
        return file.read(2) == b"\x1f\x8b"


def members_of(path: Path, limits: Limits = LIMITS) -> Iterator[tuple[TarMember, BinaryIO | _Inflated]]:
    """Each member with the open archive, which stands at no defined place. InputDataError for a damaged archive, or one
    that holds too much."""
    unpacked = 0
    with open_tar(path, limits) as file, _tar_errors(path):
        for number, member in enumerate(tar_members(file), start=1):
            unpacked += member.size_bytes
            if number > limits.max_files or unpacked > limits.max_unpacked_bytes:
                what = too_many(limits) if number > limits.max_files else too_much(unpacked, limits)
                raise InputDataError(f"cannot use {printable(str(path))}: {what}", mend=RAISE)
            yield member, file


def list_tars(paths: Sequence[Path], location: Path, limits: Limits = LIMITS) -> TarSource:
    """List one tar or several. Raises InputDataError where one is damaged, where there is no image, and for labels that
    break a rule or are there for some images only."""
    several = len(paths) > 1
    found: list[tuple[str, int, int, int]] = []
    refused: list[Refusal] = []
    content: list[Any] = []
    extensions: collections.Counter = collections.Counter()
    labels: dict[str, int] = {}
    for shard, path in enumerate(paths):
        content.append([path.name, *stamp(path)])
        listed: dict[str, TarMember] = {}
        twice: collections.Counter = collections.Counter()
        for member, file in members_of(path, limits):
            if member.is_folder:
                continue
            name = member.name.removeprefix("./")
            twice[name] += 1
            full = f"{path.name}/{name}" if several else name
            if name.lower().endswith(".cls") and member.reason is None and not is_hidden(name):
                labels[_key(full)] = _read_label(file, member, f"{path}: {name}")
                content.append([full, labels[_key(full)]])
                continue
            reason = _distrust(member, name, extensions, limits)
            if reason == "":
                continue
            content.append([full, member.size_bytes, member.time_s, reason])
            if reason is None:
                listed[name] = member
            else:
                refused.append(Refusal(name=full, reason=reason))
        for name, member in listed.items():
            full = f"{path.name}/{name}" if several else name
            if twice[name] > 1:
                refused.append(Refusal(name=full, reason=f"{twice[name]} members have this name"))
            else:
                found.append((full, shard, member.offset, member.size_bytes))
    check_not_empty(location, len(found), refused, extensions)
    return TarSource(
        kind="webdataset" if several else "tar",
        name=location.name.removesuffix(".gz").removesuffix(".tar").removesuffix(".tgz") or "images",
        location=str(location),
        shards=tuple(paths),
        files=tuple(name for name, *_ in found),
        shard=np.array([shard for _, shard, _, _ in found], dtype=np.int64),
        offsets=np.array([offset for _, _, offset, _ in found], dtype=np.int64),
        sizes_bytes=np.array([size for *_, size in found], dtype=np.int64),
        labels=_labels(labels, [name for name, *_ in found], location),
        refused=tuple(refused),
        content=tuple(content),
        streamed=any(is_zipped(path) for path in paths),
        limits=limits,
    )


def _distrust(member: TarMember, name: str, extensions: collections.Counter, limits: Limits) -> str | None:
    """Why a member is not read ("" where it is of no interest), or None if it is."""
    if (reason := distrust_name(name) or member.reason) is not None:
        return reason
    if is_hidden(name):
        return ""
    reason = sort_out(name, extensions)
    if reason is None and member.size_bytes > limits.max_file_bytes:
        return too_large(member.size_bytes, limits)
    if reason == "" and PurePosixPath(name).suffix.lower() in ARCHIVE_EXTENSIONS:
        return "an archive in the archive, which is not opened"
    return reason


def _key(name: str) -> str:
    """What the parts of one WebDataset sample share: the name up to the first dot of its last part."""
    folder, slash, last = name.rpartition("/")
    return f"{folder}{slash}{last.partition('.')[0]}"


def _read_label(file: BinaryIO | _Inflated, member: TarMember, where: str) -> int:
    file.seek(member.offset)
    text = file.read(min(member.size_bytes, _MOST_LABEL_BYTES)).strip()
    digits = re.fullmatch(rb"[0-9]{1,10}", text) is not None and member.size_bytes <= _MOST_LABEL_BYTES
    return check_label(int(text) if digits and int(text) <= MAX_LABEL else text.decode("latin-1"), printable(where))


def _labels(labels: dict[str, int], names: Sequence[str], location: Path) -> np.ndarray | None:
    if not labels:
        return None
    for name in names:
        if _key(name) not in labels:
            raise InputDataError(
                f"{printable(str(location))}: {printable(name)} has no label in a .cls beside it, and others have",
                mend="pack labels for all images or for none",
            )
    return np.array([labels[_key(name)] for name in names], dtype=np.int32)
