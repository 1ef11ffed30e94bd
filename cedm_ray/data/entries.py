"""What every source gives, whatever it is: entries in one order, each a name with its bytes or its array, and a label.

A source is listed when it is opened and decodes nothing; `decoding.py` makes images of its entries. The rules that all
sources share stand here too: which names are images, and which are passed over.

Shapes: N entries, H and W of one picture.
"""

import collections
import json
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Protocol

import numpy as np

from cedm_ray.data.decoding import Refusal, printable
from cedm_ray.errors import InputDataError

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})
UNREAD_EXTENSIONS = frozenset(
    {".gif", ".svg", ".heic", ".heif", ".avif", ".jxl", ".jp2", ".eps", ".ps", ".pdf", ".psd", ".tga", ".ico", ".pbm"}
    | {".pgm", ".ppm", ".exr", ".hdr", ".fits", ".dds", ".pcx"}
)
ARCHIVE_EXTENSIONS = frozenset({".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar"})
MAX_LABEL = 2**31 - 1
"""Labels are int32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One picture of a source, not decoded.

    name: relative POSIX path, member name, or the number of the picture; it occurs once in its source. content: the
    bytes of an image file; or the pixels themselves, uint8 [H, W, 3] or [H, W]. label: at least 0, for evaluation only;
    None where the source has no labels.
    """

    name: str
    content: bytes | np.ndarray
    label: int | None = None


class UnreadEntry(NamedTuple):
    """A picture in a folder whose file was not read yet. name, label: as an Entry's. path: of the file."""

    name: str
    path: str
    label: int | None = None


class Source(Protocol):
    """An ordered list of pictures. Iterating yields what was refused when it was listed, then every file as an Entry,
    or as a Refusal where it turned out that it cannot be read; `len` is the number of both together.

    kind: "folder", "zip", "edm-zip", "edm-folder", "tar", "webdataset", "cifar", "npz", "npy", "idx", "parquet",
    "digits" or "image-set". name: short, for people. location: absolute path, or the name of what is built in. files:
    of the positions that `at` takes. refused: when listed. streamed: whether `at` reads everything that lies before a
    position. labelled: whether every file has a label.
    size_bytes: of all files together.
    """

    kind: str
    name: str
    location: str
    files: Sequence
    refused: tuple[Refusal, ...]
    streamed: bool
    labelled: bool
    size_bytes: int

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Entry | Refusal]: ...

    def at(self, positions: Iterable[int]) -> Iterator[Entry | Refusal]:
        """The entries at these places of `files`, in this order; of a streamed source, in rising order."""

    def listing(self) -> Iterator[Any]:
        """Plain values that change whenever the images may have changed: names, sizes, times, checksums."""


class Listed:
    """What sources have in common that are a list of files with some refusals before them, and maybe labels.

    labels: int32 [n] of the files, None without any.
    """

    __slots__ = ()

    @property
    def labelled(self) -> bool:
        return self.labels is not None

    def label_at(self, position: int) -> int | None:
        """The label of a file; None where the source has none."""
        return None if self.labels is None else int(self.labels[position])

    def __len__(self) -> int:
        return len(self.files) + len(self.refused)

    def __iter__(self) -> Iterator[Entry | Refusal]:
        yield from self.refused
        yield from self.at(range(len(self.files)))


def stamp(path: Path) -> list[int]:
    """Size in bytes and time of the last change of a file, for `Source.listing`."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def regular_files(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """The regular files right in a folder whose names end so, sorted; links and hidden names are passed over."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.name.lower().endswith(suffixes) and not is_hidden(path.name) and stat.S_ISREG(path.lstat().st_mode)
    )


def sort_out(name: str, extensions: collections.Counter) -> str | None:
    """Why a file is not read ("" where it is no image and of no interest), or None if it is; counts its extension."""
    # As os.path.splitext does it, at a third of its time; names that begin with a dot do not come here.
    dot = name.rfind(".")
    extension = name[dot:].lower() if dot > name.rfind("/") else ""
    extensions[extension or "no extension"] += 1
    if extension in EXTENSIONS:
        return None
    if extension in UNREAD_EXTENSIONS:
        return f"{extension} is not read; PNG, JPEG, WebP, BMP and TIFF are"
    return ""


def is_hidden(name: str) -> bool:
    """Whether a name is passed over: a part of it starts with a dot, or is what macOS packs beside files."""
    # Most names are settled by this alone.
    if name[:1] != "." and "/." not in name and "__MACOSX" not in name:
        return False
    return any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(name).parts)


def distrust_name(name: str) -> str | None:
    """Why a member of an archive is refused for its name, or None."""
    if not name:
        return "it has no name"
    drive = len(name) > 1 and name[1] == ":" and name[0].isascii() and name[0].isalpha()
    if name.startswith("/") or "\\" in name or "\0" in name or drive:
        return "an absolute name, or one with a backslash, a drive or a NUL"
    if ".." in PurePosixPath(name).parts:
        return "a name that leads out of the archive"
    return None


def check_not_empty(
    location: Path, num_files: int, refused: Sequence[Refusal], extensions: collections.Counter
) -> None:
    """Raises InputDataError with the extensions that were found where there is not one image."""
    if num_files:
        return
    found = ", ".join(f"{count:,} {printable(extension)}" for extension, count in extensions.most_common(10))
    message = f"no images in {printable(str(location))}; found: {found or 'nothing'}"
    if refused:
        message += f"; refused: {len(refused):,}, the first is {refused[0]}"
    raise InputDataError(message, mend=f"images end in {' '.join(sorted(EXTENSIONS))}")


def check_label(value: Any, where: str) -> int:
    """`value` as a label. where: begins the message of the InputDataError that anything but an int32 >= 0 raises."""
    if isinstance(value, np.integer):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_LABEL:
        shown = printable(json.dumps(value, default=repr)[:60])
        raise InputDataError(
            f"{where} has the label {shown}, which is not a whole number of at least 0",
            mend="repair the labels or take them out of the source: a search does without",
        )
    return value
