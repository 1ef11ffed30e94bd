"""What the user points at, as one ordered stream of checked images: a folder, a zip, or scikit-learn's digits.

A folder is read recursively, its images sorted by relative POSIX path; a zip's members are sorted by name and read
where they lie, never extracted. Only regular files are read: symbolic links, FIFOs, sockets and devices below the
source are refused, so that no loop and no way out of it exists. Names that start with a dot and `__MACOSX` are passed
over. Files without an image's extension are counted and otherwise ignored; images of formats that are not read (GIF,
SVG, HEIC, ...) are refused unopened. How a file becomes pixels stands in `decoding.py`.

Shapes: S image side.
"""

import collections
import os
import re
import stat
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Protocol

import numpy as np
from PIL import Image

from cedm_ray.config import digest
from cedm_ray.data.decoding import ImagesConfig, Refusal, SourceImage, decode_image, printable
from cedm_ray.errors import ConfigurationError, InputDataError

DIGITS = "sklearn:digits"
NUM_DIGITS = 1797
EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})
UNREAD_EXTENSIONS = frozenset(
    {".gif", ".svg", ".heic", ".heif", ".avif", ".jxl", ".jp2", ".eps", ".ps", ".pdf", ".psd", ".tga", ".ico", ".pbm"}
    | {".pgm", ".ppm", ".exr", ".hdr", ".fits", ".dds", ".pcx"}
)
# The whole content of one file is held in memory while it is decoded.
MAX_FILE_BYTES = 256 * 2**20
MAX_ZIP_RATIO = 200
# Python bounds what these two inflate to; it does not for bzip2 and LZMA.
_ZIP_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


class Source(Protocol):
    """An ordered stream of images. `len` is the number of items; iterating yields SourceImage or Refusal.

    `at` yields those at some places of `files`, so that several processes can each read a share. name: short, for
    people. location: absolute path, or the name of what is built in. fingerprint: changes whenever the images may have
    changed (names, sizes, times or CRCs, and the settings of decoding); it costs no decoding. refused: when listed.
    Iterating raises InputDataError where one image forbids to go on: not square without a crop, or of another side
    than those before it where `images.size` is None.
    """

    name: str
    location: str
    fingerprint: str
    files: Sequence
    refused: tuple[Refusal, ...]

    def __len__(self) -> int: ...

    def at(self, positions: Iterable[int]) -> Iterator[SourceImage | Refusal]: ...

    def __iter__(self) -> Iterator[SourceImage | Refusal]: ...


def open_source(config: ImagesConfig) -> Source:
    """Find out what `config.source` is and list what it holds; nothing is decoded yet.

    Raises ConfigurationError where no source is named, InputDataError for one that is missing, unreadable, of another
    kind, or without images.
    """
    if config.source is None:
        raise ConfigurationError("images.source is not set", mend="set it in the YAML file, or give --images PATH")
    if config.source == DIGITS:
        return DigitsSource(config=config)
    path = Path(config.source).expanduser().absolute()
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            return _list_folder(path, config)
        if stat.S_ISREG(mode):
            return _list_zip(path, config)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        mend = f"give the path of a folder or a zip of images, or {DIGITS}"
        raise InputDataError(f"cannot read images from {printable(str(path))}: {reason}", mend=mend) from None
    raise InputDataError(f"{printable(str(path))} is neither a folder nor a file")


def source_fingerprint(config: ImagesConfig) -> str:
    """The fingerprint of `config`'s source as it is now, without decoding anything; raises as `open_source`."""
    return open_source(config).fingerprint


def _fingerprint(config: ImagesConfig, content: list) -> str:
    # Where the source lies does not matter: a folder that is moved as a whole holds the same images.
    return digest({"images": config.model_dump(mode="json", exclude={"source"}), "content": content})


def _decode_stream(
    files: Iterable[tuple[str, bytes | Image.Image | Refusal]], config: ImagesConfig
) -> Iterator[SourceImage | Refusal]:
    """Decode (name, content or refusal) in order, holding all images to the first one's side if none is configured."""
    first: SourceImage | None = None
    for name, content in files:
        image = content if isinstance(content, Refusal) else decode_image(name, content, config)
        if isinstance(image, SourceImage):
            first = first or image
            if image.pixels.shape != first.pixels.shape:
                sides = [f"{printable(i.name)} has side {i.pixels.shape[-1]}" for i in (first, image)]
                raise InputDataError(
                    f"the images differ in size and images.size is not set: {sides[0]}, {sides[1]}",
                    mend="set images.size to the side that all images shall have",
                )
        yield image


def _sort_out(name: str, extensions: collections.Counter) -> str | None:
    """Why a file is not read ("" where it is no image and of no interest), or None if it is; counts its extension."""
    extension = PurePosixPath(name).suffix.lower()
    extensions[extension or "no extension"] += 1
    if extension in EXTENSIONS:
        return None
    if extension in UNREAD_EXTENSIONS:
        return f"{extension} is not read; PNG, JPEG, WebP, BMP and TIFF are"
    return ""


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(name).parts)


def _check_not_empty(location: Path, num_files: int, refused: list[Refusal], extensions: collections.Counter) -> None:
    if num_files:
        return
    found = ", ".join(f"{count:,} {printable(extension)}" for extension, count in extensions.most_common(10))
    message = f"no images in {printable(str(location))}; found: {found or 'nothing'}"
    if refused:
        message += f"; refused: {len(refused):,}, the first is {refused[0]}"
    raise InputDataError(message, mend=f"images end in {' '.join(sorted(EXTENSIONS))}")


# Folder -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderSource:
    """A folder, listed. files: (name, path below the folder as the system spells it), sorted by name."""

    config: ImagesConfig
    name: str
    location: str
    fingerprint: str
    files: tuple[tuple[str, str], ...]
    refused: tuple[Refusal, ...]

    def __len__(self) -> int:
        return len(self.files) + len(self.refused)

    def __iter__(self) -> Iterator[SourceImage | Refusal]:
        yield from self.refused
        yield from self.at(range(len(self.files)))

    def at(self, positions: Iterable[int]) -> Iterator[SourceImage | Refusal]:
        """The files at these places of `files`, in this order."""
        root = Path(self.location)
        chosen = (self.files[position] for position in positions)
        yield from _decode_stream(((name, _read_file(name, root / path)) for name, path in chosen), self.config)


def _list_folder(root: Path, config: ImagesConfig) -> FolderSource:
    listed: list[tuple[str, str, int, int]] = []
    refused: list[Refusal] = []
    extensions: collections.Counter = collections.Counter()
    pending = [""]
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
        for entry in entries:
            path = f"{folder}/{entry.name}" if folder else entry.name
            name = _utf8(path)
            if _is_hidden(entry.name):
                continue
            if entry.is_dir(follow_symlinks=False):
                pending.append(path)
            elif entry.is_symlink() and os.path.isdir(root / path):
                refused.append(Refusal(name=name, reason="a symbolic link to a folder, which is not followed"))
            elif (reason := _sort_out(name, extensions)) is None:
                if entry.is_file(follow_symlinks=False):
                    status = entry.stat(follow_symlinks=False)
                    listed.append((name, path, status.st_size, status.st_mtime_ns))
                else:
                    what = "a symbolic link, which is not followed" if entry.is_symlink() else "not a regular file"
                    refused.append(Refusal(name=name, reason=what))
            elif reason:
                refused.append(Refusal(name=name, reason=reason))
    listed.sort()
    refused.sort(key=lambda refusal: refusal.name)
    _check_not_empty(root, len(listed), refused, extensions)
    content = [[name, size, mtime_ns] for name, _, size, mtime_ns in listed]
    return FolderSource(
        config=config,
        name=root.resolve().name or "images",
        location=str(root),
        fingerprint=_fingerprint(config, [*content, [[refusal.name, refusal.reason] for refusal in refused]]),
        files=tuple((name, path) for name, path, _, _ in listed),
        refused=tuple(refused),
    )


def _utf8(path: str) -> str:
    """A file name as text that can be stored; bytes that are not UTF-8 are written as escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _read_file(name: str, path: Path) -> bytes | Refusal:
    try:
        # What was a regular file when it was listed may be a link or a FIFO by now.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                return Refusal(name=name, reason="not a regular file")
            if status.st_size > MAX_FILE_BYTES:
                return Refusal(name=name, reason=_too_large(status.st_size))
            return file.read(status.st_size)
    except OSError as error:
        return Refusal(name=name, reason=error.strerror or str(error))


def _too_large(size_bytes: int) -> str:
    return f"{size_bytes:,} bytes are more than {MAX_FILE_BYTES:,}"


# Zip ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ZipSource:
    """A zip, listed. files: the names of the members to read, sorted; each name occurs once in the archive."""

    config: ImagesConfig
    name: str
    location: str
    fingerprint: str
    files: tuple[str, ...]
    refused: tuple[Refusal, ...]

    def __len__(self) -> int:
        return len(self.files) + len(self.refused)

    def __iter__(self) -> Iterator[SourceImage | Refusal]:
        yield from self.refused
        yield from self.at(range(len(self.files)))

    def at(self, positions: Iterable[int]) -> Iterator[SourceImage | Refusal]:
        """The members at these places of `files`, in this order."""
        with _open_zip(Path(self.location)) as archive:
            chosen = (self.files[position] for position in positions)
            yield from _decode_stream(((name, _read_member(archive, name)) for name in chosen), self.config)


def _open_zip(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except OSError as error:
        raise InputDataError(f"cannot read {printable(str(path))}: {error.strerror or error}") from None
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        with open(path, "rb") as file:
            head = file.read(8)
        if head.startswith(b"PK"):
            what, mend = f"a truncated or damaged zip ({error})", "fetch or pack it again; unzip -t tests it"
        else:
            what, mend = f"not a zip (it starts with {head!r})", f"give a folder or a zip of images, or {DIGITS}"
        raise InputDataError(f"{printable(str(path))} is {what}", mend=mend) from None


def _list_zip(path: Path, config: ImagesConfig) -> ZipSource:
    with _open_zip(path) as archive:
        members = [member for member in archive.infolist() if not member.is_dir()]
    counts = collections.Counter(member.filename for member in members)
    extensions: collections.Counter = collections.Counter()
    files: list[str] = []
    refused: dict[str, Refusal] = {}
    for member in members:
        name = member.filename
        reason = _distrust(member, counts[name])
        if reason is None and _is_hidden(name):
            continue
        if reason is None:
            reason = _sort_out(name, extensions)
            if reason is None:
                reason = _distrust_content(member)
        if reason is None:
            files.append(name)
        elif reason:
            refused[name] = Refusal(name=name, reason=reason)
    refusals = [refused[name] for name in sorted(refused)]
    _check_not_empty(path, len(files), refusals, extensions)
    content = [[member.filename, member.CRC, member.file_size] for member in members]
    return ZipSource(
        config=config,
        name=path.stem or "images",
        location=str(path),
        fingerprint=_fingerprint(config, [path.stat().st_size, *sorted(content)]),
        files=tuple(sorted(files)),
        refused=tuple(refusals),
    )


def _distrust(member: zipfile.ZipInfo, count: int) -> str | None:
    """Why a member is refused whatever it contains, or None."""
    # zipfile cuts a name at a NUL byte; the stored one is judged.
    name = member.orig_filename
    if name.startswith("/") or "\\" in name or "\0" in name or re.match(r"[A-Za-z]:", name):
        return "an absolute name, or one with a backslash, a drive or a NUL"
    if ".." in PurePosixPath(name).parts:
        return "a name that leads out of the archive"
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind not in (0, stat.S_IFREG):
        return "a symbolic link" if kind == stat.S_IFLNK else "not a regular file"
    if count > 1:
        return f"{count} members have this name"
    return None


def _distrust_content(member: zipfile.ZipInfo) -> str | None:
    """Why an image member is not read, judged from the directory of the archive, or None."""
    if member.flag_bits & 1:
        return "encrypted"
    if member.compress_type not in _ZIP_METHODS:
        return f"compression method {member.compress_type} is not read; stored and deflated are"
    if member.file_size > MAX_FILE_BYTES:
        return _too_large(member.file_size)
    if member.file_size > MAX_ZIP_RATIO * max(member.compress_size, 1):
        return f"inflates more than {MAX_ZIP_RATIO} times ({member.compress_size:,} to {member.file_size:,} bytes)"
    return None


def _read_member(archive: zipfile.ZipFile, name: str) -> bytes | Refusal:
    try:
        # Reading stops at the size that the directory states, and the CRC is checked there.
        return archive.read(name)
    except Exception as error:
        # As in decode_image: what a damaged archive makes zipfile and zlib raise is no closed list.
        return Refusal(name=name, reason=printable(str(error)) or type(error).__name__)


# Digits -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class DigitsSource:
    """The 1,797 handwritten digits, 8x8 grey, that come with scikit-learn: grey levels 0..16 are spread over 0..255.

    Source: E. Alpaydin and C. Kaynak, "Optical recognition of handwritten digits", UCI repository, 1998.
    """

    config: ImagesConfig
    name: str = "digits"
    location: str = DIGITS
    fingerprint: str = field(init=False)
    refused: tuple[Refusal, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "fingerprint", _fingerprint(self.config, [DIGITS]))

    def __len__(self) -> int:
        return NUM_DIGITS

    @property
    def files(self) -> range:
        """The numbers of the pictures."""
        return range(NUM_DIGITS)

    def __iter__(self) -> Iterator[SourceImage | Refusal]:
        yield from self.at(self.files)

    def at(self, positions: Iterable[int]) -> Iterator[SourceImage | Refusal]:
        """The pictures of these numbers, in this order."""
        from sklearn.datasets import load_digits

        greys = np.rint(load_digits().images * (255 / 16)).astype(np.uint8)
        pictures = ((f"digits/{index:04d}", Image.fromarray(greys[index])) for index in positions)
        yield from _decode_stream(pictures, self.config)
