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
    # Not a tuple for each file, which takes half as much memory again.
    paths: list[str] = []
    sizes_bytes, times_ns = array.array("q"), array.array("q")
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
        above = f"{folder}/" if folder else ""
        for entry in entries:
            if is_hidden(entry.name):
                continue
            path = above + entry.name
            regular = entry.is_file(follow_symlinks=False)
            if not regular and entry.is_dir(follow_symlinks=False):
                pending.append(path)
                continue
            name = _utf8(path)
            if not regular and entry.is_symlink() and os.path.isdir(root / path):
                refused.append(Refusal(name=name, reason="a symbolic link to a folder, which is not followed"))
            elif (reason := sort_out(name, extensions)) is None:
                if regular:
                    status = entry.stat(follow_symlinks=False)
                    paths.append(path)
                    sizes_bytes.append(status.st_size)
                    times_ns.append(status.st_mtime_ns)
                    if len(paths) % 1_000 == 0:
                        listed_so_far(len(paths))
                else:
                    what = "a symbolic link, which is not followed" if entry.is_symlink() else "not a regular file"
                    refused.append(Refusal(name=name, reason=what))
            elif reason:
                refused.append(Refusal(name=name, reason=reason))
    refused.sort(key=lambda refusal: refusal.name)
    check_not_empty(root, len(paths), refused, extensions)
    # By name, and where two names are the same text, by what the system calls them.
    order = sorted(range(len(paths)), key=paths.__getitem__)
    if not all(map(str.isascii, paths)):
        order.sort(key=lambda position: _utf8(paths[position]))
    files = tuple(map(paths.__getitem__, order))
    return FolderSource(
        name=root.resolve().name or "images",
        location=str(root),
        files=files,
        sizes_bytes=np.frombuffer(sizes_bytes, np.int64)[order],
        times_ns=np.frombuffer(times_ns, np.int64)[order],
        refused=tuple(refused),
        labels=_labels(root, files, refused, limits),
        limits=limits,
    )


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
