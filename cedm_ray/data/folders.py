"""A folder of image files, read recursively and sorted by relative POSIX path.

Only regular files are read: symbolic links, FIFOs, sockets and devices below the folder are refused, so that no loop
and no way out of it exists. Names that start with a dot and `__MACOSX` are passed over. Files without an image's
extension are counted and otherwise ignored; images of formats that are not read (GIF, SVG, HEIC, ...) are refused
unopened. A `dataset.json` in the folder gives labels (`edm_labels.py`).
"""

import collections
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cedm_ray.data.decoding import Refusal, printable
from cedm_ray.data.edm_labels import DATASET_JSON, parse_labels
from cedm_ray.data.entries import Entry, Listed, UnreadEntry, check_not_empty, is_hidden, sort_out
from cedm_ray.data.limits import LIMITS, RAISE, Limits, too_large, too_many
from cedm_ray.errors import InputDataError


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FolderSource(Listed):
    """A folder, listed. files: paths below the folder as the system spells them, sorted by name. sizes_bytes, times_ns:
    int64 [n] of the files. labels: int32 [n], None without any. limits: for files that have grown since."""

    name: str
    location: str
    files: tuple[str, ...]
    sizes_bytes: np.ndarray
    times_ns: np.ndarray
    refused: tuple[Refusal, ...]
    labels: np.ndarray | None
    limits: Limits = LIMITS
    streamed: bool = False

    @property
    def kind(self) -> str:
        return "folder" if self.labels is None else "edm-folder"

    @property
    def size_bytes(self) -> int:
        return int(self.sizes_bytes.sum())

    def at(self, positions: Iterable[int]) -> Iterator[Entry | Refusal]:
        for unread in self.unread_at(positions):
            content = read_file(unread.path, self.limits)
            if isinstance(content, str):
                yield Refusal(name=unread.name, reason=content)
            else:
                yield Entry(name=unread.name, content=content, label=unread.label)

    def unread_at(self, positions: Iterable[int]) -> Iterator[UnreadEntry]:
        """As `at`, with nothing read."""
        for position in positions:
            path = self.files[position]
            yield UnreadEntry(name=_utf8(path), path=f"{self.location}/{path}", label=self.label_at(position))

    def listing(self) -> Iterator[Any]:
        for path, size, time_ns in zip(self.files, self.sizes_bytes, self.times_ns, strict=True):
            yield [_utf8(path), int(size), int(time_ns)]
        yield [[refusal.name, refusal.reason] for refusal in self.refused]


def list_folder(
    root: Path, limits: Limits = LIMITS, *, listed_so_far: Callable[[int], None] = lambda number: None
) -> FolderSource:
    """List a folder.

    listed_so_far: is told how many images were found, now and then. Raises OSError where the folder cannot be read,
    InputDataError where it holds no image, too many files, or a dataset.json that breaks a rule.
    """
    listed: list[tuple[str, str, int, int]] = []
    refused: list[Refusal] = []
    extensions: collections.Counter = collections.Counter()
    pending, num_found = [""], 0
    while pending:
        folder = pending.pop()
        try:
            with os.scandir(root / folder) as scan:
                entries = list(scan)
        except OSError as error:
            if not folder:
                raise
            refused.append(Refusal(name=_utf8(folder), reason=f"cannot list the folder: {error.strerror}"))
            continue
        num_found += len(entries)
        if num_found > limits.max_files:
            raise InputDataError(f"cannot use {printable(str(root))}: {too_many(limits)}", mend=RAISE)
        for entry in entries:
            path = f"{folder}/{entry.name}" if folder else entry.name
            if is_hidden(entry.name):
                continue
            if entry.is_dir(follow_symlinks=False):
                pending.append(path)
                continue
            name = _utf8(path)
            if entry.is_symlink() and os.path.isdir(root / path):
                refused.append(Refusal(name=name, reason="a symbolic link to a folder, which is not followed"))
            elif (reason := sort_out(name, extensions)) is None:
                if entry.is_file(follow_symlinks=False):
                    status = entry.stat(follow_symlinks=False)
                    listed.append((name, path, status.st_size, status.st_mtime_ns))
                    if len(listed) % 1_000 == 0:
                        listed_so_far(len(listed))
                else:
                    what = "a symbolic link, which is not followed" if entry.is_symlink() else "not a regular file"
                    refused.append(Refusal(name=name, reason=what))
            elif reason:
                refused.append(Refusal(name=name, reason=reason))
    listed.sort()
    refused.sort(key=lambda refusal: refusal.name)
    check_not_empty(root, len(listed), refused, extensions)
    return FolderSource(
        name=root.resolve().name or "images",
        location=str(root),
        files=tuple(path for _, path, _, _ in listed),
        sizes_bytes=np.array([size for _, _, size, _ in listed], dtype=np.int64),
        times_ns=np.array([time_ns for _, _, _, time_ns in listed], dtype=np.int64),
        refused=tuple(refused),
        labels=_labels(root, [name for name, _, _, _ in listed], [refusal.name for refusal in refused], limits),
        limits=limits,
    )


def _labels(root: Path, names: Sequence[str], refused: Sequence[str], limits: Limits) -> np.ndarray | None:
    path = root / DATASET_JSON
    if not path.is_file() or path.is_symlink():
        return None
    text = read_file(path, limits)
    if isinstance(text, str):
        raise InputDataError(f"cannot read {path}: {text}")
    return parse_labels(text, names, others=refused, where=str(path))


def _utf8(path: str) -> str:
    """A file name as text that can be stored; bytes that are not UTF-8 are written as escapes."""
    return path if path.isascii() else os.fsencode(path).decode("utf-8", "backslashreplace")


def read_file(path: Path | str, limits: Limits = LIMITS) -> bytes | str:
    """The content of a regular file, or the reason why it is not read."""
    try:
        # What was a regular file when it was listed may be a link or a FIFO by now.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                return "not a regular file"
            if status.st_size > limits.max_file_bytes:
                return too_large(status.st_size, limits)
            content = os.read(descriptor, status.st_size)
            # A network's file system may give less than it is asked for.
            while len(content) < status.st_size and (more := os.read(descriptor, status.st_size - len(content))):
                content += more
            return content
        finally:
            os.close(descriptor)
    except OSError as error:
        return error.strerror or str(error)
