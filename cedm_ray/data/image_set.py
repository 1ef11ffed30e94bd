"""ImageSet: the images of a study as one memory-mapped array, in one order, under one digest.

Row i means image i everywhere: in features, neighbours, labels and reports. A set is a folder:

- `pixels.npy`     uint8 [N, 3, S, S], the images in the order of their source: one file, so that any rows are one look
                   into one memory map
- `index.parquet`  one line per image that was found: row (null where refused), name, SHA-256 of its source, width and
                   height as stored, mode, label (null without any), and the verdict: null, or the reason of a refusal
- `manifest.json`  N, S, the digests and what the set was made from; written last, so a folder without it is no set. Its
                   shards, runs of rows of at most 64 MiB, each have a SHA-256, so that damage is found where it is

Two digests: `digest` is that of the shape and the pixels and keys whatever is computed from pixels (features,
statistics); `names_digest` is that of the names in row order, which no computation reads. Labels are in neither.

Shapes: N images, S image side.
"""

import array
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from cedm_ray.config import digest
from cedm_ray.data.decoding import Refusal
from cedm_ray.data.names import Names
from cedm_ray.durable import BROKEN_ARRAY, read_record, sha256_file
from cedm_ray.errors import InputDataError, IntegrityError

PIXELS, INDEX, MANIFEST = "pixels.npy", "index.parquet", "manifest.json"
# Lines of the index that are looked at together.
_LINES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSet:
    """N images of one size, in the order that every stage uses.

    name: of the source, for people ([A-Za-z0-9._-], at most 64).
    names: N source names; names[i] belongs to pixels[i].
    pixels: uint8 [N, 3, S, S]; a read-only memory map where the set was opened from a folder. N is at least 2.
    digest: SHA-256 (hex) over shape and pixels.
    refused: what the source held and the set does not, with the reasons.
    fingerprint: of the source when it was imported (`source_fingerprint`), None for a set made otherwise.
    labels: int32 [N], for evaluation only; None where the source had none.
    """

    name: str
    names: Sequence[str]
    pixels: np.ndarray
    digest: str
    refused: tuple[Refusal, ...] = ()
    fingerprint: str | None = None
    labels: np.ndarray | None = None

    def __post_init__(self) -> None:
        shape = self.pixels.shape
        if self.pixels.dtype != np.uint8 or len(shape) != 4 or shape[1] != 3 or shape[2] != shape[3]:
            raise ValueError(f"pixels must be uint8 [N, 3, S, S], got {self.pixels.dtype} {list(shape)}")
        if shape[0] < 2:
            raise ValueError(f"pixels must hold at least 2 images, got {shape[0]}")
        if len(self.names) != shape[0]:
            raise ValueError(f"names must have one entry per image, got {len(self.names)} for {shape[0]} images")
        if self.labels is not None and (self.labels.dtype != np.int32 or self.labels.shape != shape[:1]):
            raise ValueError(f"labels must be int32 [N], got {self.labels.dtype} {list(self.labels.shape)}")

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


def pixels_digest(shape: tuple[int, ...], pixels_sha256: str) -> str:
    """The digest of a set of shape [N, 3, S, S] whose bytes, image after image, have this SHA-256."""
    return digest({"shape": list(shape), "dtype": "uint8", "pixels_sha256": pixels_sha256})


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
    if verify:
        _verify(folder / PIXELS, pixels, manifest)
    try:
        if sha256_file(folder / INDEX) != manifest["index_sha256"]:
            raise _damaged(folder / INDEX, "its checksum does not match the manifest's")
    except OSError as error:
        raise _damaged(folder / INDEX, error.strerror or str(error)) from None
    names, refused, labels = _read_index(folder / INDEX)
    return ImageSet(
        name=manifest["name"],
        names=names,
        pixels=pixels,
        digest=manifest["digest"],
        refused=refused,
        fingerprint=manifest["fingerprint"],
        labels=labels,
    )


def _read_index(path: Path) -> tuple[Names, tuple[Refusal, ...], np.ndarray | None]:
    """The names of the rows, what was refused, and the labels of the rows."""
    names, refused, labels = Names(), [], array.array("i")
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        # Sets of earlier versions have no column of labels.
        labelled = "label" in file.schema_arrow.names
        for batch in file.iter_batches(_LINES, columns=["name", "reason", *(["label"] if labelled else [])]):
            for name, reason, *label in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                if reason is not None:
                    refused.append(Refusal(name=name, reason=reason))
                    continue
                names.append(name)
                labelled = labelled and label[0] is not None
                if labelled:
                    labels.append(label[0])
    return names, tuple(refused), np.frombuffer(labels, np.int32) if labelled and names else None


def _verify(path: Path, pixels: np.ndarray, manifest: dict[str, Any]) -> None:
    """Read every pixel. Raises IntegrityError naming the rows that are not those that were written."""
    # Sets of earlier versions have one checksum for all rows.
    whole = [{"rows": [0, len(pixels)], "sha256": manifest["pixels_sha256"]}]
    for shard in manifest.get("shards", whole):
        first, end = shard["rows"]
        if hashlib.sha256(pixels[first:end]).hexdigest() != shard["sha256"]:
            raise _damaged(path, f"the checksum of rows {first:,} to {end - 1:,} does not match the manifest's")


def _map_pixels(path: Path, shape: tuple[int, int, int, int]) -> np.ndarray:
    try:
        pixels = np.load(path, mmap_mode="r", allow_pickle=False)
    except BROKEN_ARRAY as error:
        raise _damaged(path, str(error)) from None
    if pixels.dtype != np.uint8 or pixels.shape != shape:
        raise _damaged(path, f"it holds {pixels.dtype} {list(pixels.shape)}, the manifest says uint8 {list(shape)}")
    return pixels


def _damaged(path: Path, reason: str) -> IntegrityError:
    mend = f"remove {path.parent} to import the images again"
    return IntegrityError(f"{path} is not the file that was written: {reason}", mend=mend)
