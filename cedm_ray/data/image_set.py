"""ImageSet: the images of a study as one memory-mapped array, in one order, under one digest.

Row i means image i everywhere: in features, neighbours, labels and reports. A set is a folder:

- `pixels.npy`     uint8 [N, 3, S, S], the images in the order of their source
- `index.parquet`  one line per image that was found: row (null where refused), name, width and height as stored, mode,
                   and for a refused one the reason
- `manifest.json`  N, S, the digests and what the set was made from; written last, so a folder without it is no set

Two digests: `digest` is that of the shape and the pixels and keys whatever is computed from pixels (features,
statistics); `names_digest` is that of the names in row order, which no computation reads.

Shapes: N images, S image side.
"""

import contextlib
import hashlib
import re
from collections import Counter
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cedm_ray.config import digest
from cedm_ray.data.decoding import ImagesConfig, Refusal, SourceImage
from cedm_ray.data.sources import Source, open_source
from cedm_ray.durable import (
    commit_file,
    is_temporary,
    read_record,
    sha256_file,
    storage_error,
    temporary_path,
    write_record,
)
from cedm_ray.errors import InputDataError, IntegrityError

PIXELS, INDEX, MANIFEST = "pixels.npy", "index.parquet", "manifest.json"
_INDEX_SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("name", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("mode", pa.string()),
        ("reason", pa.string()),
    ]
)
_ROWS_PER_GROUP = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSet:
    """N images of one size, in the order that every stage uses.

    name: of the source, for people ([A-Za-z0-9._-], at most 64).
    names: N source names; names[i] belongs to pixels[i].
    pixels: uint8 [N, 3, S, S]; a read-only memory map where the set was opened from a folder. N is at least 2.
    digest: SHA-256 (hex) over shape and pixels.
    refused: what the source held and the set does not, with the reasons.
    fingerprint: of the source when it was imported (`source_fingerprint`), None for a set made otherwise.
    """

    name: str
    names: tuple[str, ...]
    pixels: np.ndarray
    digest: str
    refused: tuple[Refusal, ...] = ()
    fingerprint: str | None = None

    def __post_init__(self) -> None:
        shape = self.pixels.shape
        if self.pixels.dtype != np.uint8 or len(shape) != 4 or shape[1] != 3 or shape[2] != shape[3]:
            raise ValueError(f"pixels must be uint8 [N, 3, S, S], got {self.pixels.dtype} {list(shape)}")
        if shape[0] < 2:
            raise ValueError(f"pixels must hold at least 2 images, got {shape[0]}")
        if len(self.names) != shape[0]:
            raise ValueError(f"names must have one entry per image, got {len(self.names)} for {shape[0]} images")

    def __len__(self) -> int:
        return len(self.names)

    @property
    def size(self) -> int:
        """S in pixels."""
        return self.pixels.shape[-1]

    @property
    def names_digest(self) -> str:
        """SHA-256 (hex) over the names in row order."""
        return digest(list(self.names))


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportProgress:
    """done: images and refusals so far. total: of both, None where the source cannot tell. refused: so far."""

    done: int
    total: int | None
    refused: int


def import_images(config: ImagesConfig, folder: Path) -> Generator[ImportProgress, None, ImageSet]:
    """Read `config`'s source into `folder` and return the opened set (as StopIteration's value).

    One image at a time goes through memory. Yields after every image. An import that was cut short leaves nothing that
    counts; it is begun again. Raises InputDataError as the source does, with `on_bad` "fail" for the first refused
    image, with "skip" as soon as more than `max_bad_fraction` of all are refused, and for fewer than 2 good images;
    StorageError where `folder` cannot be written; ValueError where it holds a set already.
    """
    folder = Path(folder)
    if (folder / MANIFEST).exists():
        raise ValueError(f"folder must not hold an image set, got {folder}")
    source = open_source(config)
    needed_bytes = len(source) * 3 * (config.size or 0) ** 2
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.iterdir():
            if is_temporary(path):
                path.unlink()
        with _temporary_file(folder / PIXELS) as pixels, _temporary_file(folder / INDEX) as index:
            shape, pixels_sha256 = yield from _copy_images(source, config, pixels, index)
        manifest = {
            "name": re.sub(r"[^A-Za-z0-9._-]", "-", source.name)[:64],
            "num_images": shape[0],
            "size": shape[2],
            "digest": pixels_digest(shape, pixels_sha256),
            "pixels_sha256": pixels_sha256,
            "index_sha256": sha256_file(folder / INDEX),
            "num_refused": len(source) - shape[0],
            "source": source.location,
            "fingerprint": source.fingerprint,
            "config": config.model_dump(mode="json"),
            "config_digest": digest(config),
        }
        write_record(folder / MANIFEST, manifest)
    except OSError as error:
        # Errors of reading have become refusals or InputDataError on their way; what is left is our own folder.
        raise storage_error(error, folder, needed_bytes) from error
    return open_image_set(folder)


def pixels_digest(shape: tuple[int, ...], pixels_sha256: str) -> str:
    """The digest of a set of shape [N, 3, S, S] whose bytes, image after image, have this SHA-256."""
    return digest({"shape": list(shape), "dtype": "uint8", "pixels_sha256": pixels_sha256})


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
    source: Source, config: ImagesConfig, pixels: BinaryIO, index: BinaryIO
) -> Generator[ImportProgress, None, tuple[tuple[int, int, int, int], str]]:
    """Write the images and their index to two open files; returns the shape and the SHA-256 of the pixels."""
    total = len(source)
    reasons: Counter[str] = Counter()
    refused: list[Refusal] = []
    lines: list[dict] = []
    hasher = hashlib.sha256()
    count = size = 0
    with pq.ParquetWriter(index, _INDEX_SCHEMA, write_page_checksum=True) as table:
        for done, item in enumerate(source, start=1):
            if isinstance(item, SourceImage):
                if count == 0:
                    size = item.pixels.shape[-1]
                    _write_header(pixels, 0, size)
                data = item.pixels.tobytes()
                pixels.write(data)
                hasher.update(data)
                line = {"row": count, "width": item.width, "height": item.height, "mode": item.mode, "reason": None}
                count += 1
            else:
                refused.append(item)
                reasons[item.reason] += 1
                _check_refusals(config, refused, reasons, total)
                line = {"row": None, "width": None, "height": None, "mode": None, "reason": item.reason}
            lines.append({"name": item.name, **line})
            if len(lines) == _ROWS_PER_GROUP:
                table.write_table(pa.Table.from_pylist(lines, _INDEX_SCHEMA))
                lines.clear()
            yield ImportProgress(done=done, total=total, refused=len(refused))
        table.write_table(pa.Table.from_pylist(lines, _INDEX_SCHEMA))
    if count < 2:
        raise InputDataError(
            f"{source.location} has {count} usable images ({len(refused)} refused); at least 2 are needed"
        )
    pixels.seek(0)
    _write_header(pixels, count, size)
    return (count, 3, size, size), hasher.hexdigest()


def _write_header(file: BinaryIO, count: int, size: int) -> None:
    # NumPy pads its header so that the first axis can grow without moving the data, whatever N turns out to be.
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, 3, size, size)}
    np.lib.format.write_array_header_1_0(file, header)


def _check_refusals(config: ImagesConfig, refused: list[Refusal], reasons: Counter[str], total: int) -> None:
    if config.on_bad == "fail":
        raise InputDataError(
            f"refused image {refused[-1]}", mend="repair or remove it, or set images.on_bad to skip to leave such out"
        )
    if len(refused) > config.max_bad_fraction * total:
        common = "; ".join(f"{count:,} x {reason}" for reason, count in reasons.most_common(5))
        named = ", ".join(str(refusal) for refusal in refused[:5])
        raise InputDataError(
            f"{len(refused):,} of {total:,} images are refused so far, more than images.max_bad_fraction allows "
            f"({config.max_bad_fraction:g}). Reasons: {common}. The first: {named}",
            mend="repair or remove them, or allow more with images.max_bad_fraction",
        )


def open_image_set(folder: Path, *, verify: bool = False) -> ImageSet:
    """Open a set, its pixels as a read-only memory map.

    verify: whether every pixel is read and compared with the digest; otherwise only sizes and the index are.
    Raises InputDataError where no set is, IntegrityError naming the file that is not the one that was written.
    """
    folder = Path(folder)
    try:
        manifest = read_record(folder / MANIFEST)
    except FileNotFoundError:
        mend = "import the images first; an import that was cut short has to be run again"
        raise InputDataError(f"no image set in {folder.absolute()}: it has no {MANIFEST}", mend=mend) from None
    count, size = manifest["num_images"], manifest["size"]
    pixels = _map_pixels(folder / PIXELS, (count, 3, size, size))
    if verify and hashlib.sha256(pixels).hexdigest() != manifest["pixels_sha256"]:
        raise _damaged(folder / PIXELS, "its checksum does not match the manifest's")
    try:
        if sha256_file(folder / INDEX) != manifest["index_sha256"]:
            raise _damaged(folder / INDEX, "its checksum does not match the manifest's")
    except OSError as error:
        raise _damaged(folder / INDEX, error.strerror or str(error)) from None
    index = pq.read_table(folder / INDEX, page_checksum_verification=True)
    names, reasons = index["name"].to_pylist(), index["reason"].to_pylist()
    return ImageSet(
        name=manifest["name"],
        names=tuple(name for name, reason in zip(names, reasons, strict=True) if reason is None),
        pixels=pixels,
        digest=manifest["digest"],
        refused=tuple(
            Refusal(name=name, reason=reason) for name, reason in zip(names, reasons, strict=True) if reason is not None
        ),
        fingerprint=manifest["fingerprint"],
    )


def _map_pixels(path: Path, shape: tuple[int, int, int, int]) -> np.ndarray:
    try:
        pixels = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise _damaged(path, str(error)) from None
    if pixels.dtype != np.uint8 or pixels.shape != shape:
        raise _damaged(path, f"it holds {pixels.dtype} {list(pixels.shape)}, the manifest says uint8 {list(shape)}")
    return pixels


def _damaged(path: Path, reason: str) -> IntegrityError:
    mend = f"remove {path.parent} to import the images again"
    return IntegrityError(f"{path} is not the file that was written: {reason}", mend=mend)
