"""A zip of image files, its members sorted by name and read where they lie, never extracted.

A member is refused, by its name, for what the directory of the archive says of it: a name that leads elsewhere, a link,
a name that occurs twice, encryption, an unknown packing, a ratio or a size above the limits, an archive in the archive.
A `dataset.json` at the top gives labels (`edm_labels.py`).
"""

import collections
import stat
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from cedm_ray.data.decoding import Refusal, printable
from cedm_ray.data.edm_labels import DATASET_JSON, parse_labels
from cedm_ray.data.entries import (
    ARCHIVE_EXTENSIONS,
    Entry,
    Listed,
    check_not_empty,
    distrust_name,
    is_hidden,
    sort_out,
)
from cedm_ray.data.limits import LIMITS, RAISE, Limits, inflates, too_large, too_many, too_much
from cedm_ray.errors import InputDataError

# Python bounds what these two inflate to; it does not for bzip2 and LZMA.
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ZipSource(Listed):
    """A zip, listed. files: the names of the members to read, sorted; each name occurs once in the archive. labels:
    int32 [n], None without any. size_bytes: of the archive. members: (name, CRC, size) of all of them."""

    name: str
    location: str
    files: tuple[str, ...]
    refused: tuple[Refusal, ...]
    labels: np.ndarray | None
    size_bytes: int
    members: tuple[tuple[str, int, int], ...]
    streamed: bool = False

    @property
    def kind(self) -> str:
        return "zip" if self.labels is None else "edm-zip"

    def at(self, positions: Iterable[int]) -> Iterator[Entry | Refusal]:
        with open_zip(Path(self.location)) as archive:
            for position in positions:
                name = self.files[position]
                content = _read_member(archive, name)
                if isinstance(content, str):
                    yield Refusal(name=name, reason=content)
                else:
                    yield Entry(name=name, content=content, label=self.label_at(position))

    def listing(self) -> Iterator[Any]:
        yield self.size_bytes
        for member in self.members:
            yield list(member)


def open_zip(path: Path) -> zipfile.ZipFile:
    """Open an archive. Raises InputDataError where it is none, or a damaged one."""
    try:
        return zipfile.ZipFile(path)
    except OSError as error:
        raise InputDataError(f"cannot read {printable(str(path))}: {error.strerror or error}") from None
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise InputDataError(
            f"{printable(str(path))} is a truncated or damaged zip ({error})",
            mend="fetch or pack it again; unzip -t tests it",
        ) from None


def list_zip(path: Path, limits: Limits = LIMITS) -> ZipSource:
    """List a zip. Raises InputDataError where it is damaged, holds no image or too much, or its dataset.json breaks a
    rule."""
    with open_zip(path) as archive:
        _check_amount(path, archive, limits)
        members = [member for member in archive.infolist() if not member.filename.endswith("/")]
        counts = collections.Counter(member.filename for member in members)
        extensions: collections.Counter = collections.Counter()
        files: list[str] = []
        refused: dict[str, Refusal] = {}
        for member in members:
            name = member.filename
            reason = _distrust(member, counts[name])
            if reason is None and is_hidden(name):
                continue
            if reason is None:
                reason = sort_out(name, extensions)
                if reason is None:
                    reason = _distrust_content(member, limits)
                elif PurePosixPath(name).suffix.lower() in ARCHIVE_EXTENSIONS:
                    reason = "an archive in the archive, which is not opened"
            if reason is None:
                files.append(name)
            elif reason:
                refused[name] = Refusal(name=name, reason=reason)
        files.sort()
        refusals = [refused[name] for name in sorted(refused)]
        check_not_empty(path, len(files), refusals, extensions)
        labels = _labels(path, archive, files, list(refused), limits) if DATASET_JSON in counts else None
    return ZipSource(
        name=path.stem or "images",
        location=str(path),
        files=tuple(files),
        refused=tuple(refusals),
        labels=labels,
        size_bytes=path.stat().st_size,
        members=tuple(sorted((member.filename, member.CRC, member.file_size) for member in members)),
    )


def _check_amount(path: Path, archive: zipfile.ZipFile, limits: Limits) -> None:
    members = archive.infolist()
    what = None
    if len(members) > limits.max_files:
        what = too_many(limits)
    elif (unpacked := sum(member.file_size for member in members)) > limits.max_unpacked_bytes:
        what = too_much(unpacked, limits)
    if what is not None:
        raise InputDataError(f"cannot use {printable(str(path))}: {what}", mend=RAISE)


def _labels(
    path: Path, archive: zipfile.ZipFile, files: list[str], refused: list[str], limits: Limits
) -> np.ndarray | None:
    where = f"{path}: {DATASET_JSON}"
    member = archive.getinfo(DATASET_JSON)
    twice = DATASET_JSON in refused
    reason = f"it occurs twice in {path}" if twice else _distrust_content(member, limits, any_ratio=True)
    text = reason or _read_member(archive, DATASET_JSON)
    if isinstance(text, str):
        raise InputDataError(f"{printable(where)} is not read: {text}", mend="repair it or take it out of the zip")
    return parse_labels(text, files, others=refused, where=where)


def _distrust(member: zipfile.ZipInfo, count: int) -> str | None:
    """Why a member is refused whatever it contains, or None."""
    # zipfile cuts a name at a NUL byte; the stored one is judged.
    if (reason := distrust_name(member.orig_filename)) is not None:
        return reason
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind not in (0, stat.S_IFREG):
        return "a symbolic link" if kind == stat.S_IFLNK else "not a regular file"
    if count > 1:
        return f"{count} members have this name"
    return None


def _distrust_content(member: zipfile.ZipInfo, limits: Limits, *, any_ratio: bool = False) -> str | None:
    """Why an image member is not read, judged from the directory of the archive, or None."""
    if member.flag_bits & 1:
        return "encrypted"
    if member.compress_type not in _METHODS:
        return f"compression method {member.compress_type} is not read; stored and deflated are"
    if member.file_size > limits.max_file_bytes:
        return too_large(member.file_size, limits)
    if not any_ratio and member.file_size > limits.max_ratio * max(member.compress_size, 1):
        return f"{inflates(limits)} ({member.compress_size:,} to {member.file_size:,} bytes)"
    return None


def _read_member(archive: zipfile.ZipFile, name: str) -> bytes | str:
    """The content of a member, or the reason why it cannot be read."""
    try:
        # Reading stops at the size that the directory states, and the CRC is checked there.
        return archive.read(name)
    except Exception as error:
        # As in decode_image: what a damaged archive makes zipfile and zlib raise is no closed list.
        return printable(str(error)) or type(error).__name__
