"""A folder of image files, read recursively and sorted by relative POSIX path.

Only regular files are read: symbolic links, FIFOs, sockets and devices below the folder are refused, so that no loop
and no way out of it exists. Names that start with a dot and `__MACOSX` are passed over. Files without an image's
extension are counted and otherwise ignored; images of formats that are not read (GIF, SVG, HEIC, ...) are refused
unopened. A `dataset.json` in the folder gives labels (`edm_labels.py`).
"""

import array
import collections
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cedm_ray.data.decoding import Refusal, printable
from cedm_ray.data.edm_labels import DATASET_JSON, parse_labels
from cedm_ray.data.entries import Entry, Listed, UnreadEntry, check_not_empty, is_hidden, sort_out
from cedm_ray.data.files import read_file
from cedm_ray.data.limits import LIMITS, RAISE, Limits, too_many
from cedm_ray.data.names import Names
from cedm_ray.errors import InputDataError

# The name by which it is sorted, the path below the root, size in bytes or _FOLDER, time in nanoseconds.
_Found = tuple[str, str, int, int]
_FOLDER = -1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FolderSource(Listed):
    """A folder, listed. files: paths below the folder as the system spells them, sorted by name. sizes_bytes, times_ns:
    int64 [n] of the files. labels: int32 [n], None without any. limits: for files that have grown since."""

    name: str
    location: str
    files: Sequence[str]
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
            yield UnreadEntry(_utf8(path), f"{self.location}/{path}", self.label_at(position))

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
    listing = _Listing(root, limits, listed_so_far)
    files, sizes_bytes, times_ns = Names(), array.array("q"), array.array("q")
    # The next one last. Only of folders that are open at the moment every file is held here.
    ahead: list[_Found] = [("", "", _FOLDER, 0)]
    while ahead:
        _, path, size_bytes, time_ns = ahead.pop()
        if size_bytes == _FOLDER:
            ahead += sorted(listing.look_into(path), reverse=True)
            continue
        files.append(path)
        sizes_bytes.append(size_bytes)
        times_ns.append(time_ns)
    refused = sorted(listing.refused, key=lambda refusal: refusal.name)
    check_not_empty(root, len(files), refused, listing.extensions)
    return FolderSource(
        name=root.resolve().name or "images",
        location=str(root),
        files=files,
        sizes_bytes=np.frombuffer(sizes_bytes, np.int64),
        times_ns=np.frombuffer(times_ns, np.int64),
        refused=tuple(refused),
        labels=_labels(root, files, refused, limits),
        limits=limits,
    )


class _Listing:
    """What is counted while folders are looked into."""

    def __init__(self, root: Path, limits: Limits, listed_so_far: Callable[[int], None]) -> None:
        self._root, self._limits, self._listed_so_far = root, limits, listed_so_far
        self._num_found = self._num_images = 0
        self.refused: list[Refusal] = []
        self.extensions: collections.Counter = collections.Counter()

    def look_into(self, folder: str) -> list[_Found]:
        """The image files and the folders of one folder, "" for the first of them; nothing where it cannot be read.

        A folder counts as named with the slash that follows it: so all that is below it has its place among the others.
        """
        above = f"{folder}/" if folder else ""
        found: list[_Found] = []
        try:
            with os.scandir(self._root / folder) as scan:
                for entry in scan:
                    self._num_found += 1
                    if self._num_found > self._limits.max_files:
                        where = printable(str(self._root))
                        raise InputDataError(f"cannot use {where}: {too_many(self._limits)}", mend=RAISE)
                    if not is_hidden(entry.name):
                        self._look_at(entry, above + entry.name, found)
        except OSError as error:
            if not folder:
                raise
            self.refused.append(Refusal(name=_utf8(folder), reason=f"cannot list the folder: {error.strerror}"))
            return []
        return found

    def _look_at(self, entry: os.DirEntry, path: str, found: list[_Found]) -> None:
        name = _utf8(path)
        if entry.is_file(follow_symlinks=False):
            reason = sort_out(name, self.extensions)
            if reason is None:
                status = entry.stat(follow_symlinks=False)
                found.append((name, path, status.st_size, status.st_mtime_ns))
                self._num_images += 1
                if self._num_images % 1_000 == 0:
                    self._listed_so_far(self._num_images)
        elif entry.is_dir(follow_symlinks=False):
            found.append((f"{name}/", path, _FOLDER, 0))
            return
        elif entry.is_symlink() and os.path.isdir(self._root / path):
            reason = "a symbolic link to a folder, which is not followed"
        elif (reason := sort_out(name, self.extensions)) is None:
            reason = "a symbolic link, which is not followed" if entry.is_symlink() else "not a regular file"
        if reason:
            self.refused.append(Refusal(name=name, reason=reason))


def _labels(root: Path, files: Sequence[str], refused: Sequence[Refusal], limits: Limits) -> np.ndarray | None:
    path = root / DATASET_JSON
    if not path.is_file() or path.is_symlink():
        return None
    text = read_file(path, limits)
    if isinstance(text, str):
        raise InputDataError(f"cannot read {path}: {text}")
    others = [refusal.name for refusal in refused]
    return parse_labels(text, [_utf8(file) for file in files], others=others, where=str(path))


def _utf8(path: str) -> str:
    """A file name as text that can be stored; bytes that are not UTF-8 are written as escapes."""
    return path if path.isascii() else os.fsencode(path).decode("utf-8", "backslashreplace")
