"""What the user points at, found out by looking, as one ordered list of pictures.

| what | told by | read by |
|---|---|---|
| an image set that was imported before | `manifest.json` and `pixels.npy` in a folder | `set_source.py` |
| a folder of images, EDM's with `dataset.json` | images somewhere below it | `folders.py` |
| a zip of images, EDM's with `dataset.json` | its first bytes | `zips.py` |
| a tar, plain or gzipped; a WebDataset of several | its first bytes; a folder or a pattern of such files | `tars.py` |
| CIFAR-10 and CIFAR-100, the Python version | the names in the tarball or the folder | `cifar.py` |
| NumPy's npz and npy | its first bytes, and an npy in the zip | `arrays.py` |
| MNIST's idx, plain or gzipped | its first bytes; a folder with `train-images-idx3-ubyte` | `idx.py` |
| Parquet, Hugging Face's layout or plain | its first bytes; a folder or a pattern of such files | `parquet_images.py` |
| scikit-learn's digits | the word `sklearn:digits` | `arrays.py` |

A pattern is a path with `*`, `?`, `[...]` or braces, `{00000..00099}` or `{a,b}`, where no file has that very name.
Labels that a source carries come along, for evaluation only. How a picture becomes pixels stands in `decoding.py`.
"""

import glob
import gzip
import hashlib
import itertools
import re
import stat
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from cedm_ray.config import canonical_json
from cedm_ray.data.arrays import DIGITS, DigitsSource, list_npy, list_npz
from cedm_ray.data.cifar import cifar_layout, list_cifar
from cedm_ray.data.decoding import printable
from cedm_ray.data.entries import Source, regular_files
from cedm_ray.data.folders import list_folder
from cedm_ray.data.idx import TRAIN_IMAGES, is_idx, list_idx
from cedm_ray.data.images_config import ImagesConfig
from cedm_ray.data.limits import LIMITS, RAISE, Limits, changed_limits
from cedm_ray.data.parquet_images import list_parquet
from cedm_ray.data.set_source import is_image_set, list_image_set
from cedm_ray.data.tars import TAR_SUFFIXES, list_tars
from cedm_ray.data.zips import list_zip, open_zip
from cedm_ray.errors import CedmError, ConfigurationError, InputDataError

KINDS = f"a folder, zip, tar, npz, npy, idx or Parquet file of images, an imported set, or {DIGITS}"
_TAR_MAGIC = slice(257, 262)
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"([0-9]{1,9})\.\.([0-9]{1,9})")
_OTHER_PACKINGS = {b"\xfd7zXZ": "xz", b"BZh": "bzip2", b"\x28\xb5\x2f\xfd": "zstd", b"7z\xbc\xaf": "7z", b"Rar!": "rar"}


def open_source(
    where: ImagesConfig | Path | str, *, listed_so_far: Callable[[int], None] = lambda number: None
) -> Source:
    """Find out what `where` (or `where.source`) is and list what it holds; nothing is decoded yet.

    listed_so_far: is told now and then how many images of a folder were found, while it is listed.

    Raises ConfigurationError where no source is named, InputDataError for one that is missing, unreadable, damaged, of
    another kind, or without images, SecurityError for pickled objects.
    """
    source, limits = (where.source, where) if isinstance(where, ImagesConfig) else (where, LIMITS)
    if source is None:
        raise ConfigurationError("images.source is not set", mend="set it in the YAML file, or give --images PATH")
    if str(source) == DIGITS:
        return DigitsSource()
    path = Path(source).expanduser().absolute()
    try:
        found = _open_path(path, limits, listed_so_far)
    except CedmError:
        raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputDataError(
            f"cannot read images from {printable(str(path))}: {reason}", mend=f"give the path of {KINDS}"
        ) from None
    if found is None:
        raise InputDataError(f"{printable(str(path))} is neither a folder nor a file")
    return found


def source_fingerprint(config: ImagesConfig) -> str:
    """The fingerprint of `config`'s source as it is now, without decoding anything; raises as `open_source`."""
    return fingerprint(open_source(config), config)


def fingerprint(source: Source, config: ImagesConfig) -> str:
    """SHA-256 (hex) that changes whenever the images may have changed: what the source lists, and the settings of
    decoding.

    Where the source lies does not matter: a folder that is moved as a whole holds the same images.
    """
    # The digest of one JSON text, written piece by piece, because a list of a million files is large.
    hasher = hashlib.sha256(b'{"content":[')
    listing = source.listing()
    comma = b""
    while items := list(itertools.islice(listing, 1_000)):
        hasher.update(comma + canonical_json(items)[1:-1].encode())
        comma = b","
    images = canonical_json(changed_limits(config.model_dump(mode="json", exclude={"source"})))
    hasher.update(f'],"images":{images}}}'.encode())
    return hasher.hexdigest()


def _open_path(path: Path, limits: Limits, listed_so_far: Callable[[int], None]) -> Source | None:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        shards = expand_pattern(str(path), limits)
        if not shards:
            raise
        return _open_shards(shards, path, limits)
    if stat.S_ISDIR(mode):
        return _open_folder(path, limits, listed_so_far)
    return _open_file(path, limits) if stat.S_ISREG(mode) else None


def _open_folder(path: Path, limits: Limits, listed_so_far: Callable[[int], None]) -> Source:
    if is_image_set(path):
        return list_image_set(path)
    if (layout := cifar_layout(path)) is not None:
        return list_cifar(path, layout, limits)
    if (images := next((path / name for name in TRAIN_IMAGES if (path / name).is_file()), None)) is not None:
        return list_idx(images, limits)
    try:
        return list_folder(path, limits, listed_so_far=listed_so_far)
    except InputDataError:
        # No image lies there; then shards may.
        for folder in (path, path / "data"):
            shards = [file for kinds in (TAR_SUFFIXES, (".parquet",)) for file in _files(folder, kinds)]
            if shards:
                return _open_shards(shards, path, limits)
        raise


def _files(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    return regular_files(folder, suffixes) if folder.is_dir() and not folder.is_symlink() else []


def _open_shards(shards: Sequence[Path], location: Path, limits: Limits) -> Source:
    """Several tars or several Parquet files as one source."""
    parquet = [shard for shard in shards if shard.name.lower().endswith(".parquet")]
    if parquet and len(parquet) < len(shards):
        raise InputDataError(
            f"{printable(str(location))} holds both Parquet files and tars", mend="name one kind: PATH/*.parquet"
        )
    splits = sorted({shard.name.partition("-")[0] for shard in shards})
    if "train" in splits and len(splits) > 1:
        raise InputDataError(
            f"{printable(str(location))} holds several splits: {printable(', '.join(splits[:5]))}",
            mend=f"name one of them: {shards[0].parent}/train-*",
        )
    return list_parquet(shards, location, limits) if parquet else list_tars(shards, location, limits)


def expand_pattern(pattern: str, limits: Limits = LIMITS) -> list[Path]:
    """The regular files that a pattern with `*`, `?`, `[...]` or braces names, in the order of their names; none where
    it is no pattern. Raises InputDataError for too many, or where a name that braces spell out is not there."""
    if not glob.has_magic(pattern) and not _BRACES.search(pattern):
        return []
    found: set[Path] = set()
    for name in _spell_out(pattern, limits):
        if glob.has_magic(name):
            found.update(Path(path) for path in itertools.islice(glob.iglob(name), limits.max_shards + 1))
        elif Path(name).exists():
            found.add(Path(name))
        else:
            raise InputDataError(f"there is no file {printable(name)}, which {printable(pattern)} names")
        if len(found) > limits.max_shards:
            raise _too_many_shards(pattern, limits)
    return sorted(path for path in found if path.is_file())


def _too_many_shards(pattern: str, limits: Limits) -> InputDataError:
    what = f"{printable(pattern)} names more files than images.max_shards ({limits.max_shards:,})"
    return InputDataError(what, mend=RAISE)


def _spell_out(pattern: str, limits: Limits) -> Iterator[str]:
    """A pattern without its braces, once for each choice. `{08..12}` counts, with zeros in front."""
    parts = _BRACES.split(pattern)
    choices = [_choices(part, limits) if number % 2 else [part] for number, part in enumerate(parts)]
    total = 1
    for choice in choices:
        total *= len(choice)
    if total > limits.max_shards:
        raise _too_many_shards(pattern, limits)
    return ("".join(choice) for choice in itertools.product(*choices))


def _choices(inside: str, limits: Limits) -> Sequence[str]:
    counted = _RANGE.fullmatch(inside)
    if counted is None:
        return inside.split(",")
    first, last = counted.groups()
    numbers = range(int(first), int(last) + 1)
    if len(numbers) > limits.max_shards:
        raise _too_many_shards(f"{{{inside}}}", limits)
    return [str(number).zfill(len(first)) for number in numbers]


def _open_file(path: Path, limits: Limits) -> Source:
    with open(path, "rb") as file:
        head = file.read(512)
    if head.startswith(b"PK"):
        with open_zip(path) as archive:
            arrays = any(name.endswith(".npy") and "/" not in name for name in archive.namelist())
        return list_npz(path, limits) if arrays else list_zip(path, limits)
    if head.startswith(b"\x93NUMPY"):
        return list_npy(path, limits)
    if head.startswith(b"PAR1"):
        return list_parquet([path], path, limits)
    zipped = head.startswith(b"\x1f\x8b")
    inside = _inflated_head(path) if zipped else head
    if is_idx(inside):
        return list_idx(path, limits)
    if inside[_TAR_MAGIC] == b"ustar" or path.name.lower().endswith(TAR_SUFFIXES):
        layout = cifar_layout(path, limits)
        return list_tars([path], path, limits) if layout is None else list_cifar(path, layout, limits)
    packing = next((name for magic, name in _OTHER_PACKINGS.items() if head.startswith(magic)), None)
    if packing is not None:
        raise InputDataError(
            f"{printable(str(path))} is packed by {packing}, which is not read", mend="unpack it, or pack it as a zip"
        )
    raise InputDataError(
        f"{printable(str(path))} is of no kind that is read (it starts with {head[:8]!r})", mend=f"give {KINDS}"
    )


def _inflated_head(path: Path) -> bytes:
    try:
        with gzip.open(path) as file:
            return file.read(512)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputDataError(
            f"{printable(str(path))} is a truncated or damaged gzip file ({error})", mend="fetch it again"
        ) from None
